"""What workers say of their steps: gathered once in a while, and looked at for values that are not finite."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdist.errors import NotFinite
from jaxdist.executor import Trainer

PyTree = Any
# What `trainer.step` returns beside the state, with `metrics="workers"` and `finite=True`.
Metrics = Mapping[str, Any]
# Of it, what is each worker's own.
OWN = ("workers", "active", "finite")


def lines(
    steps: Mapping[int, Metrics], trainer: Trainer, params: PyTree, *, room: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """One line of numbers for each of some steps, the same on every process, by one message for all.

    The means over the (active) workers are taken on the host, so that they do not depend on where the
    workers are.

    Args:
      steps: by step what it returned.
      trainer: whose.
      params: parameters, for the names of the leaves.
      room: never more steps than this at once; one program is compiled for all numbers up to it.

    Yields:
      `(step, line)`, in order.

    Raises:
      NotFinite: at the first step with a loss or gradient that is not finite; names it, the
        worker and the leaf.
    """
    if not steps:
        return
    told = list(steps.values())
    names = sorted(name for name, x in told[0]["workers"].items() if x.ndim == 1)
    scalars = [{name: x for name, x in one.items() if name not in OWN} for one in told]
    scalars = jax.device_get(scalars)
    padded = [*told, *told[-1:] * (room - len(told))]
    kept = [
        ([one["workers"][name] for name in names], one.get("active"), one["finite"])
        for one in padded
    ]
    packed = np.asarray(_packed(kept, trainer.mesh))
    for step, one, own, each in zip(steps, told, scalars, packed, strict=False):
        *columns, active, finite = each.T
        if not finite.all():
            check_finite(step, everywhere(one["finite"], trainer), params)
        means = [x[active > 0].mean(dtype=np.float64).astype(packed.dtype) for x in columns]
        rounded = {name: float(mean) for name, mean in zip(names, means, strict=True)}
        yield step, {**rounded, **{name: float(x) for name, x in own.items() if x.ndim == 0}}


@partial(jax.jit, static_argnums=1)
def _packed(
    steps: Sequence[tuple[Sequence[jax.Array], jax.Array | None, jax.Array]], mesh: Mesh
) -> jax.Array:
    """What workers say of some steps, who is active, whose is finite: `[steps, workers, numbers + 2]`."""
    dtype = jnp.result_type(float)

    def row(numbers: Sequence[jax.Array], active: jax.Array | None, finite: jax.Array) -> jax.Array:
        all_finite = finite.all(1)
        everybody = jnp.ones_like(all_finite) if active is None else active
        return jnp.stack([x.astype(dtype) for x in (*numbers, everybody, all_finite)], axis=1)

    rows = [row(*step) for step in steps]
    return jax.lax.with_sharding_constraint(jnp.stack(rows), NamedSharding(mesh, PartitionSpec()))


def everywhere(x: jax.Array, trainer: Trainer) -> np.ndarray:
    """An array that lies on the devices of all processes, on the host of every process."""
    # Alone there is nothing to send, and what is everywhere already needs no message.
    if jax.process_count() > 1 and not x.is_fully_replicated:
        x = _replicated(x, trainer.mesh)
    return np.asarray(x)


@partial(jax.jit, static_argnums=1)
def _replicated(x: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


@jax.jit
def finite_points(points: PyTree) -> jax.Array:
    """Whether each worker's parameters are finite: leaves `[workers, ...]` -> `[workers, leaves]`."""
    leaves = jax.tree.leaves(points)
    return jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves], axis=1)


def check_finite(step: int, finite: np.ndarray, params: PyTree, *, of: str = "gradient") -> None:
    """Stops at the first value that is NaN or infinite.

    Args:
      step: of what.
      finite: `metrics["finite"]`, bool `[workers, 1 + leaves]`, or without the column of the loss.
      params: parameters, for the names of the leaves.
      of: what the leaves are.

    Raises:
      NotFinite: names the step, the worker and the leaf.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [f"{of}{jax.tree_util.keystr(path)}" for path, _ in leaves]
    names = ["loss", *names][-finite.shape[1] :]
    bad = np.argwhere(~finite)
    if len(bad):
        worker, leaf = bad[0]
        raise NotFinite(
            f"step {step}: worker {worker} has a value that is not finite in its {names[leaf]} "
            f"({len(bad)} such values in all workers and leaves); the checkpoints before it are "
            "kept; look at the data of this step, or write a smaller learning rate"
        )
