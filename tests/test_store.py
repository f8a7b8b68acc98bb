"""Checkpoints and runs behind a URL: the same promises, though a store has no rename and no kernel lock."""

import itertools
import json
import os
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import object_stores
import pytest
import runs

from jaxdist import checkpoint, cli, lease, manifest, metric_lines, store
from jaxdist.saving import saving

COUNT = itertools.count()


@pytest.fixture(
    params=[
        "memory",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("file", "s3", "gs")),
    ]
)
def url(request, tmp_path):
    """A folder of its own in a store."""
    if request.param == "file":
        yield f"file://{tmp_path}/run"
    elif request.param == "memory":
        yield f"memory://bucket/{next(COUNT)}"
    else:
        with object_stores.serving(request.param):
            yield object_stores.fresh(request.param)


def state_of(seed):
    draw = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(draw.normal(size=(8, 5)), jnp.float32),
        "half": jnp.asarray(draw.normal(size=3), jnp.bfloat16),
        "key": jax.random.key(seed),
        "none": jnp.zeros((8, 0)),
    }


def bits(state):
    data = {**state, "key": jax.random.key_data(state["key"])}
    return {name: (str(x.dtype), x.shape, np.asarray(x).tobytes()) for name, x in data.items()}


def files_of(url, step):
    return manifest.files(store.folder(url) / str(step))


def names(url):
    return sorted({p.name for p in store.children(store.folder(url))})


def test_a_round_trip_is_bit_for_bit_and_old_steps_go(url):
    assert checkpoint.restore(url, state_of(0)) is None
    for step in (1, 2, 3):
        checkpoint.save(url, step, state_of(step), extra={"at": step}, keep=2)
    assert names(url) == ["2", "3"]
    found = checkpoint.restore(url, state_of(0))
    assert (found.step, found.extra, found.said) == (3, {"at": 3}, ())
    assert bits(found.state) == bits(state_of(3))
    with pytest.raises(ValueError, match="step 3 is in .* already, intact"):
        checkpoint.save(url, 3, state_of(3))


@pytest.mark.parametrize("kind", ["flipped", "cut", "deleted"])
def test_any_damage_to_any_object_is_seen_and_the_older_step_is_taken(url, kind):
    for step in (1, 2):
        checkpoint.save(url, step, state_of(step))
    listed = {**files_of(url, 2), manifest.MANIFEST: store.folder(url) / "2" / manifest.MANIFEST}
    assert len(listed) >= 6
    if url.startswith(("s3", "gs")):  # whose requests take long, and where the files are the same
        listed = dict(list(listed.items())[::3])
    for name, file in listed.items():
        whole = file.read_bytes()
        if kind == "deleted":
            file.unlink()
        elif not whole:
            continue
        else:
            changed = bytes([*whole[:-1], whole[-1] ^ 1]) if kind == "flipped" else whole[:-1]
            file.write_bytes(changed)
        found = checkpoint.restore(url, state_of(0))
        assert found.step == 1, name
        assert name.split("/")[-1] in found.said[0]
        assert bits(found.state) == bits(state_of(1))
        file.write_bytes(whole)
    assert checkpoint.restore(url, state_of(0)).step == 2


def test_all_corrupt_is_refused_and_a_broken_step_is_set_aside(url):
    checkpoint.save(url, 1, state_of(1))
    (store.folder(url) / "1" / "about" / "metadata").write_text("{")
    with pytest.raises(checkpoint.NothingIntact, match="step 1 refused: about/metadata has"):
        checkpoint.restore(url, state_of(0))
    checkpoint.save(url, 1, state_of(2))
    assert names(url) == ["1", "1.refused-1"]
    assert bits(checkpoint.restore(url, state_of(0)).state) == bits(state_of(2))


