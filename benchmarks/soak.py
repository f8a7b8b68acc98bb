"""Kills processes of supervised runs at random and reports where the time went: goodput by cause.

    python benchmarks/soak.py --kills 20                        # 20 kills for each of four methods
    python benchmarks/soak.py --minutes 10 --every 30 --steps 9000     # four methods, 2.5 minutes each
    python benchmarks/soak.py --kills 2 --methods gossip --steps 150 --processes 2

Each method trains once undisturbed and once under fire, SIGKILL to any process, process 0 included. With
`--every` that is so many seconds after the first step of each life, else at any time, start-up included. Then
the recorded losses and the bytes of the last state must be the same. The file is its own config:
`jaxdist train benchmarks/soak.py --method gossip`.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import optax

import jaxdist as jd
from jaxdist import peers, status

METHODS = ("all_reduce", "local_sgd", "gossip", "diloco")
STARTING = ("import", "start", "read", "init", "restore", "compile")
WORKING = ("data", "step", "evaluate", "save", "end")


def experiment(
    *, method: str = "gossip", workers: int = 6, steps: int = 400, save_every: int = 25
) -> jd.Experiment:
    """Digits by one of four methods."""
    sgd = optax.sgd(0.05, momentum=0.9)
    algorithm = {
        "all_reduce": lambda: jd.all_reduce(sgd),
        "local_sgd": lambda: jd.local_sgd(sgd, period=10),
        "gossip": lambda: jd.gossip(sgd, jd.topology.ring(workers)),
        "diloco": lambda: jd.diloco(sgd, optax.sgd(0.7, momentum=0.9, nesterov=True), period=10),
    }[method]()
    return jd.Experiment(
        algorithm=algorithm,
        task=jd.tasks.digits(workers, batch_size=16),
        steps=steps,
        workers=workers,
        save_every=save_every,
        evaluate_every=steps,
    )


def keywords(options: argparse.Namespace, method: str) -> dict[str, object]:
    """What the config is called with."""
    named = {"steps": options.steps, "save_every": options.save_every, "workers": options.workers}
    return {"method": method, **named}


@contextlib.contextmanager
def launched(
    options: argparse.Namespace, method: str, folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Inside, `jaxdist launch` of this file runs; it is gone afterwards, and its processes with it."""
    command = [sys.executable, "-m", "jaxdist", "launch", "--processes", str(options.processes)]
    command += ["--max-restarts", "1000", "--", "train", __file__, "--workdir", str(folder)]
    for name, value in keywords(options, method).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    root = str(Path(jd.__file__).parents[1])
    with log.open("ab") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": root}
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Heard(NamedTuple):
    """What process 0 said of itself in one life of the job.

    Attributes:
      began: when its thread began to count the seconds, as its first status has it.
      last: its last status.
    """

    began: float
    last: dict


class Fire(NamedTuple):
    """What happened while somebody killed.

    Attributes:
      kills: process, life, time, phase, why ("due" or "random") and seconds to the first new step.
      heard: what process 0 said, by life.
      seconds: how long there was somebody who would kill.
    """

    kills: list[dict]
    heard: dict[int, Heard]
    seconds: float


def listen(folder: Path, heard: dict[int, Heard]) -> list[dict]:
    """Notes what process 0 says; returns what all processes of the newest life said last."""
    told = peers.read(folder)
    for one in told:
        if one["process"] == 0:
            began = one["time"] - sum(one["seconds"].values())
            life = one["restarts"]
            heard[life] = Heard(heard[life].began if life in heard else began, one)
    return [one for one in told if one["restarts"] == max(heard, default=0)]


def at_its_steps(one: dict) -> bool:
    """Whether a process is at its steps, and has done the first one since it was started."""
    return one["phase"] in ("step", "data") and "step" in one["seconds"]


def targets(
    told: list[dict], *, due: bool, every: float | None, draw: random.Random
) -> tuple[str, list[dict]]:
    """Why somebody may be killed now, and who: nobody, unless it is due or all are still starting.

    Args:
      told: what the processes of this life said last.
      due: whether the time of this life has come.
      every: None: about every fifth life is killed while it starts; several in a row would wait long.
      draw: of what is random.
    """
    if due:
        return "due", [one for one in told if at_its_steps(one)]
    starting = all(one["phase"] in STARTING for one in told)
    if every is None and starting and draw.random() < 0.004:
        return "random", told
    return "", []


def fire(
    options: argparse.Namespace, process: subprocess.Popen[bytes], folder: Path, draw: random.Random
) -> Fire:
    """Kills until enough were killed, or for long enough, or until the run ends; waits for its end."""
    kills: list[dict] = []
    heard: dict[int, Heard] = {}
    due: dict[int, float] = {}  # for each life, counted from its first step
    began = now = time.monotonic()
    over = None
    while process.poll() is None:
        time.sleep(0.1)
        told, now = listen(folder, heard), time.monotonic()
        life, stepping = max(heard, default=0), any(map(at_its_steps, told))
        if kills and stepping and "seconds" not in kills[-1] and life > kills[-1]["life"]:
            kills[-1]["seconds"] = time.time() - kills[-1]["time"]
        enough = now - began >= options.share if options.share else len(kills) >= options.kills
        if enough:
            over = over or now
            continue
        if kills and kills[-1]["life"] >= life:
            continue
        if stepping and life not in due:
            due[life] = now + (options.every or draw.uniform(0.2, 3.0))
        why, anybody = targets(
            told, due=now >= due.get(life, math.inf), every=options.every, draw=draw
        )
        if not anybody:
            continue
        victim = draw.choice(anybody)
        try:
            os.kill(victim["pid"], signal.SIGKILL)
        except ProcessLookupError:
            continue
        named = {name: victim[name] for name in ("process", "phase")}
        kills.append({**named, "life": life, "time": time.time(), "why": why})
    listen(folder, heard)  # the last words
    return Fire(kills, heard, (over or now) - began)


