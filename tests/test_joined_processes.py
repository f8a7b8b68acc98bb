"""The same command started in several processes: they join by themselves and are one run."""

import os
import socket
import subprocess
import sys

import pytest
import runs

# Five processes that each start JAX: most of a minute on a busy machine of two cores.
pytestmark = [pytest.mark.processes, pytest.mark.slow]


def start(process, processes, port, *arguments):
    """`jaxdist ARGUMENTS` as one of several processes, each with one device."""
    code = "import sys; from jaxdist.cli import main; sys.exit(main())"
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=runs.ROOT,
        env={**keep, **joined, "PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
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


def test_hosts_that_do_not_share_the_folder_are_told(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    together = [
        start(i, 2, port, "train", config, "--workdir", tmp_path / f"host{i}") for i in range(2)
    ]
    said = finished(together)
    for process, (_, err) in zip(together, said, strict=True):
        assert process.returncode == 2, err
        assert "of process 0 is not seen by process 1: expected one folder for all" in err
