"""Runs on `s3://` and `gs://`, against servers on loopback: killed, resumed, looked at and begun from."""

import itertools
import json
import os
import subprocess
import sys
import threading

import object_stores
import pytest
import runs

from jaxdist import cli, lease, manifest, metric_lines, scratch, store


@pytest.fixture(scope="module")
def s3():
    with object_stores.serving("s3"):
        yield


@pytest.fixture
def folder(s3):
    return store.folder(object_stores.fresh("s3"))


def test_a_folder_of_a_store_is_empty_until_there_is_an_object_in_it(folder):
    store.make(folder)
    assert not folder.exists()
    assert store.children(folder) == []
    assert manifest.saved(folder) == []
    store.remove(folder)
    store.write(folder / "a" / "b", "x")
    assert [p.name for p in store.children(folder)] == ["a"]
    store.move(folder / "a", folder / "c")
    assert store.read(folder / "c" / "b") == b"x"
    store.remove(folder / "c")
    assert store.children(folder) == []
    with pytest.raises(FileNotFoundError):
        store.read(folder / "c" / "b")
    assert metric_lines.read_metrics(folder) == []


def test_a_misspelled_bucket_is_refused_and_not_made(s3, capsys, tmp_path):
    config = runs.small(tmp_path)
    assert cli.main(["train", config, "--workdir", "s3://buckets/run"]) == 2
    assert "s3://buckets/run: " in capsys.readouterr().err
    assert not store.folder("s3://buckets").exists()


def test_a_lock_is_read_while_it_is_renewed(folder):
    """By one request: of two the second would find another version than the first."""
    text, over, seen = json.dumps({"token": "x", "beat": 1}), threading.Event(), []
    store.write(folder / "lock", text)

    def renew():
        for beat in itertools.count():
            if over.is_set():
                return
            store.write(folder / "lock", json.dumps({"token": "x", "beat": beat}))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        seen = [lease.look(folder).get("token") for _ in range(50)]
    finally:
        over.set()
        thread.join()
    assert seen == ["x"] * 50


def test_a_store_that_creates_over_what_is_there_has_one_writer_all_the_same(folder, monkeypatch):
    for name, seconds in (("RENEW", 0.05), ("STALE", 2.0)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)

    def create(file, text):
        store.write(file, text)
        return True

    monkeypatch.setattr(store, "create", create)
    with lease.held(folder, say=print) as check:
        with (
            pytest.raises(ValueError, match=f"written to by process {os.getpid()} on"),
            lease.held(folder, say=print),
        ):
            pass
        check()


def test_a_temporary_folder_is_gone_after_its_process_was_killed(tmp_path):
    code = (
        "import os\nfrom jaxdist import scratch\nwith scratch.folder() as made:\n"
        "    (made / 'x').write_text('x')\n    os.killpg(0, 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(runs.ROOT)},
        process_group=0,
        check=False,
    )
    assert killed.returncode == -9
    runs.until(lambda: not list(tmp_path.iterdir()), seconds=20)
    with scratch.folder() as made:
        (made / "x").write_text("x")
    assert not made.exists()


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_run_is_killed_goes_on_and_is_looked_at(scheme, tmp_path, capsys):
    config, here = runs.small(tmp_path), tmp_path / "temporary"
    here.mkdir()
    with object_stores.serving(scheme) as environment:
        url = object_stores.fresh(scheme)
        folder, more = store.folder(url), {**environment, "TMPDIR": str(here)}
        arguments = ["train", config, "--slow", "0.25", "--workdir", url]
        first = runs.start(*arguments, **more)
        try:
            runs.until(lambda: manifest.saved(folder / "checkpoints") or first.poll() is not None)
            assert cli.main(["status", url]) == 0
            said = capsys.readouterr().out
            assert f"process {first.pid} on" in said
            assert "of 40" in said
            assert cli.main(arguments) == 2
            assert f"is being written to by process {first.pid} on" in capsys.readouterr().err
        finally:
            first.kill()
            first.communicate()
        runs.until(lambda: not list(here.iterdir()), seconds=20)
        saved = manifest.saved(folder / "checkpoints")[-1]
        code, out, err = runs.ended(runs.start(*arguments, **more))
        assert code == 0, err
        assert f"resuming: step {saved} of 40" in out
        assert list(here.iterdir()) == []
        lines = metric_lines.read_metrics(folder)
        assert [line["step"] for line in lines] == list(range(1, 41))
        assert lines[-1]["bytes_sent"] == 32 * 40
        assert cli.main(["eval", url]) == 0
        assert "step                    40 of 40" in capsys.readouterr().out
        next_one = ["--steps", "41", "--slow", "0.25", "--init-from", url]
        assert cli.main(["train", config, "--workdir", f"{url}-more", *next_one]) == 0
        assert f"from step 40 of {url}, 4 workers: all is carried" in capsys.readouterr().out
        assert cli.main(["compare", url, f"{url}-more", "--workdir", str(tmp_path)]) == 0
        assert "1,280" in capsys.readouterr().out
        assert cli.main(["status", url]) == 0
        said = capsys.readouterr().out
        assert "step                    40 of 40" in said
        assert "written to by           nobody" in said
        assert "only process 0 is seen behind a URL" in said
