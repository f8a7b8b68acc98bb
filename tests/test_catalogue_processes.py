"""At equal total devices, 1, 2 and 4 processes train every method to the same bits."""

import json
import os
import socket
import subprocess
import sys

import pytest
import runs
from cases import CASES

pytestmark = [pytest.mark.processes, pytest.mark.slow]
DEVICES = 4


def started(out, processes, layout):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_NUM_CPU_DEVICES": str(DEVICES // processes),
        "PYTHONPATH": f"{runs.ROOT}:{runs.ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "8",
    }
    script = runs.ROOT / "tests" / "catalogue_losses.py"
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(out), layout],
            env={**keep, **joined, "JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        for process in range(processes)
    ]


def losses(folder, processes, layout):
    """What all methods gave; the processes are ended whatever happens."""
    out = folder / f"{processes}.json"
    together = started(out, processes, layout)
    try:
        said = [process.communicate(timeout=1200) for process in together]
    finally:
        for process in together:
            process.kill()
    assert [process.returncode for process in together] == [0] * processes, said
    return json.loads(out.read_text())


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("layout", ["workers", "fsdp"])
def test_every_method_has_the_same_losses_bit_for_bit_in_1_2_and_4_processes(tmp_path, layout):
    alone = losses(tmp_path, 1, layout)
    assert alone.keys() == CASES.keys()
    for processes in (2, 4):
        together = losses(tmp_path, processes, layout)
        assert [name for name in alone if alone[name] != together[name]] == []
