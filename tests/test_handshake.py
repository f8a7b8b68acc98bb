"""Processes that are not the same, or not all there, or not alone, are told before the first step."""

import re
import resource
import socket

import pytest
import runs

from jaxdist import connections

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(process, port, config, folder, *arguments, processes=2, **more):
    """One of several processes that nobody supervises."""
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAXDIST_START_SECONDS": "40",
    }
    return runs.start("train", config, "--workdir", str(folder), *arguments, **{**joined, **more})


def both(first, second):
    return [runs.ended(process, seconds=120) for process in (first, second)]


@pytest.mark.short
def test_another_config_in_one_process_is_a_table_that_both_print(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    first = start(0, port, config, tmp_path / "run")
    second = start(1, port, config, tmp_path / "run", "--seed", "1")
    # As the kernel has it, and not only as JAX was told.
    assert {*runs.until(lambda: connections.listening(port))} == {"127.0.0.1"}
    said = both(first, second)
    tables = [re.search(r"( +keywords .*)(\nprocess .*){2}", err)[0] for _, _, err in said]
    assert tables[0] == tables[1]
    assert "data" in tables[0].split("\n")[0], "another seed draws other examples"
    for code, _, err in said:
        assert code == 2, err
        assert "the processes differ in keywords, data (table above)" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"JAX_NUM_PROCESSES": "3"}, "processes"),
        (
            {"JAXDIST_TEST_FAULTS": "1", "JAXDIST_TEST_VERSIONS": '{"jaxdist": "0.0.1"}'},
            "jaxdist",
        ),
    ],
)
def test_another_count_or_version_in_one_process_is_refused_by_both(tmp_path, more, words):
    config, port = runs.small(tmp_path), free_port()
    said = both(
        start(0, port, config, tmp_path / "run"), start(1, port, config, tmp_path / "run", **more)
    )
    for code, _, err in said:
        assert code == 2, err
        assert f"the processes differ in {words} (table above)" in err


def test_a_missing_process_is_waited_for_aloud_and_not_for_ever(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    there = [
        start(i, port, config, tmp_path / "run", processes=3, JAXDIST_START_SECONDS="40")
        for i in (0, 2)
    ]
    for process, (code, _, err) in zip((0, 2), both(*there), strict=True):
        assert code == 2, err
        assert f"[process {process}] step 0: waiting for the other processes (" in err
        assert "start the same command once for each process (on TPU VMs: --worker=all)" in err
        if process == 0:
            words = "2 of 3 processes connected (127.0.0.1, 127.0.0.1) in 30 s: start the same"
            assert words in err, "once while it waits"
            # The other one may be gone a moment earlier.
            assert re.search(r" of 3 processes connected .* in 40 s: start the same", err)


def test_a_process_that_is_missing_under_a_supervisor_may_come_in_the_next_life(tmp_path):
    config, errors = runs.small(tmp_path), tmp_path / "errors"
    errors.mkdir()
    more = {"JAXDIST_START_SECONDS": "5", "JAXDIST_ERRORS": str(errors)}
    code, _, err = runs.ended(start(0, free_port(), config, tmp_path / "run", **more), seconds=120)
    # Not 2, after which a supervisor starts nobody again (tests/test_supervisor.py).
    assert code == 75, err
    assert "[process 0] 1 of 2 processes connected (127.0.0.1) in 5 s: start the same" in err


@pytest.mark.short
def test_a_port_in_use_is_a_sentence(tmp_path):
    config = runs.small(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, _, err = runs.ended(start(0, port, config, tmp_path / "run"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 2
    assert f"port {port} is not free; write another port" in err
    # Of a core: how long it took depends on what else this host does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