def test_a_copy_tells_that_it_gets_on_also_inside_a_file(url, monkeypatch):
    moved = []
    checkpoint.write(url, 1, checkpoint.ready(state_of(1)), moved=lambda: moved.append(1))
    files = len(files_of(url, 1)) + 1
    assert len(moved) >= files
    monkeypatch.setattr(type(store.afar(store.folder(url))), "blocksize", 16)
    before = len(moved)
    checkpoint.write(url, 2, checkpoint.ready(state_of(2)), moved=lambda: moved.append(1))
    # The local disk behind file:// copies a file in one call.
    assert url.startswith("file") or len(moved) - before > 2 * files


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_kill_while_a_step_is_copied_leaves_no_step(url, monkeypatch, after):
    checkpoint.save(url, 1, state_of(1))
    fs, left = store.afar(store.folder(url)), [after]
    whole = fs.put_file

    def killed(*given, **named):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(url, 2, state_of(2))
    assert checkpoint.steps(url) == [1]
    assert checkpoint.restore(url, state_of(0)).step == 1
    checkpoint.save(url, 2, state_of(2))
    assert names(url) == ["1", "2"]
    # What is lost after that was a checkpoint, and is not forgotten.
    (store.folder(url) / "2" / manifest.MANIFEST).unlink()
    found = checkpoint.restore(url, state_of(0))
    assert (found.step, "its save was cut short" in found.said[0]) == (1, True)


def test_a_kill_while_an_old_step_is_removed_leaves_nothing_behind(url, monkeypatch):
    checkpoint.save(url, 1, state_of(1))
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(url, 2, state_of(2), keep=1)
    assert checkpoint.steps(url) == [2]
    checkpoint.save(url, 3, state_of(3), keep=1)
    assert names(url) == ["3"]


def test_a_store_that_fails_is_said_and_the_older_step_stays(url, monkeypatch):
    def failing(*given, **named):
        raise LookupError("quota exceeded")  # a package of a store has errors of its own

    checkpoint.save(url, 1, state_of(1))
    with monkeypatch.context() as patch:
        patch.setattr(store.afar(store.folder(url)), "put_file", failing)
        with pytest.raises(OSError, match="step 2 was not saved in .*quota exceeded"):
            checkpoint.save(url, 2, state_of(2))
    assert checkpoint.restore(url, state_of(0)).step == 1


@pytest.fixture
def quick(monkeypatch):
    """A lease that is looked at often, and soon stale."""
    for name, seconds in (("RENEW", 0.05), ("STALE", 0.4), ("SETTLE", 0.1)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)


def locks(url, said):
    return lease.held(store.folder(url), say=said.append)


def test_a_second_writer_is_refused_and_told_who_the_first_is(url, quick):
    said = []
    with locks(url, said) as check:
        with (
            pytest.raises(ValueError, match=f"written to by process {os.getpid()} on"),
            locks(url, said),
        ):
            pass
        check()
    assert names(url) == []
    with locks(url, said) as check:
        check()
    assert len(said) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_lock_is_taken_over_when_its_writer_is_gone_or_silent(url, quick, gone):
    said, folder = [], store.folder(url)
    folder.mkdir(parents=True, exist_ok=True)
    number = subprocess.Popen(["true"])
    number.wait()
    other = {"who": "the other", "token": "x", "pid": number.pid}
    other["machine"] = lease._machine() if gone else "another"
    (folder / "lock").write_text(json.dumps(other))
    began = time.monotonic()
    with locks(url, said) as check:
        check()
    assert (time.monotonic() - began < 0.4) == gone
    assert len(said) == (0 if gone else 1)


def test_who_was_taken_for_dead_commits_nothing(url, quick):
    state, folder = state_of(1), store.folder(url)
    with locks(url, []) as check, saving(url, keep=2, check=check) as saver:
        saver.save(1, state)
        saver.wait()
        # Of a renewal that has begun the write may come later: then it is the other who finds out.
        while lease.look(folder).get("token") != "x":
            store.write(folder / "lock", json.dumps({"who": "the other", "token": "x"}))
            time.sleep(0.3)
        # The other one is in the middle of a save of its own.
        (folder / "saving").write_text("5")
        store.make(folder / "5")
        (folder / "5" / "half").write_text("")
        saver.save(2, state)
        with pytest.raises(OSError, match="taken over by the other: this run stops"):
            saver.wait()
    assert checkpoint.steps(url) == [1]
    assert (folder / "saving").read_text() == "5"
    assert (folder / "5" / "half").exists()
    assert json.loads((folder / "lock").read_text())["token"] == "x"


