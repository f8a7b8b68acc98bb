"""One method with one set of arguments, its twin's, and the loss that all cases share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """One method with one set of arguments.

    make(workers) -> Algorithm; twin(workers) -> keywords of the twin; branch(t): which branch each
    conditional that communicates takes at step t, in program order (a string: there is one; None:
    there is none); parts: the sizes of the leaves that make up the twin's vector (none: it is the
    one parameter), for methods that do not treat all leaves alike; recursion: the name of the twin,
    where on these arguments it is not that of the method.
    """

    make: Callable[[int], Any]
    twin: Callable[[int], dict[str, Any]]
    branch: Callable[[int], str | tuple[str, ...] | None] = lambda t: None
    parts: tuple[int, ...] = ()
    recursion: str | None = None

    def branches(self, t):
        """What `branch` says, as a tuple."""
        told = self.branch(t)
        return told if isinstance(told, tuple) else () if told is None else (told,)


def start(dimension=5, dtype=None, *, parts=()):
    """Where all workers begin: ones, whole or in parts."""
    ends = np.cumsum(parts)[:-1].tolist()
    x = jnp.ones(dimension, dtype)
    return jnp.split(x, ends) if parts else x


def flat(tree):
    """Parameters, stacked or not, as the vectors that the twins compute with."""
    return np.concatenate([np.asarray(x) for x in jax.tree.leaves(tree)], -1)


def loss(x, batch, key):
    """Half the quadratic form of the worker's own matrix at the distance to its own minimizer."""
    r = jnp.concatenate(jax.tree.leaves(x)).astype(batch["b"].dtype) - batch["b"]
    return 0.5 * jnp.dot(r, jnp.dot(batch["A"], r)), {}


def recurrent_loss(x, batch, key):
    """The same number by a scan that starts from a constant, recomputed on the way back, in a scope."""
    r = jnp.concatenate(jax.tree.leaves(x)).astype(batch["b"].dtype) - batch["b"]

    @jax.checkpoint
    def add(energy, row_and_number):
        with jax.named_scope("energy"):
            row, number = row_and_number
            return energy + 0.5 * number * jnp.dot(row, r), None

    return jax.lax.scan(add, jnp.zeros((), r.dtype), (batch["A"], r))[0], {}


def over(topology):
    """A topology as the twins take it: step -> matrix."""
    return lambda t: topology.matrix(t)
