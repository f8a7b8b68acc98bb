"""The same command started in several processes: they join by themselves and are one run."""

import json
import os
import socket
import subprocess
import sys

import pytest
import runs
from test_inheriting import ANY

from jaxdist import checkpoint, cli

# Processes that each start JAX: minutes on a busy machine of two cores.
pytestmark = [pytest.mark.processes, pytest.mark.slow]

SHELL = "import sys; from jaxdist.cli import main; sys.exit(main())"


def start(process, processes, port, *arguments, program=("-c", SHELL), **more):
    """`jaxdist ARGUMENTS` as one of several processes, each with one device."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
    }
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=runs.ROOT,
        env={**keep, **joined, "PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(processes):
    """What they said; if one hangs, all are ended and what they said is shown."""
    try:
        return [process.communicate(timeout=120) for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise AssertionError([process.communicate() for process in processes]) from None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_two_processes_are_one_run_with_the_same_examples(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    arguments = ["train", config, "--workdir"]
    together = [start(i, 2, port, *arguments, tmp_path / "two") for i in range(2)]
    said = finished(together)
    assert [process.returncode for process in together] == [0, 0], said
    alone = start(0, 1, free_port(), *arguments, tmp_path / "one")
    finished([alone])
    two, one = runs.lines(tmp_path / "two"), runs.lines(tmp_path / "one")
    assert [line["step"] for line in two] == list(range(1, 41))
    # The same batches and keys; sums over two devices differ in the last bits.
    for a, b in zip(two, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-9)
    assert "4 workers on 2 x cpu" in said[0][0]
    assert "test accuracy" in said[0][0]
    for words in ("step 0", "test accuracy", "run folder"):
        assert words not in said[1][0], "one process speaks for all"


SLOW_STORE = """
import time
import fsspec.implementations.local

def slow(self, here, there, callback=None, whole=fsspec.implementations.local.LocalFileSystem.put_file):
    time.sleep({seconds})
    whole(self, here, there)

