"""Where everything lives: workers on the devices of a mesh, parameters over a worker's own devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdist.errors import Refused
from jaxdist.worker import AXIS

PyTree = Any
Rule = Callable[[str, tuple[int, ...]], PartitionSpec]


def default_mesh(workers: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of as many devices as possible that all hold the same number of workers.

    >>> default_mesh(8, jax.devices()[:3]).shape["worker"]
    2
    """
    available = list(jax.devices() if devices is None else devices)
    used = max(d for d in range(1, len(available) + 1) if workers % d == 0)
    return Mesh(np.array(available[:used]), (AXIS,), axis_types=(AxisType.Auto,))


def devices_of(mesh: Mesh) -> str:
    """What a mesh is of, in words; says so if other devices are there and idle.

    >>> devices_of(default_mesh(4, jax.devices()[:3]))
    '2 x cpu (6 of 8 devices are idle)'
    """
    every = jax.device_count(mesh.devices.flat[0].platform)
    idle = f" ({every - mesh.size} of {every} devices are idle)" if every > mesh.size else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{idle}"


def check_mesh(mesh: Mesh, workers: Any) -> None:
    """Refuses a number of workers or a mesh on which the workers cannot be laid out evenly."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise Refused(
            f"workers={workers!r} is not a number of workers; write a positive integer, e.g. workers=8"
        )
    if AXIS not in mesh.axis_names:
        raise Refused(
            f"the mesh has the axes {tuple(mesh.axis_names)} and none named {AXIS!r}; "
            f"write jax.make_mesh((n,), ({AXIS!r},)) with an n that divides workers={workers}"
        )
    devices = mesh.shape[AXIS]
    if workers % devices:
        fits = [d for d in range(1, devices + 1) if workers % d == 0]
        up = -(-workers // devices) * devices
        raise Refused(
            f"workers={workers} cannot be shared evenly by {devices} devices along {AXIS!r}; "
            f"write workers={up}, or a mesh whose {AXIS!r} axis has one of {fits} devices"
        )
    count = jax.process_count()
    lost = {*range(count)} - {device.process_index for device in mesh.devices.flat}
    if lost and count > 1:
        up = -(-workers // count) * count
        raise Refused(
            f"workers={workers} leave process {min(lost)} of {count} without any, and it could take part in "
            f"no step; write workers={up}, or start fewer processes"
        )


def as_auto(mesh: Mesh) -> Mesh:
    """The same mesh with automatic axes: `shard_map` refuses ordinary arrays on explicit ones."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def model_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh along which one worker is spread over several devices."""
    return tuple(name for name in mesh.axis_names if name != AXIS and mesh.shape[name] > 1)


def default_bucket_bytes(mesh: Mesh) -> int:
    """Below which size leaves travel together; measured by benchmarks/bucketing.py.

    Small leaves gain everywhere on CPU; above these sizes some programs got slower. Leaves that are
    sharded over a worker's devices travel alone: a flat buffer would gather them. For accelerators
    the value is a guess that is not measured.
    """
    if model_axes(mesh):
        return 0
    platforms = {device.platform for device in mesh.devices.flat}
    processes = {device.process_index for device in mesh.devices.flat}
    if platforms == {"cpu"}:
        return 64 << 10 if len(processes) > 1 else 16 << 10
    return 1 << 20


