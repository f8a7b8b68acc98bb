"""Which exit code an error ends with is said by its type: only what jaxdist refuses is a refusal."""

import errno
import re

import jax
import jax.numpy as jnp
import pytest
import runs

from jaxdist import checkpoint, cli, cluster, cohort, errors, fail_fast, submit
from jaxdist.commands import printing

CLOSED = "UNKNOWN: Gloo AllReduce failed: Connection closed by peer [127.0.0.1]:9"
CALLBACK = "INTERNAL: CpuCallback error calling callback: Traceback (most recent call last): ..."
Runtime = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Refused("x"), 2),
        (errors.NoMemory("x"), 2),
        (errors.NothingIntact("x"), 3),
        (errors.NotFinite("x"), 1),
        (errors.NoRoom("x"), 74),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        # The runtime of JAX, by either of its types.
        *[(kind(text), 75) for kind in (Runtime, ValueError) for text in (CLOSED, CALLBACK)],
        *[(Runtime(f"{x}: y"), 75) for x in ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")],
        # Whoever raises one of these, it was not on purpose.
        (Runtime("INVALID_ARGUMENT: x"), 0),
        (FloatingPointError("invalid value (nan) encountered in mul"), 0),
        (FileNotFoundError(errno.ENOENT, "x"), 0),
        (MemoryError("x"), 0),
        *[(kind("x"), 0) for kind in (ValueError, TypeError, OSError, KeyError, RuntimeError)],
    ],
    ids=repr,
)
def test_the_type_of_an_error_says_its_exit_code(error, code):
    assert printing.exit_code(error) == code


def test_where_an_error_was_raised_says_nothing():
    with pytest.raises(errors.Refused, match="clients=0") as refused:
        cohort(0, 1)
    with pytest.raises(TypeError) as mistaken:
        cli.main(3)  # in a file of jaxdist
    assert printing.exit_code(refused.value) == 2
    assert printing.exit_code(mistaken.value) == 0


def test_the_package_raises_no_type_that_says_nothing():
    """One that also JAX, NumPy or a user's function may raise: see `jaxdist/errors.py`."""
    vague = "ValueError|TypeError|OSError|MemoryError|FloatingPointError"
    found = [
        f"{file.name}: {line.strip()}"
        for file in (runs.ROOT / "jaxdist").rglob("*.py")
        for line in file.read_text().splitlines()
        if re.search(rf"\braise ({vague})\b", line)
    ]
    assert found == []


def test_what_is_started_again_is_no_final_code():
    again = {fail_fast.FAILED, fail_fast.GO_ON}
    assert not again & {*fail_fast.REFUSED}
    assert not again & {*submit.FINAL}


def test_a_peer_that_is_gone_while_a_step_is_saved_is_no_full_disk(tmp_path, monkeypatch):
    def gone(name, step):
        raise Runtime("UNAVAILABLE: the coordinator is gone")

    monkeypatch.setattr(cluster, "barrier", lambda name, step: name == "cleaned" and gone(name, 0))
    with pytest.raises(Runtime, match="UNAVAILABLE") as raised:
        checkpoint.save(tmp_path / "run", 1, {"w": jnp.ones(3)})
    assert printing.exit_code(raised.value) == 75


LOSS = "    def loss_fn(params, batch, key):\n"
MISTAKES = {
    "a value in the loss": (LOSS, f"{LOSS}        raise ValueError('mine')\n", ValueError),
    "a type in the loss": (LOSS, f"{LOSS}        raise TypeError('mine')\n", TypeError),
    "the signature of the loss": (LOSS, "    def loss_fn(params, batch):\n", TypeError),
    "shapes in the loss": ('@ params["w"]', '@ params["w"][:2]', TypeError),
    "a value in the stream": (
        "            time.sleep(slow)\n",
        "            if step == 3:\n                raise ValueError('mine')\n",
        ValueError,
    ),
    "a value in the accuracy": (
        "    def accuracy(params, test):\n",
        "    def accuracy(params, test):\n        raise ValueError('mine')\n",
        ValueError,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_what_a_config_holds_keeps_its_traceback(tmp_path, name):
    old, new, kind = MISTAKES[name]
    config = tmp_path / "mistaken.py"
    assert old in runs.SMALL
    config.write_text(runs.SMALL.replace(old, new))
    with pytest.raises(kind) as raised:
        cli.main(["train", str(config), "--workdir", str(tmp_path / "run")])
    assert not isinstance(raised.value, errors.Refused)


HOOK = """
import os
import pathlib

import jax
from jax.experimental import io_callback

GONE = pathlib.Path(__file__).with_name("gone")
CALLS = []


def hook(x):
    CALLS.append(x)
    if os.environ.get("JAX_PROCESS_ID", "1") == "1" and len(CALLS) == 55 and not GONE.exists():
        GONE.touch()
        raise ValueError("from the callback")
    return x


def experiment("""
CALLBACKS = {
    "pure": 'batch["y"] += 0 * jax.pure_callback(hook, x, x, vmap_method="sequential")',
    "io": "io_callback(hook, x, x)",
    "debug": "jax.debug.callback(hook, x)",
}


def called_back(folder, callback):
    """A config whose loss calls the host back, which raises once, in the process that is number 1."""
    body = f'        x = batch["y"][0]\n        {CALLBACKS[callback]}\n'
    text = runs.SMALL.replace("\ndef experiment(", HOOK, 1).replace(LOSS, LOSS + body)
    text = text.replace("        seed=seed,\n", "        seed=seed,\n        reproducible=True,\n")
    file = folder / "called_back.py"
    file.write_text(text)
    return file


def test_alone_a_host_callback_that_raises_keeps_its_traceback(tmp_path):
    config = called_back(tmp_path, "pure")
    # One worker, on one device: others would wait for it in an exchange.
    given = ["--workers", "1", "--topology", "1", "--steps", "60"]
    with pytest.raises((ValueError, RuntimeError), match="from the callback"):
        cli.main(["train", str(config), "--workdir", str(tmp_path / "run"), *given])


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    "callback", [pytest.param(c, marks=pytest.mark.short if c == "pure" else ()) for c in CALLBACKS]
)
def test_a_host_callback_that_raises_in_one_process_is_a_restart_with_the_same_bits(
    tmp_path, callback
):
    config = called_back(tmp_path, callback)
    code, _, err = runs.ended(runs.launch(str(config), tmp_path / "two"))
    assert code == 0, err
    assert (tmp_path / "gone").exists()
    assert [e["event"] for e in runs.events(tmp_path / "two")] == [
        "start",
        "failed",
        "start",
        "done",
    ]
    assert re.search(r"process 1: \w+Error in phase \w+ of step \d+; restart 1", err)
    assert "[process 1] ValueError: from the callback" in err
    # Once more, in one process with as many devices, and nothing is raised.
    devices = {"JAX_NUM_CPU_DEVICES": "2", "NPROC": "4"}
    given = ("train", str(config), "--workdir", str(tmp_path / "one"))
    code, _, err = runs.ended(runs.start(*given, **devices))
    assert code == 0, err
    assert runs.recorded(tmp_path / "two") == runs.recorded(tmp_path / "one")