def causes(events: list[dict], heard: dict[int, Heard]) -> dict[str, float]:
    """Where the seconds between the supervisor's first and last line went.

    useful: steps that were kept, evaluations, checkpoints. redone: steps after the checkpoint that
    the next life went on from. starting: imports, joining, restoring, compiling. pause: between two lives.
    unseen: before the first and after the last word of a life.

    Each is measured, none is what the others leave: the supervisor's clock has the pauses and the ends
    of a life, process 0 its phases. Seconds that a process lost between two phases, or a life of which
    nobody heard, are missing in the sum.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    lives = [(a, b) for a, b in zip(events[::2], events[1::2], strict=False)]
    for begin, end in lives:
        if begin["restarts"] not in heard:
            continue
        began, said = heard[begin["restarts"]]
        spent = said["seconds"]
        working = sum(spent.get(phase, 0.0) for phase in WORKING)
        first, reached = max(begin["step"], 0), said["step"]
        lost = max(reached - max(end["step"], 0), 0) if end["event"] == "failed" else 0
        share = lost / (reached - first) if reached > first else 0.0
        inside = sum(spent.get(phase, 0.0) for phase in ("data", "step")) * min(share, 1.0)
        seconds["useful"] += working - inside
        seconds["redone"] += inside
        seconds["starting"] += sum(spent.get(phase, 0.0) for phase in STARTING)
        seconds["unseen"] += (began - begin["time"]) + (end["time"] - said["time"])
    for (_, end), (begin, _) in itertools.pairwise(lives):
        seconds["pause"] += begin["time"] - end["time"]
    return dict(seconds)


def digest(options: argparse.Namespace, method: str, folder: Path) -> str:
    """Of all recorded losses and the bytes of the last state."""
    import jax
    import numpy as np

    from jaxdist import checkpoint, experiment, metric_lines
    from jaxdist.executor import execute

    made = experiment.read(__file__, keywords=keywords(options, method)).experiment
    trainer = execute(made.algorithm, made.task.loss_fn, workers=made.workers)
    like = trainer.init(made.task.init(jax.random.key(made.seed)))
    found = checkpoint.restore(folder / "checkpoints", like)
    if found is None or found.step != options.steps:
        raise SystemExit(f"{folder} does not end at step {options.steps}: {found and found.step}")
    told = [(line["step"], line["loss"]) for line in metric_lines.read_metrics(folder)]
    data = [np.asarray(x).tobytes() for x in jax.tree.leaves(found.state)]
    return hashlib.sha256(json.dumps(told).encode() + b"".join(data)).hexdigest()


def soak(options: argparse.Namespace, method: str, room: Path) -> dict:
    """One method, undisturbed and under fire."""
    draw = random.Random(options.seed)
    calm, folder = room / f"{method}-calm", room / f"{method}-fire"
    began = time.monotonic()
    with launched(options, method, calm, room / "log") as process:
        if process.wait():
            raise SystemExit(f"the undisturbed run failed: {(room / 'log').read_text()[-2000:]}")
    undisturbed = time.monotonic() - began
    began = time.monotonic()
    with launched(options, method, folder, room / "log") as process:
        kills, heard, under_fire = fire(options, process, folder, draw)
        wall = time.monotonic() - began
        if process.wait():
            raise SystemExit(f"the run under fire failed: {(room / 'log').read_text()[-2000:]}")
    seconds = causes(status.supervisor(folder), heard)
    back = sorted(kill["seconds"] for kill in kills if "seconds" in kill)
    return {
        "method": method,
        "kills": len(kills),
        "of_process_0": sum(kill["process"] == 0 for kill in kills),
        "while_starting": sum(kill["why"] == "random" for kill in kills),
        "minutes_under_fire": round(under_fire / 60, 2),
        "same_bits": digest(options, method, calm) == digest(options, method, folder),
        "wall_seconds": round(wall, 2),
        "undisturbed_seconds": round(undisturbed, 2),
        "seconds_by_cause": {name: round(value, 2) for name, value in seconds.items()},
        "accounted": round(sum(seconds.values()) / wall, 4),
        "goodput": round(seconds.get("useful", 0.0) / wall, 4),
        "kill_to_step_seconds_median": round(back[len(back) // 2], 2) if back else None,
        "kill_to_step_seconds_most": round(back[-1], 2) if back else None,
    }


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, soaks each method, prints one JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="for each method (20)")
    parser.add_argument(
        "--minutes", type=float, help="instead: under fire, of all methods together"
    )
    parser.add_argument(
        "--every",
        type=float,
        help="seconds from a life's first step to its kill (random, 0.2 to 3; with --minutes 30)",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--save-every", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    options = parser.parse_args(arguments)
    options.share = options.minutes and options.minutes * 60 / len(options.methods)
    if options.minutes:
        options.every = options.every or 30.0
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="jaxdist-soak-") as room:
        for method in options.methods:
            line = json.dumps(soak(options, method, Path(room)))
            wrong += '"same_bits": false' in line
            print(line, flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(line + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    # A signal first ends what this has started. Where a shell starts it in the background, SIGINT is ignored,
    # which this undoes.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
