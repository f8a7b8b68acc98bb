"""One method with one set of arguments, its twin's, and the loss that all cases share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp


class Case(NamedTuple):
    """One method with one set of arguments.

    make(workers) -> Algorithm; twin(workers) -> keywords of the twin; branch(t): which branch of the
    step's one conditional communicates at step t (None: the method has none); recursion: the name of
    the twin, where on these arguments it is not that of the method.
    """

    make: Callable[[int], Any]
    twin: Callable[[int], dict[str, Any]]
    branch: Callable[[int], str | None] = lambda t: None
    recursion: str | None = None


def loss(x, batch, key):
    """Half the quadratic form of the worker's own matrix at the distance to its own minimizer."""
    r = x - batch["b"]
    return 0.5 * jnp.dot(r, jnp.dot(batch["A"], r)), {}


def over(topology):
    """A topology as the twins take it: step -> matrix."""
    return lambda t: topology.matrix(t)
