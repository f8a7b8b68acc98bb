"""Processes that SLURM or an MPI has started join by what these say in the environment."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import runs

pytestmark = [pytest.mark.processes, pytest.mark.slow]
# JAX draws the coordinator's port from the number of the job, in these.
FIRST_PORT, PORTS = 61440, 4096


def job():
    """The number of a job whose port is free."""
    for number in range(1000, PORTS):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", FIRST_PORT + number)):
                return number
    raise AssertionError("no port is free")


def by_slurm(number, process, *, nodes=1):
    return {
        "SLURM_JOB_ID": str(number),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process if nodes == 1 else 0),
    }


def by_open_mpi(number, process, *, nodes=1):
    return {
        "OMPI_MCA_orte_hnp_uri": f"{4096 * number}.0;tcp://127.0.0.1:34911",
        **by_open_mpi_5(number, process, nodes=nodes),
    }


def by_open_mpi_5(number, process, *, nodes=1):
    return {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2" if nodes == 1 else "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process if nodes == 1 else 0),
    }


def by_mpich(number, process):
    return {"PMI_SIZE": "2", "PMI_RANK": str(process)}


def addressed(starter):
    """As this starter, with the address that it does not say."""

    def said(number, process):
        address = f"127.0.0.1:{FIRST_PORT + number}"
        return {**starter(number, process), "JAX_COORDINATOR_ADDRESS": address}

    return said


@pytest.mark.parametrize(
    "starter",
    [by_slurm, by_open_mpi, addressed(by_open_mpi_5), addressed(by_mpich)],
    ids=["slurm", "open_mpi_4", "open_mpi_5", "mpich"],
)
def test_the_plain_command_joins(tmp_path, starter):
    number, config = job(), runs.small(tmp_path)
    command = ("train", config, "--workdir", str(tmp_path / "run"), "--steps", "4")
    both = [runs.start(*command, **starter(number, i)) for i in range(2)]
    (code, out, err), (other, silent, _) = (runs.ended(process) for process in both)
    assert (code, other) == (0, 0), err
    assert "4 workers on 2 x cpu" in out
    assert "4 workers" not in silent, "one process speaks for all"
    assert [line["step"] for line in runs.lines(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "starter",
    [("mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"), ("mpiexec.hydra",)],
    ids=["Open MPI", "MPICH"],
)
def test_the_plain_command_joins_under_a_real_mpi(tmp_path, starter):
    if not shutil.which(starter[0]):
        pytest.skip(f"{starter[0]} is not installed")
    keep = {name: os.environ[name] for name in ("PATH", "HOME")}
    if starter[0] == "mpiexec.hydra":
        keep["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{FIRST_PORT + job()}"
    inside = (sys.executable, "-m", "jaxdist", "train", runs.small(tmp_path), "--steps", "4")
    done = subprocess.run(
        [*starter, "-n", "2", *inside, "--workdir", str(tmp_path / "run")],
        env={**keep, "PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 workers on 2 x cpu") == 1
    assert [line["step"] for line in runs.lines(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("starter", [by_slurm, by_open_mpi])
@pytest.mark.parametrize(("nodes", "visible"), [(1, ["0", "1"]), (2, ["all", "all"])])
def test_the_only_process_of_a_host_takes_all_of_its_gpus(starter, nodes, visible):
    ask = "from jax._src import xla_bridge; from jaxdist import cluster; cluster.join(); "
    ask += "print(xla_bridge.CUDA_VISIBLE_DEVICES.value)"
    number = job()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ask],
            env={"JAX_PLATFORMS": "cpu", **starter(number, i, nodes=nodes)},
            cwd=runs.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    runs.STARTED.extend(both)
    assert [process.communicate(timeout=60)[0].strip() for process in both] == visible


@pytest.mark.short
@pytest.mark.parametrize("starter", [by_open_mpi_5, by_mpich])
def test_a_starter_that_does_not_say_where_process_0_is_is_told(tmp_path, starter):
    said = starter(0, 1)
    code, _, err = runs.ended(runs.start("train", runs.small(tmp_path), **said))
    size = next(name for name in said if name.endswith("_SIZE"))
    assert code == 2
    assert f"{size}=2" in err
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in err
