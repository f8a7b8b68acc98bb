"""Runs of several processes under a supervisor: killed, stopped and failing, they end where they should."""

import os
import re
import signal
import time

import jax
import numpy as np
import pytest
import runs

from jaxdist import checkpoint, experiment
from jaxdist.executor import execute

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SLOW = 0.2
SLOWLY = ("--slow", str(SLOW))
# From a kill, and from a stop for ever, to the first new step; from SIGTERM to the last process's end,
# without the save.
KILL_SECONDS, STOP_SECONDS, TERM_SECONDS = 15, 30, 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbs: its config and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    config = runs.small(folder)
    code, out, err = runs.ended(runs.launch(config, folder / "run"))
    assert code == 0, err
    assert "4 workers on 2 x cpu" in out
    return config, folder / "run"


def parameters(config, folder):
    """The bytes of the last state."""
    made = experiment.read(config).experiment
    trainer = execute(made.algorithm, made.task.loss_fn, workers=made.workers)
    like = trainer.init(made.task.init(jax.random.key(0)))
    found = checkpoint.restore(folder / "checkpoints", like)
    assert found.step == 40
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found.state)]


def same_as(whole, folder):
    """Whether a run recorded the same, and ended with the same parameters, as the undisturbed one."""
    config, undisturbed = whole
    assert runs.recorded(folder) == runs.recorded(undisturbed)
    assert parameters(config, folder) == parameters(config, undisturbed)
    return True


def step_reached(folder, step):
    return lambda: [s for s in runs.statuses(folder) if s["step"] >= step]


def stepping(folder, life):
    """The processes that have done a step of their own in this life of the job."""
    return lambda: [
        s for s in runs.statuses(folder) if s["restarts"] == life and "step" in s["seconds"]
    ]


def when_asked(folder):
    """A moment in which all are asked to stop: the time, the step, for how long it has been saving."""
    (first,) = [s for s in runs.statuses(folder) if s["process"] == 0]
    return time.time(), first["step"], first["seconds"].get("save", 0.0)


def stopped_soon(folder, asked, step):
    """Whether all ended soon after that moment."""
    began, then, saving = asked
    _, _, saved = when_asked(folder)
    # No step is shorter than its data: this part does not depend on who shares the CPU.
    assert (step - then) * SLOW <= TERM_SECONDS
    lasted = runs.events(folder)[-1]["time"] - began
    assert lasted <= (TERM_SECONDS + saved - saving) * runs.crowd()
    return True


def nobody_left(pids, *, seconds=5.0):
    return runs.until(lambda: not any(map(runs.alive, pids)), seconds=seconds)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param("kill:1@step=17,kill:0@compile=*/1", marks=pytest.mark.short),
        "kill:0@step=23",
        "kill:1@read=0,kill:0@init=0/1,kill:1@compile=0/2",
        "kill:1@step=17,kill:0@restore=0/1,kill:1@save=28/2,kill:0@start=0/3",
    ],
)
def test_a_killed_process_is_started_again_and_the_run_ends_bit_for_bit_the_same(
    whole, tmp_path, plan
):
    config, _ = whole
    code, _, err = runs.ended(runs.launch(config, tmp_path / "run", plan=plan))
    assert code == 0, err
    faults = plan.count("kill")
    assert err.count("died of SIGKILL; restart") == faults, err
    assert [e["event"] for e in runs.events(tmp_path / "run")] == [
        *["start", "failed"] * faults,
        "start",
        "done",
    ]
    assert same_as(whole, tmp_path / "run")


