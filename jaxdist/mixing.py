"""One weighted exchange with the neighbours: every worker's arrays become a weighted mean.

Arrays travel in their own precision and are weighted in at least float32. They are put into buckets
before the round is chosen, so that the program does not grow with leaves x rounds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import buckets, worker
from jaxdist.topology import Topology

PyTree = Any


def mix(tree: PyTree, topology: Topology, step: jax.Array) -> PyTree:
    """Replaces every worker's arrays by the weighted mean over those it listens to at this step.

        x_i <- sum_j W(step)_ij x_j

    Args:
      tree: this worker's arrays, floating point.
      topology: who listens to whom; its size is the number of workers.
      step: the shared step, int32; it selects the round of a topology that varies.

    Returns:
      A pytree like `tree`, this worker's own.

    Communication:
      Every leaf once per permutation of the round, in the leaf's own dtype: at most
      `topology.degree + 1` of them, the identity among them, which costs nothing.

    Raises:
      ValueError: the topology connects another number of workers than there are.
    """
    check_size(topology)
    if topology.size == 1:
        return tree
    buffers, restore = buckets.pack(tree)
    rounds = [_round(topology, t) for t in range(topology.period)]
    if len(rounds) == 1:
        return restore(rounds[0](buffers))
    return restore(lax.switch(step % len(rounds), rounds, buffers))


def check_size(topology: Topology) -> None:
    """Refuses, while tracing, a topology for another number of workers than there are."""
    if topology.size != worker.count():
        raise ValueError(
            f"{topology.name} connects {topology.size} workers and the run has {worker.count()}; "
            f"give a topology of size {worker.count()}, or workers={topology.size} to jd.execute"
        )


def pass_on(tree: PyTree, source: np.ndarray) -> PyTree:
    """Worker `i` gets the arrays of worker `source[i]`, the small ones in one message.

    Args:
      tree: this worker's arrays.
      source: a full permutation, known while tracing.

    Returns:
      A pytree like `tree`, this worker's own.
    """
    buffers, restore = buckets.pack(tree)
    return restore(worker.permute(buffers, source))


def _round(topology: Topology, step: int) -> Callable[[list[jax.Array]], list[jax.Array]]:
    sources, weights = topology.permutations(step)

    def mixed(buffers: list[jax.Array]) -> list[jax.Array]:
        # Everything is sent before anything is used, so that XLA may have all of it under way.
        received = [worker.permute(buffers, source) for source in sources[1:]]
        factors = [_factor(row) for row in weights]
        return [
            _weighted([own, *others], factors)
            for own, *others in zip(buffers, *received, strict=True)
        ]

    return mixed


def _factor(row: np.ndarray) -> float | jax.Array:
    """This worker's entry of a row of weights; a plain number where all workers have the same."""
    if (row == row[0]).all():
        return float(row[0])
    return jnp.asarray(row)[worker.index()]


def _weighted(arrays: list[jax.Array], factors: list[float | jax.Array]) -> jax.Array:
    wide = worker.accumulation_dtype(arrays[0].dtype)
    terms = [
        jnp.asarray(f).astype(wide) * x.astype(wide)
        for f, x in zip(factors, arrays, strict=True)
        if not (isinstance(f, float) and f == 0.0)
    ]
    return sum(terms[1:], terms[0]).astype(arrays[0].dtype)
