"""The sign that most workers have, counted in parts and sent in bits."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist import buckets, presence, worker
from jaxdist.compress import bits
from jaxdist.reduction.base import PyTree


def majority(tree: PyTree) -> PyTree:
    """The sign that most workers' numbers have, +1 or -1; 0 counts as +1, and so does a tie.

    Under `jd.faulty` only those vote who are there.

    A bit can not say that a number is NaN: a byte beside the bits does, and every number of that leaf
    is NaN then.

    Args:
      tree: this worker's arrays, floating point.

    Returns:
      A pytree like `tree`, the same for every worker.

    Communication:
      See `majority_bytes`: every worker counts the votes on its part.
    """
    workers, voters, alive = worker.count(), worker.headcount(), presence.alive()
    leaves, structure = jax.tree.flatten(tree)
    votes = []
    for x in leaves:
        ballots = (x.ravel() >= 0).astype(jnp.uint8)
        rest = 8 * workers * _ballot_bytes(x) - x.size
        packed = bits.pack(jnp.pad(ballots, (0, rest)), bits=1).reshape(workers, -1)
        spoiled = jnp.isnan(x).any().astype(jnp.uint8)
        votes.append(jnp.pad(packed, ((0, 0), (0, 1)), constant_values=spoiled))
    buffers, restore = buckets.pack(votes, leading=1)
    won = []
    for rows in restore(worker.exchange(buffers)):
        packed, spoiled = rows[:, :-1], rows[:, -1]
        ballots = bits.unpack(packed.ravel(), bits=1, size=8 * packed.size).reshape(workers, -1)
        if alive is not None:
            ballots = jnp.where(alive[:, None], ballots, jnp.zeros_like(ballots))
            spoiled = jnp.where(alive, spoiled, jnp.zeros_like(spoiled))
        most = (2 * ballots.sum(0, dtype=jnp.int32) >= voters).astype(jnp.uint8)
        won.append(jnp.append(bits.pack(most, bits=1), spoiled.max()))
    buffers, restore = buckets.pack(won)
    results = []
    for rows, x in zip(restore(worker.gather(buffers)), leaves, strict=True):
        packed, spoiled = rows[:, :-1], rows[:, -1].max() > 0
        positive = bits.unpack(packed.ravel(), bits=1, size=x.size).reshape(x.shape) > 0
        signs = jnp.where(positive, jnp.ones((), x.dtype), -jnp.ones((), x.dtype))
        results.append(jnp.where(spoiled, jnp.full_like(signs, jnp.nan), signs))
    return jax.tree.unflatten(structure, results)


def majority_bytes(tree: PyTree) -> int:
    """What `majority` makes one worker hand to the network: a bit a number, and its part once more."""
    return (worker.count() + 1) * sum(_ballot_bytes(x) + 1 for x in jax.tree.leaves(tree))


def _ballot_bytes(x: Any) -> int:
    return -(-x.size // (8 * worker.count()))
