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
from jaxdist.topology.rounds import Round

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

    def mixed(arrays: list[jax.Array], factors: list[float | jax.Array]) -> jax.Array:
        return _weighted(arrays, factors).astype(arrays[0].dtype)

    return _exchange(tree, topology, step, mixed)


def change(tree: PyTree, topology: Topology, step: jax.Array) -> PyTree:
    """What one `mix` would add to every worker's arrays, in at least float32.

        d_i = sum_j W(step)_ij x_j - x_i

    For methods that add up what their exchanges did: over all workers the changes sum to zero, also
    in floating point, where a difference of two rounded results would leave a remainder that grows.
    Under rows that sum to one the differences x_j - x_i are weighted, so that it is exactly zero
    where all agree; otherwise what arrives is set against what a worker gives away.

    Args:
      tree: this worker's arrays, floating point.
      topology: as for `mix`, its columns summing to one.
      step: as for `mix`.

    Returns:
      A pytree like `tree` in at least float32, this worker's own.

    Communication:
      As `mix`: in the leaf's own dtype.
    """
    by_rows = topology.stochastic != "column"

    def changed(arrays: list[jax.Array], factors: list[float | jax.Array]) -> jax.Array:
        wide = worker.accumulation_dtype(arrays[0].dtype)
        own, *others = (x.astype(wide) for x in arrays)
        return _weighted([own, *(x - own if by_rows else x for x in others)], factors)

    def own_weight(one: Round) -> np.ndarray:
        return np.zeros(one.size) if by_rows else one.own - one.column_sums

    return _exchange(tree, topology, step, changed, own_weight)


def arriving(tree: PyTree, topology: Topology, step: jax.Array) -> PyTree:
    """The part of `mix` that comes from others, in at least float32.

        x_i <- sum_(j != i) W(step)_ij x_j

    Args:
      tree: this worker's arrays, floating point.
      topology: as for `mix`.
      step: as for `mix`.

    Returns:
      A pytree like `tree` in at least float32, this worker's own.

    Communication:
      As `mix`: in the leaf's own dtype.
    """

    return _exchange(tree, topology, step, _weighted, lambda one: np.zeros(one.size))


def _exchange(
    tree: PyTree,
    topology: Topology,
    step: jax.Array,
    combine: Callable[[list[jax.Array], list[float | jax.Array]], jax.Array],
    own_weight: Callable[[Round], np.ndarray] = lambda one: one.own,
) -> PyTree:
    check_size(topology)

    def round_of(one: Round) -> Callable[[list[jax.Array]], list[jax.Array]]:
        sources, weights = one.permutations
        weights = [own_weight(one), *weights[1:]]

        def combined(buffers: list[jax.Array]) -> list[jax.Array]:
            # Everything is sent before anything is used, so that XLA may have all of it under way.
            received = [worker.permute(buffers, source) for source in sources[1:]]
            factors = [_factor(row) for row in weights]
            return [
                combine([own, *others], factors)
                for own, *others in zip(buffers, *received, strict=True)
            ]

        return combined

    buffers, restore = buckets.pack(tree)
    rounds = [round_of(one) for one in topology.rounds]
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


def _factor(row: np.ndarray) -> float | jax.Array:
    """This worker's entry of a row of weights; a plain number where all workers have the same."""
    if (row == row[0]).all():
        return float(row[0])
    return jnp.asarray(row)[worker.index()]


def _weighted(arrays: list[jax.Array], factors: list[float | jax.Array]) -> jax.Array:
    """The weighted sum, in at least float32."""
    wide = worker.accumulation_dtype(arrays[0].dtype)
    terms = [
        jnp.asarray(f).astype(wide) * x.astype(wide)
        for f, x in zip(factors, arrays, strict=True)
        if not (isinstance(f, float) and f == 0.0)
    ]
    return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(arrays[0], wide)