def test_the_first_new_step_comes_within_15_seconds_of_a_kill(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    workers = ("--workers", "6", "--topology", "6")
    process = runs.launch(config, folder, *SLOWLY, *workers, processes=3)
    for life, victim in enumerate((1, 0)):
        before = max(checkpoint.steps(folder / "checkpoints"), default=0)
        # With a new checkpoint, after which the pause is the shortest.
        runs.until(
            lambda at=before: [s for s in checkpoint.steps(folder / "checkpoints") if s > at]
        )
        (pid,) = [s["pid"] for s in runs.statuses(folder) if s["process"] == victim]
        began, killed = time.monotonic(), time.time()
        os.kill(pid, signal.SIGKILL)
        runs.until(stepping(folder, life + 1))
        assert time.monotonic() - began <= KILL_SECONDS
        # The supervisor's own part of it.
        failed, again = [e["time"] - killed for e in runs.events(folder)[-2:]]
        assert 0 <= failed < 1
        assert 0.5 <= again - failed < 1
    code, _, err = runs.ended(process)
    assert code == 0, err
    assert err.count("died of SIGKILL; restart") == 2


def test_killed_while_it_saves_the_step_before_is_restored(whole, tmp_path):
    config, _ = whole
    folder = tmp_path / "run"
    process = runs.launch(config, folder, "--slow", "0")
    saves = folder / "checkpoints"

    def unfinished():
        return saves.is_dir() and [p for p in saves.iterdir() if checkpoint.UNFINISHED in p.name]

    found = runs.until(unfinished)
    os.kill(next(s["pid"] for s in runs.statuses(folder) if s["process"] == 0), signal.SIGKILL)
    code, _, err = runs.ended(process)
    assert code == 0, err
    assert "process 0 died of SIGKILL" in err
    assert found
    assert not unfinished()
    assert same_as(whole, folder)


@pytest.mark.parametrize(
    "phase", [pytest.param("data=9", marks=pytest.mark.short), "save=14", "evaluate=10"]
)
def test_an_error_in_one_process_ends_all_at_once_and_its_traceback_is_last(tmp_path, phase):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    code, _, err = runs.ended(runs.launch(config, folder, plan=f"raise:1@{phase}/*"))
    assert code == 70
    name, step = phase.split("=")
    last = err.strip().split("\n")
    assert "given up: the same error at the same step twice" in err
    assert (
        last[-1] == f"[process 1] RuntimeError: a fault of the plan, in phase {name} of step {step}"
    )
    assert f"[process 1] failed in phase {name} of step {step}" in last
    told = runs.json.loads((folder / "error.json").read_text())
    assert (told["process"], told["phase"], told["step"]) == (1, name, int(step))
    first, failed = runs.events(folder)[:2]
    assert failed["event"] == "failed"
    # From the error to the last process's end, not from the start of the job.
    assert runs.events(folder)[3]["time"] - told["time"] < 5
    assert first["time"] < told["time"]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("'no data on this host'", 2, "[process 1] no data on this host"),
        ("1", 1, "small.py:{line} ended with exit code 1"),
    ],
)
def test_a_config_that_ends_one_process_ends_all_and_is_told(tmp_path, given, code, said):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    gone = tmp_path / "gone"
    body = f"""    import os, pathlib, sys, time
    if os.environ["JAX_PROCESS_ID"] == "1":
        pathlib.Path({str(gone)!r}).write_text(str(time.time()))
        sys.exit({given})
"""
    text = runs.SMALL.replace("    draw = np", body + "    draw = np", 1)
    (tmp_path / "small.py").write_text(text)
    ended, _, err = runs.ended(runs.launch(config, folder))
    assert ended == code, err
    line = text[: text.index("sys.exit")].count("\n") + 1
    assert said.format(line=line) in err
    assert "Traceback" not in err
    assert runs.events(folder)[-1]["cause"] == "refused"
    # The supervisor lets the others refuse something too, for 5 s.
    assert runs.events(folder)[-1]["time"] - float(gone.read_text()) < 7


