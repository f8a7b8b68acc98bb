"""What the environment says of this process: its number, how many there are, its devices. No JAX."""

import os
from collections.abc import Mapping

from jaxdist.errors import Refused

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT, MINE = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# What programs that start processes call how many there are, and which one this is.
STARTERS = {
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPICH or Intel MPI": ("PMI_SIZE", "PMI_RANK"),
}
# Which GPUs a process sees, if not all.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def expected() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) where only JAX can find it out.

    Raises:
      Refused: a variable holds no number.
    """
    if not os.environ.get(ADDRESS):
        return 0, 1
    count, mine = given()
    return min(mine or 0, (count or 1) - 1), count or 1


def given() -> tuple[int | None, int | None]:
    """How many processes there are, and which one this is; None: nobody says it, or JAX will find it out.

    Raises:
      Refused: a variable holds no number.
    """
    count, mine = number(COUNT), number(MINE)
    _, size, rank = _started()
    return (number(size) if count is None else count), (number(rank) if mine is None else mine)


def unjoined() -> str:
    """What to write where a process was started as one of several, and JAX finds no other; else empty."""
    starter, size, _ = _started()
    if (number(size) or 1) < 2:
        return ""
    return (
        f"{size}={os.environ[size]}: {starter} started so many processes, but does not say where the first "
        f"one is: expected {ADDRESS}; write mpirun -x {ADDRESS}=HOST:PORT (MPICH: -genv {ADDRESS} HOST:PORT)"
    )


def local_devices(environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """Which GPUs of those it sees this process takes: [] all of them, None as JAX decides.

    Under SLURM and Open MPI JAX gives a process the one GPU that has its number on the host. So it should be
    where a host has a process for each GPU, but one process for a host would leave the others idle, and one
    that sees a single GPU may have any number (https://github.com/jax-ml/jax/issues/16788).

    Example:
      >>> slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
      >>> local_devices(slurm), local_devices({**slurm, "SLURM_NTASKS": "16"})
      ([], None)
      >>> local_devices({**slurm, "SLURM_NTASKS": "16", "CUDA_VISIBLE_DEVICES": "5"})
      []
    """
    if environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    seen = next((x for name in VISIBLE if (x := environment.get(name))), "")
    here = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    tasks, hosts = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    several = here != "1" if here else tasks != hosts
    return None if several and (not seen or "," in seen) else []


def _started() -> tuple[str, str, str]:
    found = (starter for starter, (size, _) in STARTERS.items() if os.environ.get(size))
    starter = next(found, next(iter(STARTERS)))
    return starter, *STARTERS[starter]


def number(variable: str) -> int | None:
    """What a variable holds; None: it is not set.

    Raises:
      Refused: it holds something else than a number, zero or more.
    """
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise Refused(f"{variable}={text!r}: expected a number, zero or more; write {variable}=0")
    return int(text) if text else None
