"""Which leaves of a batch hold examples, and which something else: class weights, running statistics.

A pytree prefix of the batch says it, in the form of `in_axes` of `jax.vmap`: 0 for leaves `[examples, ...]`
of a worker, None for leaves that hold none. What is missing in a dict holds examples.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.errors import Refused

PyTree = Any


def examples(axes: PyTree, batch: PyTree) -> list[bool]:
    """For each leaf of a batch, in `jax.tree.leaves` order, whether it holds examples.

    Args:
      axes: 0, None, or a pytree of them, a prefix of the batch.
      batch: arrays or shapes.

    Raises:
      Refused: a name or a structure that the batch does not have, or another axis.

    >>> examples({"stats": None}, {"image": 1.0, "label": 2.0, "stats": {"mean": 3.0, "var": 4.0}})
    [True, True, False, False]
    """
    if isinstance(axes, dict) and isinstance(batch, dict):
        if unknown := sorted({*map(str, axes)} - {*map(str, batch)}):
            raise Refused(
                f"batch_axes names {unknown}, and the batch holds {sorted(map(str, batch))}: "
                "name leaves of the batch"
            )
        # In the order in which jax.tree flattens a dict.
        return [x for name in sorted(batch) for x in examples(axes.get(name, 0), batch[name])]
    if isinstance(axes, tuple | list) and type(axes) is type(batch) and len(axes) == len(batch):
        return [x for axis, part in zip(axes, batch, strict=True) for x in examples(axis, part)]
    if axes is not None and (isinstance(axes, bool) or axes != 0):
        raise Refused(
            f"batch_axes={axes!r} where the batch is {jax.tree.structure(batch)}: expected 0, for the "
            "examples of a worker are the first axis of its leaves, None for leaves that hold none, or "
            "dicts and tuples of these like the batch"
        )
    return [axes is not None] * len(jax.tree.leaves(batch))


def part(batch: PyTree, *, parts: int, held: list[bool]) -> PyTree:
    """The shapes of one of so many parts of a worker's batch; what holds no examples is whole."""
    leaves, structure = jax.tree.flatten(batch)
    made = [
        jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype) if split else x
        for x, split in zip(leaves, held, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def check(axes: PyTree, batch: PyTree, *, leading: int, parts: int, cast: bool) -> None:
    """Refuses a batch of which it can not be said what an example is, where that matters.

    Args:
      axes: as `batch_axes` of `jd.execute`.
      batch: leaves `[workers, ...]`, after the steps if any.
      leading: how many axes stand before that of the workers.
      parts: into how many the examples are split.
      cast: whether floating examples are cast to another dtype.

    Raises:
      Refused: leaves that should all lead with the examples have different numbers of them, or one that
        `parts` does not divide; names the leaves.
    """
    held = examples(axes, batch)
    found = jax.tree_util.tree_flatten_with_path(batch)[0]
    leaves = [
        (f"batch{jax.tree_util.keystr(path)}", jnp.shape(x)[leading + 1 :])
        for (path, x), of in zip(found, held, strict=True)
        if of and (parts > 1 or (cast and _floating(x)))  # nothing else is touched
    ]
    sizes = {shape[:1] for _, shape in leaves}
    if len(sizes) > 1 or () in sizes:
        what = f"accumulate={parts} splits" if parts > 1 else "compute_dtype casts"
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in leaves)
        raise Refused(
            f"{what} the examples of a worker, and its leaves lead with different numbers of them: {shapes}; "
            "say which hold none, by their names: batch_axes={'NAME': None}"
        )
    for name, shape in leaves:
        if shape[0] % parts:
            raise Refused(
                f"{name} has {shape[0]} examples a worker, which accumulate={parts} does not divide; give "
                f"every worker a multiple of {parts} examples"
            )


def check_returned(axes: PyTree, batch: PyTree, aux: Mapping[str, Any]) -> None:
    """Refuses a leaf that a loss returns as it got it, statistics perhaps, of which nothing is said.

    Args:
      axes: as `batch_axes` of `jd.execute`.
      batch: shapes of one worker's batch.
      aux: shapes of what its loss returned.

    Raises:
      Refused: a name of the batch is one of aux, with the same shapes, and `batch_axes` does not name it.
    """
    if not isinstance(batch, Mapping):
        return
    named = {*axes} if isinstance(axes, Mapping) else set()
    for name in sorted({*batch} & {*aux} - named):
        same = jax.tree.structure(batch[name]) == jax.tree.structure(aux[name])
        pairs = zip(jax.tree.leaves(batch[name]), jax.tree.leaves(aux[name]), strict=False)
        if same and axes is not None and all(a.shape == b.shape for a, b in pairs):
            raise Refused(
                f"batch[{name!r}] comes back in aux with the same shapes: statistics, which are neither "
                "split by accumulate nor cast by compute_dtype, or examples? write "
                f"batch_axes={{{name!r}: None}}, or {{{name!r}: 0}} if it holds examples"
            )


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else jnp.result_type(x), jnp.floating)
