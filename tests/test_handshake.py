"""Processes that are not the same, or not all there, or not alone, are told before the first step."""

import re
import socket
import time
from pathlib import Path

import pytest
import runs

pytestmark = pytest.mark.processes


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


def test_another_config_in_one_process_is_a_table_that_both_print(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    said = both(
        start(0, port, config, tmp_path / "run"),
        start(1, port, config, tmp_path / "run", "--seed", "1"),
    )
    tables = [re.search(r"( +keywords .*)(\nprocess .*){2}", err)[0] for _, _, err in said]
    assert tables[0] == tables[1]
    assert "data" in tables[0].split("\n")[0], "another seed draws other examples"
    for code, _, err in said:
        assert code == 2, err
        assert "the processes differ in keywords, data (table above)" in err


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_missing_process_is_waited_for_aloud_and_not_for_ever(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    began = time.monotonic()
    code, _, err = runs.ended(
        start(0, port, config, tmp_path / "run", JAXDIST_START_SECONDS="15"), seconds=90
    )
    assert code != 0
    assert time.monotonic() - began < 60
    assert "[process 0] waiting for the other processes to start" in err


def test_a_port_in_use_is_a_sentence(tmp_path):
    config = runs.small(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = runs.ended(start(0, port, config, tmp_path / "run"))
    assert code == 2
    assert f"port {port} is not free; write another port" in err


@pytest.mark.slow
def test_the_coordinator_listens_on_loopback_only(tmp_path):
    config, port = runs.small(tmp_path), free_port()
    process = start(0, port, config, tmp_path / "run")
    try:
        wanted = f"{port:04X}"

        def listening():
            tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
            rows = [line.split() for table in tables for line in table.splitlines()[1:]]
            return [r[1] for r in rows if r[3] == "0A" and r[1].endswith(f":{wanted}")]

        # 127.0.0.1, or the same mapped into IPv6.
        loopback = {f"0100007F:{wanted}", f"0000000000000000FFFF00000100007F:{wanted}"}
        assert {*runs.until(listening)} <= loopback
    finally:
        process.kill()
        process.communicate()
