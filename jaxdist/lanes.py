"""From a function of one worker to a program for all of them, on any number of devices.

W workers run on D devices for any D that divides W. The program is
`shard_map(vmap(one_worker))`: the map over the mesh is manual along the worker axis only, so that a
worker may itself be spread over further, automatic axes; the vmap runs over the workers that share a
device (its lanes) and is left out where every worker has a device of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxdist import worker
from jaxdist.algorithms.base import State

PyTree = Any

# Which axis of an argument counts the workers; None: one copy for all.
ROOMS = State._make((None, None, 0))


def over_workers(
    one_worker: Callable[..., Any],
    in_axes: tuple[Any, ...],
    out_axes: Any,
    *,
    workers: int,
    mesh: Mesh | AbstractMesh,
    reproducible: bool = False,
    bucket_bytes: int = 0,
    scan: bool = False,
    axis: str = worker.AXIS,
) -> Callable[..., Any]:
    """Maps a function of one worker over all workers.

    Args:
      one_worker: a function of one worker; it may communicate.
      in_axes: for each argument `0` (leaves `[workers, ...]`), None (one copy for all) or `ROOMS` (a
        `State`).
      out_axes: the same for the results.
      workers: how many.
      mesh: the devices; its worker axis divides the workers.
      reproducible: whether sums over workers have a fixed order.
      bucket_bytes: leaves below this size travel together.
      scan: `one_worker` takes a `State` and a batch and returns a `State` and what it reports; the
        result takes many batches, leaves `[steps, workers, ...]`, goes through them in one loop, and
        reports with a leading `steps`.
      axis: how the mesh calls the axis of the workers.

    Returns:
      A function of the stacked arguments, to be jitted.
    """
    lanes = workers // mesh.shape[axis]

    def with_index(index: jax.Array, *args: Any) -> Any:
        with worker.scope(
            index,
            workers=workers,
            lanes=lanes,
            reproducible=reproducible,
            bucket_bytes=bucket_bytes,
            axis=axis,
        ):
            return one_worker(*args)

    def block(index: jax.Array, *args: Any) -> Any:
        if lanes > 1:
            return jax.vmap(with_index, in_axes=(0, *in_axes), out_axes=out_axes)(index, *args)
        alone = [_squeeze(a, axis) for a, axis in zip(args, in_axes, strict=True)]
        return _unsqueeze(with_index(index[0], *alone), out_axes)

    def many_blocks(index: jax.Array, state: State, batches: PyTree) -> Any:
        return lax.scan(lambda state, batch: block(index, state, batch), state, batches)

    inputs, outputs = tuple(_specs(one, axis) for one in in_axes), _specs(out_axes, axis)
    if scan:
        inputs, outputs = (inputs[0], _later(inputs[1])), (outputs[0], _later(outputs[1]))
    mapped = jax.shard_map(
        many_blocks if scan else block,
        mesh=mesh,
        axis_names={axis},
        in_specs=(PartitionSpec(axis), *inputs),
        out_specs=outputs,
    )
    return lambda *args: mapped(jnp.arange(workers, dtype=jnp.int32), *args)


def _specs(axes: Any, name: str) -> Any:
    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(name)

    return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)


def _later(specs: Any) -> Any:
    """The same with an axis of steps in front."""
    return jax.tree.map(
        lambda spec: PartitionSpec(None, *spec),
        specs,
        is_leaf=lambda spec: isinstance(spec, PartitionSpec),
    )


def _squeeze(tree: PyTree, axis: Any) -> PyTree:
    """Takes the worker axis of size 1 from the leaves that have one."""
    if isinstance(axis, State):
        return State(tree.step, tree.shared, _squeeze(tree.local, 0))
    return jax.tree.map(lambda x: x[0], tree) if axis == 0 else tree


def _unsqueeze(tree: PyTree, axis: Any) -> PyTree:
    """Gives it back."""
    if isinstance(axis, State):
        return State(tree.step, tree.shared, _unsqueeze(tree.local, 0))
    if isinstance(axis, tuple):
        return tuple(_unsqueeze(part, a) for part, a in zip(tree, axis, strict=True))
    return jax.tree.map(lambda x: x[None], tree) if axis == 0 else tree
