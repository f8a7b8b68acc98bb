"""A flat share of the parameters for every worker: what a sharded server, or optimizer, works on.

Leaves of one dtype are joined end to end, padded with zeros to a multiple of the number of workers,
and cut into equal rows; row i is worker i's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist.errors import Refused

# Enough for rules that accumulate over so many steps before they move.
TRIAL_STEPS = 64

PyTree = Any


def split(tree: PyTree, workers: int) -> list[jax.Array]:
    """A pytree as one array `[workers, ...]` for each dtype.

    >>> [rows.shape for rows in split({"w": jnp.ones((3, 2)), "b": jnp.ones(3)}, 4)]
    [(4, 3)]
    """
    leaves = jax.tree.leaves(tree)
    rows = []
    for own in _by_dtype(leaves):
        flat = jnp.concatenate([leaves[i].ravel() for i in own])
        rows.append(jnp.pad(flat, (0, -len(flat) % workers)).reshape(workers, -1))
    return rows


def join(rows: list[jax.Array], like: PyTree) -> PyTree:
    """The pytree that was split, from all its rows; `like` tells structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    out: list[Any] = [None] * len(leaves)
    for own, one in zip(_by_dtype(leaves), rows, strict=True):
        ends = np.cumsum([leaves[i].size for i in own]).tolist()
        for i, part in zip(own, jnp.split(one.ravel(), ends)[:-1], strict=True):
            out[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, out)


def _by_dtype(leaves: list[Any]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        groups.setdefault(x.dtype, []).append(i)
    return list(groups.values())


def rows(tree: PyTree, workers: int) -> PyTree:
    """Every leaf by itself as `[workers, n]`: structure and paths stay what they are.

    >>> jax.tree.map(jnp.shape, rows({"w": jnp.ones((3, 2)), "b": jnp.ones(3)}, 4))
    {'b': (4, 1), 'w': (4, 2)}
    """
    return jax.tree.map(lambda x: split(x, workers)[0], tree)


def unrows(tree: PyTree, like: PyTree) -> PyTree:
    """The pytree that `rows` was given; `like` tells its shapes."""
    return jax.tree.map(lambda x, of: join([x], of), tree, like)


def check_elementwise(
    inner: optax.GradientTransformation,
    like: PyTree = None,
    *,
    where: str,
    instead: str,
    **given: Any,
) -> None:
    """Refuses a rule for which an array is more than its parts, by trying it on small ones.

    A share knows nothing of the others: a norm, a trust ratio or a line search over it is not that
    over the parameters. Nor does it have their shape: what a rule does to matrices it does not do to
    flat shares of them. And one number that is not finite has to stay the only one.

    Args:
      inner: the rule.
      like: arrays or shapes of the parameters, of whose dimensions 2 to 4 are tried. None: a vector, on
        which a rule that needs the structure of the parameters is let through.
      where: who runs the rule on shares, for the message.
      instead: what to write in place of it, likewise.
      given: further arguments that the rule will get.

    Raises:
      Refused: the whole moves in another way than its parts.
    """
    if like is None:
        like, unfit = [jax.ShapeDtypeStruct((4,), jnp.float32)], (TypeError, ValueError, KeyError)
    else:
        unfit = ()
    draw = np.random.default_rng(0)
    rule = optax.with_extra_args_support(inner)

    def moves(x: PyTree, g: PyTree) -> PyTree:
        def step(carry, _):
            state, total = carry
            u, state = rule.update(g, state, x, **given)
            return (state, jax.tree.map(jnp.add, total, u)), None

        carry = rule.init(x), jax.tree.map(jnp.zeros_like, x)
        return lax.scan(step, carry, None, length=TRIAL_STEPS)[0][1]

    @jax.jit
    def whole_and_parts(x: PyTree, g: PyTree) -> tuple[PyTree, PyTree]:
        def half(tree: PyTree, i: int) -> PyTree:
            return jax.tree.map(lambda r: r[i], rows(tree, 2))

        parts = [moves(half(x, i), half(g, i)) for i in range(2)]
        return moves(x, g), unrows(jax.tree.map(lambda *h: jnp.stack(h), *parts), x)

    def small(x: Any, scale: Any) -> np.ndarray:
        shape = tuple(min(n, 4 if len(x.shape) == 1 else 2) for n in x.shape)
        return np.asarray(draw.normal(size=shape) * scale(shape), np.float32)

    def alike(first: float) -> bool:
        x = jax.tree.map(lambda x: small(x, np.ones), like)
        # Of all sizes, so that every threshold is passed somewhere and not elsewhere.
        g = jax.tree.map(lambda x: small(x, lambda shape: 10 ** draw.uniform(-3, 9, shape)), like)
        leaves = jax.tree.leaves(g)
        leaves[0][(0,) * leaves[0].ndim] = first
        both = zip(*map(jax.tree.leaves, whole_and_parts(x, g)), strict=True)
        return all(np.allclose(a, b, rtol=1e-4, atol=1e-12, equal_nan=True) for a, b in both)

    # A trial, not a training step: it runs now, even while a step is traced.
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        try:
            fits = alike(3e9) and alike(np.nan)
        except unfit:
            return
    if not fits:
        raise Refused(
            f"{where} runs inner on every worker's share of the parameters by itself, and this rule needs "
            "to see all of them (it moves an array in another way than its parts); write an elementwise "
            f"rule, for example optax.adam(0.1), with optax.clip in place of a norm, or {instead}"
        )