fsspec.implementations.local.LocalFileSystem.put_file = slow
"""


@pytest.mark.parametrize("seconds", [6, 1000])
def test_a_slow_upload_comes_to_its_end_and_a_stuck_one_is_ended(tmp_path, monkeypatch, seconds):
    """Of seven files: longer than the patience of whoever waits, 20 s and 10 s."""
    config, port, folder = tmp_path / "slow.py", free_port(), tmp_path / "run"
    config.write_text(runs.SMALL + SLOW_STORE.format(seconds=seconds))
    given = ["train", config, "--steps", 2, "--workdir", f"file://{folder}"]
    together = [start(i, 2, port, *given, JAXDIST_PATIENCE_SECONDS="20") for i in range(2)]
    said = finished(together)
    codes, errors = {process.returncode for process in together}, [err for _, err in said]
    if seconds == 6:
        assert codes == {0}, said
        assert "saving the checkpoint (3" in errors[0], "it took longer than the patience"
        assert checkpoint.steps(folder / "checkpoints") == [2]
    else:
        assert 75 in codes, said
        assert any("stuck in phase save for 3" in err for err in errors), said
        assert not checkpoint.steps(folder / "checkpoints")


def test_hosts_that_do_not_share_the_folder_are_told(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    together = [
        start(i, 2, port, "train", config, "--workdir", tmp_path / f"host{i}") for i in range(2)
    ]
    said = finished(together)
    for process, (_, err) in zip(together, said, strict=True):
        assert process.returncode == 2, err
        assert "of process 0 is not seen by process 1: expected one folder for all" in err


def restarts(processes, *arguments):
    """What each process of a job of `tests/restarts.py` printed, as JSON."""
    port, program = free_port(), ("tests/restarts.py",)
    job = [start(i, processes, port, *arguments, program=program) for i in range(processes)]
    said = finished(job)
    assert [process.returncode for process in job] == [0] * processes, said
    return [[json.loads(x) for x in out.splitlines() if x.startswith("{")] for out, _ in said]


def told(said, name):
    return [line[name] for lines in said for line in lines if name in line]


def from_to(folder, before, after):
    """Saves in jobs of so many processes each, and restores every one of these in each of the others."""
    saved = {n: restarts(n, folder / f"of{n}", 2, 0) for n in before}
    (bits,) = {digest for said in saved.values() for digest in told(said, "digest")}
    places = [f"{folder}/of{n}/disk" for n in before] + [
        f"file://{folder}/of{n}/url" for n in before
    ]
    ends = set()
    for n in after:
        said = restarts(n, folder / f"again{n}", 6, 2, *places)
        for lines in said:
            # Bit for bit what was saved, on a disk and in a store, in every process.
            assert [x["digest"] for x in lines if "restored" in x] == [bits] * len(places)
            assert {x["step"] for x in lines if "restored" in x} == {2}
        ends |= {x["digest"] for lines in said for x in lines if "saved" in x}
        for first in saved.values():
            seen = [i for ids in told(first, "ids") + told(said, "ids") for i in ids]
            assert sorted(seen) == list(range(12 * 2 * 8)), "each example once in an epoch"
    assert len(ends) == 1, "the same run in any number of processes"
    assert checkpoint.steps(folder / f"again{after[0]}" / "disk") == [7, 8]


@pytest.mark.short
def test_a_job_of_two_restarts_as_one_of_one(tmp_path):
    from_to(tmp_path, [2], [1])


def test_a_job_of_one_to_four_restarts_as_one_of_one_to_four(tmp_path):
    from_to(tmp_path, [1, 2, 3, 4], [4, 3, 2, 1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--workers", 6], "4 workers, 6 from now on: what is shared goes on"),
        (["--method", "all_reduce", "--steps", 40], "parameters are carried, all else begins anew"),
    ],
)
def test_two_processes_begin_from_the_run_of_one(tmp_path, change, said):
    config = tmp_path / "any.py"
    config.write_text(ANY)
    source, port = tmp_path / "source", free_port()
    assert cli.main(["train", str(config), "--steps", "14", "--workdir", str(source)]) == 0
    given = ["train", config, "--steps", 28, *change, "--init-from", source, "--workdir"]
    assert cli.main([str(x) for x in [*given, tmp_path / "one"]]) == 0
    together = [start(i, 2, port, *given, tmp_path / "two") for i in range(2)]
    heard = finished(together)
    assert [process.returncode for process in together] == [0, 0], heard
    assert said in heard[0][0]
    one, two = (runs.lines(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-9)
    # And one process begins from the run of two.
    back = [
        "train",
        config,
        *change,
        "--workers",
        4,
        "--steps",
        60,
        "--init-from",
        tmp_path / "two",
    ]
    assert cli.main([str(x) for x in [*back, "--workdir", tmp_path / "back"]]) == 0
    assert runs.lines(tmp_path / "back")[0]["loss"] < 0.5 * runs.lines(source)[0]["loss"]


@pytest.mark.short
def test_processes_behind_a_url_are_one_run_and_one_writer(tmp_path):
    config, port, url = runs.small(tmp_path), free_port(), f"file://{tmp_path}/run"
    arguments = ["train", config, "--steps", 20, "--workdir", url]
    together = [start(i, 2, port, *arguments) for i in range(2)]
    said = finished(together)
    assert [process.returncode for process in together] == [0, 0], said
    assert [line["step"] for line in runs.lines(tmp_path / "run")] == list(range(1, 21))
    assert checkpoint.steps(url) == []
    assert checkpoint.steps(f"{url}/checkpoints") == [14, 20]
    assert "already complete: step 20 of 20" in finished([start(0, 1, port, *arguments)])[0][0]


def test_workers_that_leave_a_process_without_any_are_refused(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    together = [start(i, 3, port, "train", config, "--workdir", tmp_path / "run") for i in range(3)]
    for process, (_, err) in zip(together, finished(together), strict=True):
        assert process.returncode == 2, err
        assert "workers=4 leave process 2 of 3 without any" in err


def test_nan_of_one_worker_ends_both_processes_at_its_step(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    arguments = ["train", config, "--spoiled", 12, "--workdir", tmp_path / "run"]
    together = [start(i, 2, port, *arguments) for i in range(2)]
    for process, (_, err) in zip(together, finished(together), strict=True):
        assert process.returncode == 1, err
        assert "step 12: worker 2 has a value that is not finite in its loss" in err
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [7]
