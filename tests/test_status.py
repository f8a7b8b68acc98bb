"""What `jaxdist status` reads out of a run's folder."""

import json
import time

import runs

from jaxdist import cli, fail_fast, peers, run_folder, status, watchdog


def written(folder, *processes, events=()):
    (folder / "status").mkdir()
    for number, more in enumerate(processes):
        one = {
            "process": number, "processes": len(processes), "pid": 10 + number, "host": "h",
            "time": time.time(), "phase": "step", "step": 40, "lasted": 0.1,
            "steps_per_second": 12.5, "restarts": 0, "seconds": {},
        }  # fmt: skip
        (folder / "status" / f"{number}.json").write_text(json.dumps({**one, **more}))
    lines = [json.dumps({"pid": 9, "time": 0.0, **event}) for event in events]
    (folder / "status" / "supervisor.jsonl").write_text("\n".join([*lines, '{"torn']) + "\n")


def test_it_names_the_straggler_the_checkpoint_and_why_there_were_restarts(tmp_path, capsys):
    written(
        tmp_path,
        {"lasted": 30.0},
        {"phase": "data", "step": 12, "lasted": 30.0},
        events=[
            {"event": "start", "restarts": 0},
            {"event": "failed", "cause": "process 1 died of SIGKILL"},
            {"event": "start", "restarts": 1},
        ],
    )
    for name in ("28", "35.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").touch()
    (tmp_path / "checkpoints" / "35").mkdir()
    (tmp_path / "experiment.json").write_text('{"keywords": {"steps": 600}}')
    assert cli.main(["status", str(tmp_path)]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    shown = dict(status.rows(tmp_path))
    assert shown["step"] == "12 of 600"
    assert shown["processes"] == "2 of 2"
    assert shown["last checkpoint"].startswith("step 28, ")
    assert shown["restarts"] == "1"
    assert shown["  because"] == "process 1 died of SIGKILL"
    assert shown["stragglers"] == "process 1: 28 steps behind; the others wait for it"
    assert rows["phase"] == "data"


def test_a_frozen_process_is_silent(tmp_path):
    written(tmp_path, {}, {"time": time.time() - 60})
    assert dict(status.rows(tmp_path))["stragglers"] == "process 1: silent for 60 s"


def test_what_the_thread_writes_is_what_is_shown(tmp_path):
    with watchdog.watching(lambda: (0, 1)) as watch:
        watch.enter("step", 17)
        watch.follow(tmp_path)
    (one,) = peers.read(tmp_path)
    assert (one["phase"], one["step"], one["processes"]) == ("step", 17, 1)
    assert dict(status.rows(tmp_path))["step"] == "17"


def test_a_plain_run_shows_nothing_of_the_supervised_one_before_it(tmp_path, capsys):
    """Which had four processes and two restarts, and has ended."""
    folder = tmp_path / "run"
    folder.mkdir()
    written(
        folder,
        *[{"restarts": 2, "phase": "end", "time": time.time() - 60} for _ in range(4)],
        events=[
            {"event": "start", "restarts": 0},
            {"event": "failed", "cause": "process 1 died of SIGKILL"},
            {"event": "start", "restarts": 1},
            {"event": "done", "cause": "done"},
        ],
    )
    before = dict(status.rows(folder))
    assert (before["processes"], before["supervisor"]) == ("4 of 4", "done: done")
    config = runs.small(tmp_path)
    assert cli.main(["train", config, "--steps", "2", "--workdir", str(folder)]) == 0
    shown = dict(status.rows(folder))
    assert (shown["processes"], shown["step"], shown["restarts"]) == ("1 of 1", "2 of 2", "0")
    assert not {"supervisor", "  because", "process 1"} & shown.keys()
    assert shown["stragglers"] == "none"


def test_supervised_processes_keep_what_they_wrote_before_the_claim(tmp_path, monkeypatch):
    written(tmp_path, {}, {"phase": "init"})
    monkeypatch.setenv(fail_fast.ERRORS, str(tmp_path))
    run_folder.claim(tmp_path, config="a.py", keywords={}, source="")
    assert len(peers.read(tmp_path)) == 2
    monkeypatch.delenv(fail_fast.ERRORS)
    run_folder.claim(tmp_path, config="a.py", keywords={}, source="")
    assert not peers.read(tmp_path)


def test_a_folder_without_a_status_is_refused(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "holds no status" in capsys.readouterr().err
