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
from jaxdist.compress.base import Compressor, decode_leaves, encode_leaves
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
    _check_size(topology)
    if topology.size == 1:
        return tree
    buffers, restore = buckets.pack(tree)
    rounds = [_round(topology, t) for t in range(topology.period)]
    if len(rounds) == 1:
        return restore(rounds[0](buffers))
    return restore(lax.switch(step % len(rounds), rounds, buffers))


def mix_compressed(
    tree: PyTree, topology: Topology, step: jax.Array, *, compressor: Compressor, key: jax.Array
) -> tuple[PyTree, PyTree]:
    """The weighted mean of what the payloads of this worker and its neighbors stand for.

        sum_j W(step)_ij C(x_j), and C(x_i)

    Args:
      tree: this worker's arrays, floating point. Every leaf is compressed by itself.
      topology: who listens to whom.
      step: the shared step; it selects the round.
      compressor: what travels.
      key: the same for every worker; draws are each worker's own, but for compressors whose payloads
        may be summed, which draw alike.

    Returns:
      Two pytrees like `tree`, this worker's own.

    Communication:
      Payloads only: compressor.bytes(tree) for each permutation of the round that moves anything.
      Small ones travel together.
    """
    _check_size(topology)
    private = key if compressor.route == "sum" else jax.random.fold_in(key, worker.index())
    payloads = encode_leaves(compressor, private, tree)
    own = decode_leaves(compressor, payloads, tree)
    if topology.size == 1:
        return own, own
    buffers, restore = buckets.pack(payloads)
    rounds = [topology.permutations(t) for t in range(topology.period)]
    most = max(len(one.sources) for one in rounds)

    def received(sources: np.ndarray) -> Callable[[list[jax.Array]], list[list[jax.Array]]]:
        def of(buffers: list[jax.Array]) -> list[list[jax.Array]]:
            arrived = [worker.permute(buffers, source) for source in sources[1:]]
            nothing = [jnp.zeros_like(b) for b in buffers]
            return worker.vary(arrived + [nothing] * (most - len(sources)))

        return of

    # Only permutes are inside the conditional; what arrives is decoded once, whatever the round.
    branches = [received(one.sources) for one in rounds]
    now = step % len(rounds)
    arrived = branches[0](buffers) if len(rounds) == 1 else lax.switch(now, branches, buffers)
    table = np.zeros((len(rounds), most, topology.size))
    for t, one in enumerate(rounds):
        table[t, : len(one.weights)] = one.weights
    weights = jnp.asarray(table)[now, :, worker.index()]
    terms = [own, *(decode_leaves(compressor, restore(b), tree) for b in arrived)]
    return jax.tree.map(lambda *x: _weighted(list(x), list(weights)), *terms), own


def _check_size(topology: Topology) -> None:
    if topology.size != worker.count():
        raise ValueError(
            f"{topology.name} connects {topology.size} workers and the run has {worker.count()}; "
            f"give a topology of size {worker.count()}, or workers={topology.size} to jd.execute"
        )


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
