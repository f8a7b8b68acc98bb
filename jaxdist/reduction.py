"""Everybody gets the same mean: one reduction over all workers, small leaves together."""

from typing import Any

import jax.numpy as jnp

from jaxdist import buckets, faults, worker

PyTree = Any


def mean(tree: PyTree) -> PyTree:
    """The mean over all workers of every leaf, the same for every worker.

        x <- 1/W sum_j x_j

    Values below float32 are accumulated in float32 and cast back. Small leaves of one dtype are
    reduced together, which is what makes a difference between processes: there every reduction
    costs a round trip. Under `jd.faulty` it is the mean over the workers that are there.

    Args:
      tree: this worker's arrays, floating point.

    Returns:
      A pytree like `tree`, the same for every worker: fit for the shared room.

    Communication:
      Every leaf once, as the operand of an all-reduce; a ring moves 2 (W - 1) / W of that in and out
      of every worker.
    """
    buffers, restore = buckets.pack(tree)
    alive = faults.current().alive
    if alive is None:
        return restore(worker.mean(buffers))
    here = alive[worker.index()]
    part = jnp.mean(alive, dtype=jnp.float32)
    present = [jnp.where(here, x, jnp.zeros_like(x)) for x in buffers]
    return restore([x / part.astype(x.dtype) for x in worker.mean(present)])
