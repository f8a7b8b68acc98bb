"""Runs of the shell for the tests: a small config, in this process or in one that can be killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
STARTED: list[subprocess.Popen[str]] = []

# A task of its own, so that a test can spoil a batch; adam and momentum, so that there is memory.
SMALL = '''"""Four workers fit a plane."""

import jax.numpy as jnp
import numpy as np
import optax

import jaxdist as jd


def experiment(
    *, workers: int = 4, topology: int = 4, steps: int = 40, spoiled: int = 0, seed: int = 0,
    rate: float = 0.05, slow: float = 0.0,
) -> jd.Experiment:
    """Fits a plane."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(64, 3)).astype(np.float32)
    examples = {"x": x, "y": (x @ np.array([1.0, -2.0, 0.5])).astype(np.float32)}
    inner = jd.data.Stream(
        examples, jd.data.split.iid(64, workers, seed=seed), batch_size=4, seed=seed
    )

    class Spoiled:
        workers = inner.workers

        def batch(self, step):
            import time

            time.sleep(slow)
            batch = inner.batch(step)
            if step == spoiled - 1:
                batch["x"][2, 0, 0] = np.inf
            return batch

    def loss_fn(params, batch, key):
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2), {}

    def accuracy(params, test):
        return jnp.mean(jnp.abs(test["x"] @ params["w"] + params["b"] - test["y"]) < 0.1)

    return jd.Experiment(
        algorithm=jd.gossip(optax.sgd(rate, momentum=0.9), jd.topology.ring(topology)),
        task=jd.tasks.Task(
            loss_fn=loss_fn,
            init=lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())},
            stream=Spoiled(),
            accuracy=accuracy,
            test=examples,
        ),
        steps=steps,
        workers=workers,
        seed=seed,
        evaluate_every=10,
        save_every=7,
    )
'''


def small(folder: Path) -> str:
    """Writes the small config; returns its path."""
    file = folder / "small.py"
    file.write_text(SMALL)
    return str(file)


def start(*arguments: str, terminal: int | None = None, **more: str) -> subprocess.Popen[str]:
    """`jaxdist ARGUMENTS` as a process of its own, on one device, with nothing inherited from pytest.

    `more` is added to its environment. It leads a process group of its own, as in a terminal, or is on
    this one: what is typed there reaches its group.
    """
    code = "import sys; from jaxdist.cli import main; sys.exit(main())"
    if terminal is not None:
        seat = f"os.setsid(); fcntl.ioctl({terminal}, termios.TIOCSCTTY, 0)"
        code = f"import fcntl, os, termios; {seat}; {code}"
    keep = {
        name: os.environ[name] for name in ("PATH", "HOME", "XDG_STATE_HOME") if name in os.environ
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**keep, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **more},
        process_group=None if terminal is not None else 0,
        pass_fds=() if terminal is None else (terminal,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def lines(folder: Path) -> list[dict]:
    """The whole lines of a run's metrics."""
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def recorded(folder: Path) -> list[tuple]:
    """What a run recorded, without how long it took."""
    return [tuple((k, v) for k, v in line.items() if k != "seconds") for line in lines(folder)]


def launch(
    config: str,
    folder: Path,
    *arguments: str,
    processes: int = 2,
    restarts: int = 3,
    plan: str = "",
    terminal: int | None = None,
    **more: str,
) -> subprocess.Popen[str]:
    """`jaxdist launch` of a config, with a fault plan, perhaps on a terminal of its own."""
    faults = {"JAXDIST_TEST_FAULTS": "1", "JAXDIST_FAULT_PLAN": plan}
    given = ("--", "train", config, "--workdir", str(folder), *arguments)
    numbers = ("--processes", str(processes), "--max-restarts", str(restarts))
    return start("launch", *numbers, *given, terminal=terminal, **faults, **more)


def ended(process: subprocess.Popen[str], *, seconds: float = 200) -> tuple[int, str, str]:
    """Exit code, output and errors; if it does not end by itself, its whole group is killed."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    return process.returncode, out, err


def statuses(folder: Path) -> list[dict]:
    """What the processes of a run say of themselves."""
    found = []
    for file in sorted((folder / "status").glob("*.json")):
        try:
            found.append(json.loads(file.read_text()))
        except (OSError, ValueError):  # it is being replaced
            continue
    return found


def events(folder: Path) -> list[dict]:
    """What the supervisor of a run did."""
    text = (folder / "status" / "supervisor.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def state(pid: int) -> str:
    """A letter of Linux: R runs, S sleeps, T is stopped, Z is a zombie; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return state(pid) not in ("", "Z")


def crowd() -> float:
    """How many times longer work takes because others want the cores of this host too; 1.0: idle."""
    return max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


def until(condition, *, seconds: float = 90):
    """What `condition()` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")
