"""Runs that are killed, stopped and resumed, each a process of its own."""

import random
import signal
import time

import jax
import numpy as np
import pytest
import runs

from jaxdist import checkpoint, experiment

pytestmark = pytest.mark.processes


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def wait_for(folder, step, process):
    """Returns when a run has recorded a step, within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        # Lines may wait in a buffer; a checkpoint tells as well.
        at = [line["step"] for line in runs.lines(folder)] + checkpoint.steps(
            folder / "checkpoints"
        )
        if at and max(at) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step}: {process.communicate()}")


def parameters(config, folder):
    """The bytes of the last state."""
    made = experiment.read(config).experiment
    trainer = experiment.trainer_of(made)
    like = trainer.init(made.task.init(jax.random.key(0)))
    found = checkpoint.restore(folder / "checkpoints", like)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found.state)]


def test_killed_at_random_steps_it_ends_bit_for_bit_where_it_would_have(tmp_path):
    config = runs.small(tmp_path)
    finish(runs.start("train", config, "--slow", "0.01", "--workdir", str(tmp_path / "whole")))
    folder = tmp_path / "killed"
    arguments = ["train", config, "--slow", "0.01", "--workdir", str(folder)]
    draw = random.Random(0)
    for least in (7, 21):
        process = runs.start(*arguments)
        wait_for(folder, least, process)
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert "resuming: step" in finish(runs.start(*arguments))
    assert runs.recorded(folder) == runs.recorded(tmp_path / "whole")
    assert parameters(config, folder) == parameters(config, tmp_path / "whole")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_run_saves_and_says_how_to_go_on(tmp_path, number):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    arguments = ["train", config, "--slow", "0.05", "--workdir", str(folder)]
    process = runs.start(*arguments)
    wait_for(folder, 7, process)
    process.send_signal(number)
    began = time.monotonic()
    out = finish(process)
    assert time.monotonic() - began < 10
    step = int(out.split("saved step ")[1].split(";")[0])
    assert 7 <= step < 40
    assert checkpoint.steps(folder / "checkpoints")[-1] == step
    assert f"to go on: jaxdist {' '.join(arguments)}" in out
    assert runs.lines(folder)[-1]["step"] == step
    assert f"resuming: step {step} of 40" in finish(runs.start(*arguments, "--resume", "must"))
    assert runs.lines(folder)[-1]["step"] == 40
