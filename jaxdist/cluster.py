"""Joining the other processes of a job, where there are any."""

import os

import jax

LOOPBACK = ("127.", "localhost", "[::1]")


def join() -> bool:
    """Joins the processes of a TPU slice, a SLURM, Open MPI or Kubernetes job; alone it does nothing.

    JAX finds out where it runs; elsewhere `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` say it. Call it before anything else of JAX. A coordinator on the loopback
    address listens there only.

    Returns:
      Whether there are other processes.

    Raises:
      ValueError: one of these variables is no number.
      RuntimeError: from JAX, if the others can not be reached within five minutes.
    """
    given = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    try:
        jax.distributed.initialize(
            # JAX itself reads the address from the environment, but not these two.
            num_processes=_number("JAX_NUM_PROCESSES"),
            process_id=_number("JAX_PROCESS_ID"),
            coordinator_bind_address=given if given.startswith(LOOPBACK) else None,
        )
    except (ValueError, RuntimeError) as error:
        # Nobody to join; or this process has used JAX already, and so is on its own.
        alone = "coordinator_address should be defined", "must be called before any JAX"
        if not any(reason in str(error) for reason in alone):
            raise
        return False
    return jax.process_count() > 1


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise ValueError(
            f"{variable}={text!r}: expected a number, zero or more; write {variable}=0"
        )
    return int(text) if text else None
