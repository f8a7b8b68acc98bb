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
      RuntimeError: from JAX, if the others can not be reached within five minutes.
    """
    given = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    try:
        jax.distributed.initialize(
            coordinator_bind_address=given if given.startswith(LOOPBACK) else None
        )
    except (ValueError, RuntimeError) as error:
        # Nobody to join; or this process has used JAX already, and so is on its own.
        alone = "coordinator_address should be defined", "must be called before any JAX"
        if not any(reason in str(error) for reason in alone):
            raise
        return False
    return jax.process_count() > 1