def largest_axis(axis: str, size: int, *, least: int = 1024) -> Rule:
    """The usual rule of fully sharded parameters: split the largest dimension that divides.

    Args:
      axis: the mesh axis to shard over.
      size: how many devices it has.
      least: arrays with fewer elements stay whole.

    Returns:
      A rule from a leaf's path and shape to its `PartitionSpec`.

    >>> tuple(largest_axis("fsdp", 2)("w", (64, 128)))
    (None, 'fsdp')
    >>> tuple(largest_axis("fsdp", 2)("b", (64,)))
    ()
    """

    def rule(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        fits = [d for d, n in enumerate(shape) if n % size == 0]
        if not fits or int(np.prod(shape)) < least:
            return PartitionSpec()
        best = max(fits, key=lambda d: shape[d])
        return PartitionSpec(*([None] * best), axis)

    return rule


def default_rule(mesh: Mesh) -> Rule:
    """Fully sharded over an axis named `fsdp` where the mesh has one, else whole."""
    if "fsdp" in model_axes(mesh):
        return largest_axis("fsdp", mesh.shape["fsdp"])
    return lambda path, shape: PartitionSpec()


class Annotation(NamedTuple):
    """What is said of where one parameter lies.

    Attributes:
      path: of the parameter, as `jax.tree_util.keystr` writes it.
      shape: of the parameter.
      spec: how it is split; None: nothing is said.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec | None


# Of every parameter, the longest path first: the first path that a leaf's ends with is its parameter's.
Annotations = tuple[Annotation, ...]


def annotations(params: PyTree, given: PyTree | None) -> Annotations:
    """What the user or the model says about every parameter.

    Read from a pytree of `PartitionSpec` given to `execute`, from Flax's boxes
    (`nn.with_partitioning`), or from arrays or shapes that already lie sharded over model axes.

    Raises:
      Refused: `given` names what is no parameter.
    """

    def boxed(x: Any) -> bool:
        return hasattr(x, "get_partition_spec")

    found = {}
    for path, box in jax.tree_util.tree_flatten_with_path(params, is_leaf=boxed)[0]:
        for inner, leaf in jax.tree_util.tree_flatten_with_path(box)[0]:
            name = jax.tree_util.keystr(path) + jax.tree_util.keystr(inner)
            spec = box.get_partition_spec() if boxed(box) else _sharded(leaf)
            found[name] = Annotation(name, np.shape(leaf), spec if given is None else None)
    specs = jax.tree_util.tree_flatten_with_path(
        given, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    for path, spec in specs[0]:
        name = jax.tree_util.keystr(path)
        if name not in found:
            raise Refused(
                f"sharding names the parameter {name}, which is not among {sorted(found)}; "
                "give a pytree of PartitionSpec like the parameters"
            )
        found[name] = found[name]._replace(spec=spec)
    return tuple(sorted(found.values(), key=lambda one: -len(one.path)))


def _sharded(x: Any) -> PartitionSpec | None:
    where = getattr(x, "sharding", None)
    if not isinstance(where, NamedSharding):
        return None
    named = {axis for part in where.spec if part for axis in np.atleast_1d(part)}
    return where.spec if named - {AXIS} else None


def shardings(
    tree: PyTree, mesh: Mesh, *, annotated: Annotations, rule: Rule, local: bool
) -> PyTree:
    """A sharding for every leaf of one room of a State.

    A leaf whose path ends like a parameter's, and whose shape is that parameter's, lies where the
    parameter lies (momenta, copies, residuals); any other is placed by the rule. Of several parameters
    whose paths it ends like, it belongs to that with the longest.

    Args:
      tree: arrays or shapes; leaves of the local room carry the leading worker axis.
      mesh: the mesh.
      annotated: `annotations` of the parameters.
      rule: where a leaf without annotation goes.
      local: whether this is the local room.

    Returns:
      A pytree of `NamedSharding`.
    """

    def place(path: Any, x: Any) -> NamedSharding:
        shape = tuple(x.shape[1:] if local else x.shape)
        name = jax.tree_util.keystr(path)
        own = next((a for a in annotated if a.shape == shape and name.endswith(a.path)), None)
        spec = own.spec if own and own.spec is not None else rule(name, shape)
        return NamedSharding(mesh, PartitionSpec(AXIS, *spec) if local else PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def lies(state: PyTree, otherwise: Callable[[], PyTree], mesh: Mesh) -> tuple[NamedSharding, ...]:
    """The shardings of the leaves of a state, in one form for all that mean the same.

    Args:
      state: arrays; of tracers and of arrays elsewhere `otherwise` is taken.
      otherwise: `otherwise()` -> a sharding for each leaf; asked only if it is needed, for this is done at
        every step.
      mesh: the mesh.
    """

    def own(x: Any) -> NamedSharding | None:
        where = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
        return where if isinstance(where, NamedSharding) and where.mesh == mesh else None

    def trimmed(where: NamedSharding) -> NamedSharding:
        spec = [*where.spec]
        while spec and spec[-1] is None:
            spec.pop()
        return NamedSharding(mesh, PartitionSpec(*spec))

    found = [own(x) for x in jax.tree.leaves(state)]
    if None in found:
        found = [a or b for a, b in zip(found, jax.tree.leaves(otherwise()), strict=True)]
    return tuple(trimmed(where) for where in found if where)
