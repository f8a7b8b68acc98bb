"""One writer for a folder: where locks are not shared, where there are none, where somebody laid a link."""

import contextlib
import errno
import fcntl
import os
import shutil
import threading

import pytest
import runs

from jaxdist import checkpoint, cli, file_lock, launch, metrics, run_folder
from jaxdist.errors import Refused


def test_who_has_lost_its_lock_stops_and_writes_nothing(tmp_path, capsys):
    """A second run begins after the file was removed: the kernel lets both have a lock of that name."""
    config, folder = tmp_path / "config.py", tmp_path / "run"
    steal = f"""
            if step == 9:
                while not os.path.exists({str(folder / "checkpoints/7/manifest.json")!r}):
                    time.sleep(0.01)
                os.unlink({str(folder / "lock")!r})
                with run_folder.locked(pathlib.Path({str(folder)!r})):
                    pass
"""
    hook = "            time.sleep(slow)\n"
    text = runs.SMALL.replace(hook, hook + steal)
    config.write_text(
        text.replace(
            "import jaxdist as jd",
            "import os, pathlib\nimport jaxdist as jd\nfrom jaxdist import run_folder",
        )
    )
    code = cli.main(["train", str(config), "--workdir", str(folder)])
    assert code == 74
    assert "this run stops, and commits nothing" in capsys.readouterr().err
    assert checkpoint.steps(folder / "checkpoints") == [7]
    assert max(line["step"] for line in runs.lines(folder)) < 10


@pytest.fixture
def unshared(monkeypatch):
    """Locks that every process has, as on a mount that does not share them."""
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)


@pytest.mark.parametrize("change", ["another", "removed", "replaced", "linked"])
def test_a_lock_that_is_not_ours_any_more_is_seen_before_a_commit(tmp_path, unshared, change):
    with run_folder.locked(tmp_path) as check:
        check()
        lock = tmp_path / "lock"
        if change == "another":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(file_lock, "TOKEN", "another process's")
                run_folder.locked(tmp_path).__enter__()
        elif change == "removed":
            lock.unlink()
        else:
            lock.rename(tmp_path / "was")
            if change == "replaced":
                shutil.copy(tmp_path / "was", lock)
            else:
                lock.symlink_to(tmp_path / "was")
        with pytest.raises(OSError, match="this run stops, and commits nothing"):
            check()
        state = checkpoint.ready({"w": runs_array()})
        with pytest.raises(OSError, match="commits nothing"):
            checkpoint.write(tmp_path / "checkpoints", 1, state, check=check)
        assert not (tmp_path / "checkpoints").exists()
        with metrics.recording(tmp_path, begin=0, steps=1, check=check) as recorder:
            with pytest.raises(OSError, match="commits nothing"):
                recorder.write(1, {"loss": 1.0}, 0)
            with pytest.raises(OSError, match="commits nothing"):
                recorder.sync()
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def runs_array():
    import jax.numpy as jnp

    return jnp.ones(3)


def test_a_lock_that_is_lost_during_a_save_commits_no_step(tmp_path, monkeypatch):
    with run_folder.locked(tmp_path) as check:
        write = checkpoint.stored_arrays.write

        def slow(*given, **named):
            (tmp_path / "lock").unlink()
            return write(*given, **named)

        monkeypatch.setattr(checkpoint.stored_arrays, "write", slow)
        state = checkpoint.ready({"w": runs_array()})
        with pytest.raises(OSError, match="commits nothing"):
            checkpoint.write(tmp_path / "checkpoints", 1, state, check=check)
    assert not list((tmp_path / "checkpoints").glob("*/manifest.json"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("lock", [run_folder.locked, launch._alone])
def test_a_file_system_without_locks_is_a_sentence(tmp_path, monkeypatch, number, lock):
    def none(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    folder = tmp_path / "a" / "run"
    with pytest.raises(Refused, match="its file system has no locks .*nolock.*choose another"):
        lock(folder).__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lock", [run_folder.locked, launch._alone])
def test_a_lock_is_no_link_and_no_device(tmp_path, lock):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    victim.write_text("mine")
    file = folder / ("lock" if lock is run_folder.locked else "status/supervisor.lock")
    file.parent.mkdir(parents=True)
    for target in (victim, tmp_path / "new"):
        file.symlink_to(target)
        with pytest.raises(Refused, match="is a symbolic link .*: remove it"):
            lock(folder).__enter__()
        assert file.is_symlink()
        file.unlink()
    assert victim.read_text() == "mine"
    assert not (tmp_path / "new").exists()
    os.mkfifo(file)
    with pytest.raises(Refused, match="is no file"):
        lock(folder).__enter__()


def test_a_folder_that_is_refused_keeps_no_lock(tmp_path, capsys):
    config, full = runs.small(tmp_path), tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    assert cli.main(["train", config, "--workdir", str(full)]) == 2
    assert [p.name for p in full.iterdir()] == ["mine"]
    new = tmp_path / "new" / "run"
    assert cli.main(["train", config, "--workdir", str(new), "--resume", "must"]) == 2
    assert not new.parent.exists()
    # One that holds a run keeps the lock it has.
    run = tmp_path / "run"
    assert cli.main(["train", config, "--steps", "2", "--workdir", str(run)]) == 0
    (run / "lock").unlink()
    assert cli.main(["train", config, "--steps", "3", "--workdir", str(run)]) == 2
    assert (run / "experiment.json").exists()


def test_a_lock_that_was_removed_by_a_refusal_has_one_owner_after_it(tmp_path):
    """Many take and give back one file that is removed each time: never two at once."""
    file, inside, most = tmp_path / "run" / "lock", [], []

    def contend():
        for _ in range(50):
            with contextlib.suppress(Refused), file_lock.held(file, of=tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                raise Refused("as if the folder were not fit")

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