@pytest.mark.parametrize("victims", [(1,), (0, 1)])
def test_a_term_to_one_or_to_all_saves_one_common_step(whole, tmp_path, victims):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    process = runs.launch(config, folder, *SLOWLY)
    runs.until(step_reached(folder, 7))
    pids = {s["process"]: s["pid"] for s in runs.statuses(folder)}
    asked, began = when_asked(folder), time.monotonic()
    for victim in victims:
        os.kill(pids[victim], signal.SIGTERM)
    code, out, err = runs.ended(process)
    assert code == 0, err
    assert time.monotonic() - began < 20
    step = int(out.split("saved step ")[1].split(";")[0])
    assert stopped_soon(folder, asked, step)
    assert 7 <= step < 40
    last = runs.events(folder)[-1]
    assert (last["event"], last["step"]) == ("stopped", step), "steps are left"
    assert f"stopped and saved step {step}, by a signal to one of the processes; the same" in err
    assert checkpoint.steps(folder / "checkpoints")[-1] == step
    assert nobody_left(pids.values())
    code, out, err = runs.ended(runs.launch(config, folder, *SLOWLY))
    assert f"resuming: step {step} of 40" in out
    assert runs.recorded(folder) == runs.recorded(whole[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_supervisor_is_passed_on_once_and_leaves_nobody(tmp_path, number):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    process = runs.launch(config, folder, *SLOWLY)
    runs.until(step_reached(folder, 7))
    pids = [s["pid"] for s in runs.statuses(folder)]
    asked = when_asked(folder)
    os.killpg(process.pid, number)  # as a terminal does
    code, out, err = runs.ended(process)
    assert code == 0, err
    assert "saved step" in out
    assert runs.events(folder)[-1]["event"] == "stopped"
    assert stopped_soon(folder, asked, int(out.split("saved step ")[1].split(";")[0]))
    assert nobody_left(pids)


def test_a_second_signal_stops_at_once(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    # Nobody asks whether to stop while the data takes a minute.
    process = runs.launch(config, folder, plan="hang:1@data=9")
    runs.until(lambda: [s for s in runs.statuses(folder) if s["step"] >= 9])
    pids = [s["pid"] for s in runs.statuses(folder)]
    process.send_signal(signal.SIGINT)
    runs.until(lambda: runs.events(folder)[-1]["event"] == "stopping")
    assert all(map(runs.alive, pids))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, _, err = runs.ended(process)
    assert code == 130, err
    assert time.monotonic() - began < 5
    assert nobody_left(pids)


def test_a_second_term_to_a_process_ends_it_at_once(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    process = runs.launch(config, folder, plan="hang:0@data=9", restarts=0)
    runs.until(step_reached(folder, 9))
    (pid,) = [s["pid"] for s in runs.statuses(folder) if s["process"] == 0]
    os.kill(pid, signal.SIGTERM)
    # Asleep as it is, it hears.
    assert any("stopping: all processes save one step" in line for line in process.stdout)
    assert runs.alive(pid)
    os.kill(pid, signal.SIGTERM)
    code, _, err = runs.ended(process)
    assert code == 128 + signal.SIGTERM, err
    assert "process 0 died of SIGTERM" in err


def test_a_killed_supervisor_takes_its_processes_along_and_a_new_one_goes_on(whole, tmp_path):
    config, folder = whole[0], tmp_path / "run"
    process = runs.launch(config, folder)
    runs.until(lambda: checkpoint.steps(folder / "checkpoints"))
    pids = [s["pid"] for s in runs.statuses(folder)]
    assert len(pids) == 2
    process.kill()
    assert nobody_left(pids, seconds=2)
    process.communicate()
    code, out, err = runs.ended(runs.launch(config, folder))
    assert code == 0, err
    assert "resuming: step" in out or "already complete" in out
    assert same_as(whole, folder)


def test_a_stuck_process_is_named_and_ended_with_its_stacks(whole, tmp_path):
    config, folder = whole[0], tmp_path / "run"
    process = runs.launch(config, folder, plan="hang:1@data=9", JAXDIST_PATIENCE_SECONDS="25")
    code, _, err = runs.ended(process)
    assert code == 0, err
    assert re.search(r"\[process 0\] step \d+: waiting for data: process 1 \(", err)
    assert "[process 1] step 9: waiting for data: process 1 (" in err
    assert "[process 1] step 9: stuck in phase data for 25 s; all stacks:" in err
    assert "fault_plan.py" in err, "the stack says where"
    assert same_as(whole, folder)


def test_it_gives_up_after_failures_without_a_new_checkpoint(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    process = runs.start(
        "launch", "--processes", "2", "--max-restarts", "1", "--", "train", config,
        "--workdir", str(folder), JAXDIST_TEST_FAULTS="1", JAXDIST_FAULT_PLAN="kill:1@compile=0/*",
    )  # fmt: skip
    code, _, err = runs.ended(process)
    assert code == 128 + signal.SIGKILL
    assert "given up: 2 failures without a new checkpoint" in err


@pytest.mark.short
def test_a_folder_has_one_supervisor_and_names_it(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    first = runs.launch(config, folder, plan="hang:0@read=0")
    try:
        runs.until(lambda: (folder / "status" / "supervisor.jsonl").exists())
        code, _, err = runs.ended(runs.launch(config, folder))
        assert code == 2
        assert f"has a supervisor: process {first.pid} on " in err
    finally:
        first.kill()
        first.communicate()


def test_one_supervised_process_is_started_again_too(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    process = runs.launch(config, folder, processes=1, plan="raise:0@data=17")
    code, _, err = runs.ended(process)
    assert code == 0, err
    assert "[process 0] RuntimeError: a fault of the plan, in phase data of step 17" in err
    assert "restart 1 from step 14" in err
    assert runs.lines(folder)[-1]["step"] == 40


def test_reproducible_losses_are_those_of_one_process_with_as_many_devices(tmp_path):
    config = tmp_path / "fixed.py"
    config.write_text(runs.SMALL.replace("seed=seed,\n        eval", "reproducible=True, eval"))
    assert "reproducible=True" in config.read_text()
    code, _, err = runs.ended(runs.launch(str(config), tmp_path / "two"))
    assert code == 0, err
    alone = runs.start(
        "train", str(config), "--workdir", str(tmp_path / "one"), JAX_NUM_CPU_DEVICES="2", NPROC="4"
    )
    code, out, err = runs.ended(alone)
    assert code == 0, err
    assert "on 2 x cpu" in out
    losses = [[line["loss"] for line in runs.lines(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == 40
    assert losses[0] == losses[1]


def test_a_process_that_stops_for_a_while_goes_on_and_one_for_ever_is_replaced(whole, tmp_path):
    config, folder = whole[0], tmp_path / "run"
    process = runs.launch(config, folder, plan="stop:1@data=9,stop:1@data=20,stop:0@data=30/1")

    def stopped():
        return [s["pid"] for s in runs.statuses(folder) if runs.state(s["pid"]) == "T"]

    (pid,) = runs.until(stopped)
    time.sleep(5)
    assert [e["event"] for e in runs.events(folder)] == ["start"]
    os.kill(pid, signal.SIGCONT)
    runs.until(stopped)  # for ever
    began = time.monotonic()
    runs.until(stepping(folder, 1))
    assert 15 < time.monotonic() - began <= STOP_SECONDS
    code, _, err = runs.ended(process, seconds=250)
    assert code == 0, err
    for number, process in ((1, 1), (2, 0)):
        told = rf"process {process} is frozen, .*: no sign of life for 15 s, stopped by a signal; "
        assert len(re.findall(f"{told}restart {number}", err)) == 1, err
    assert same_as(whole, folder)


def test_a_worker_lost_between_two_outer_steps_costs_what_was_not_saved(tmp_path):
    before = "jd.gossip(optax.sgd(rate, momentum=0.9), jd.topology.ring(topology))"
    after = "jd.diloco(optax.sgd(rate, momentum=0.9), optax.sgd(0.7, momentum=0.9), period=5)"
    assert before in runs.SMALL
    config = tmp_path / "diloco.py"
    config.write_text(runs.SMALL.replace(before, after).replace("save_every=7", "save_every=5"))
    for name, plan in (("calm", ""), ("killed", "kill:1@step=13,kill:0@step=32/1")):
        code, _, err = runs.ended(runs.launch(str(config), tmp_path / name, plan=plan))
        assert code == 0, err
    begun = [e["step"] for e in runs.events(tmp_path / "killed") if e["event"] == "start"]
    # Lost are the steps since the last outer one; since the one before, if its save was under way.
    assert begun[0] == -1
    assert begun[1] in (5, 10)
    assert begun[2] in (25, 30)
    assert runs.recorded(tmp_path / "killed") == runs.recorded(tmp_path / "calm")
    paths = [tmp_path / name for name in ("calm", "killed")]
    assert parameters(str(config), paths[0]) == parameters(str(config), paths[1])
