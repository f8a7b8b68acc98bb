"""What becomes of a state when the number of workers changes: the rules that methods state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.algorithms.base import Resize, State
from jaxdist.errors import Refused

PyTree = Any


def averaged(old: PyTree, fresh: PyTree) -> PyTree:
    """Everybody's own leaves as the mean over the old workers: what has a mean keeps it.

    Numbers that are counted in are rounded; of a random key everybody gets a child of its own.

    >>> averaged({"m": np.array([1.0, 2.0, 6.0])}, {"m": np.zeros(2)})
    {'m': array([3., 3.])}
    """
    if jax.tree.structure(old) != jax.tree.structure(fresh):
        raise Refused(
            f"the workers keep {jax.tree.structure(old)}, and {jax.tree.structure(fresh)} is expected: "
            "another method; write after.init(before.readout(state)), which carries the parameters"
        )
    return jax.tree.map(_mean, old, fresh)


def _mean(old: Any, fresh: Any) -> Any:
    if jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key):
        rows = np.arange(len(fresh)) % len(old)
        own = np.broadcast_to(
            np.arange(len(fresh))[(slice(None), *[None] * (old.ndim - 1))], fresh.shape
        )
        return jax.vmap(jax.random.fold_in)(old[rows].ravel(), own.ravel()).reshape(fresh.shape)
    mean = np.asarray(old, np.float64).mean(0)
    if not jnp.issubdtype(fresh.dtype, jnp.inexact):
        mean = np.rint(mean)
    return np.broadcast_to(mean.astype(fresh.dtype), (len(fresh), *mean.shape))


def recut(old: PyTree, fresh: PyTree) -> PyTree:
    """Vectors of which every worker holds an equal share, cut anew; numbers beside them averaged.

    A share is the last axis; what fills the last one up is never looked at.

    >>> recut(np.array([[1.0, 2.0], [3.0, 0.0]]), np.zeros((3, 1))).ravel()
    array([1., 2., 3.])
    """

    def one(old: Any, fresh: Any) -> Any:
        if fresh.ndim < 2:
            return _mean(old, fresh)
        whole, new = (np.moveaxis(np.asarray(x), 0, -2) for x in (old, fresh))
        whole, shape = whole.reshape(*whole.shape[:-2], -1), new.shape
        new = new.reshape(*shape[:-2], -1).copy()
        size = min(whole.shape[-1], new.shape[-1])
        new[..., :size] = whole[..., :size]
        return np.moveaxis(new.reshape(shape), -2, 0)

    return jax.tree.map(one, old, fresh)


def residuals(old: PyTree, fresh: PyTree) -> PyTree:
    """What a compressed reduction keeps: averaged; the second residual, a share each, is cut anew."""
    if isinstance(fresh, tuple) and len(fresh) == 2:
        return averaged(old[0], fresh[0]), recut(old[1], fresh[1])
    return averaged(old, fresh)


def remade(local: Callable[[PyTree, PyTree], PyTree], says: str) -> Resize:
    """A rule by which what is shared goes on, and `local(old, fresh)` is what everybody keeps."""

    def rule(state: State, fresh: State) -> State:
        return State(state.step, state.shared, local(state.local, fresh.local))

    return Resize(rule, says)


AVERAGED = remade(
    averaged,
    "what is shared goes on; everybody goes on from the workers' mean parameters and mean memory",
)
REDUCED = remade(
    residuals, "what is shared goes on; of what messages left out everybody has the workers' mean"
)