@pytest.mark.slow
def test_a_run_behind_a_url_goes_on_and_is_the_run_of_a_disk(url, tmp_path, capsys, quick):
    config = runs.small(tmp_path)

    def train(where, *arguments):
        code = cli.main(["train", config, "--workdir", str(where), *arguments])
        return code, *capsys.readouterr()

    with pytest.MonkeyPatch.context() as patch:
        calls = itertools.count()
        real = checkpoint.write

        def killed(*given, **named):
            if next(calls) == 3:
                raise KeyboardInterrupt
            real(*given, **named)

        patch.setattr(checkpoint, "write", killed)
        assert train(url)[0] == 130
    code, out, err = train(url)
    assert code == 0, err
    assert (
        f"resuming: step 21 of 40, 4 workers on 4 x cpu (4 of 8 devices are idle), in {url}" in out
    )
    assert train(tmp_path / "disk")[0] == 0
    folder = store.folder(url)
    here = metric_lines.read_metrics(folder)
    there = metric_lines.read_metrics(tmp_path / "disk")
    assert [{**line, "seconds": 0} for line in here] == [{**line, "seconds": 0} for line in there]
    assert names(url) == [
        "checkpoints",
        "config.py.txt",
        "experiment.json",
        "metrics.jsonl",
        "run.png",
    ]
    assert names(f"{url}/checkpoints") == ["35", "40"]
    assert "already complete: step 40 of 40" in train(url)[1]
    assert cli.main(["eval", url]) == 0
    assert "step                    40 of 40" in capsys.readouterr().out
    code, out, err = train(tmp_path / "more", "--steps", "41", "--init-from", url)
    assert code == 0, err
    assert f"from step 40 of {url}, 4 workers: all is carried" in out
    file = folder / "checkpoints" / "40" / "about" / "metadata"
    file.write_bytes(file.read_bytes()[:-1])
    code, out, _ = train(url)
    assert "step 40 refused: about/metadata has" in out
    assert "resuming: step 35 of 40" in out
    assert names(f"{url}/checkpoints") == ["35", "40", "40.refused-1"]
    assert "already complete: step 40 of 40" in train(url)[1]
    (folder / "experiment.json").write_text("{}")
    code, _, err = train(url)
    assert (code, "was not written by jaxdist" in err) == (2, True)


def test_what_is_not_for_a_url_says_so(capsys, tmp_path):
    config = runs.small(tmp_path)
    for arguments, said in (
        (
            ["launch", "--", "train", config, "--workdir", "memory://a/b"],
            "write a path; a URL is for",
        ),
        (
            ["doctor", "--workdir", "memory://a/b"],
            "a URL is for train, status, eval, compare and check",
        ),
        (["status", "memory://a/b"], "holds no status"),
    ):
        assert cli.main(arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.processes
def test_a_second_run_is_refused_and_after_a_kill_the_next_goes_on_at_once(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    arguments = ["train", config, "--slow", "0.4", "--workdir", f"file://{folder}"]
    first = runs.start(*arguments)
    try:
        saved = folder / "checkpoints" / "7" / "manifest.json"
        runs.until(saved.exists)
        code, _, err = runs.ended(runs.start(*arguments))
        assert code == 2, err
        assert f"is being written to by process {first.pid} on" in err
    finally:
        first.kill()
        first.communicate()
    step = checkpoint.steps(f"file://{folder}/checkpoints")[-1]
    code, out, err = runs.ended(runs.start(*arguments))
    assert code == 0, err
    assert f"resuming: step {step} of 40" in out
    assert "looking for up to" not in out
    assert [line["step"] for line in runs.lines(folder)] == list(range(1, 41))
