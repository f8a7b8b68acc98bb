"""The benchmark of slow processes: a process that it stops costs steps, and all its methods are there."""

import importlib.util
import json

import pytest
import runs

spec = importlib.util.spec_from_file_location(
    "slow_process", runs.ROOT / "benchmarks" / "slow_process.py"
)
slow_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slow_process)


@pytest.mark.slow
@pytest.mark.processes
def test_a_process_that_is_stopped_half_of_the_time_costs_steps(capfd):
    short = ["--methods", "gossip_ring", "--processes", "2", "--rounds", "1", "--seconds", "5"]
    assert slow_process.main(short) == 0
    line = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert line["method"] == "gossip_ring"
    assert set(line["steps_per_second"]) == {"calm", "half", "now_and_then"}
    assert line["steps_per_second"]["calm"] > 0
    assert 0 < line["kept"]["half"] < 0.9
    assert line["kept"]["now_and_then"] > 0


def test_every_method_of_it_is_an_experiment():
    for method in slow_process.METHODS:
        made = slow_process.experiment(method=method, milliseconds=0.0)
        assert made.task.stream.workers == made.workers
        assert len(made.task.stream.batch(0)) == 2
