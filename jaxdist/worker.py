"""The worker axis: what one worker can ask of all the others, on any number of devices.

Everything an algorithm writes, it writes for *one* worker. Whether that worker has a device to itself
or shares one with others (its *lanes*) is decided by whoever runs it, and the functions here hide
the difference. With one worker per device each is a plain JAX collective. With several, each is a
`custom_vmap` function: `vmap` over the lanes hands it a whole block `[lanes, ...]`, and its lane rule
moves only the rows that really have to change device.

This is the only module that knows how JAX tracks which values differ between workers.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxdist import permutations, presence, rows
from jaxdist.errors import Refused

AXIS = "worker"

PyTree = Any


class Scope(NamedTuple):
    """How the workers of the step being traced are laid on devices."""

    me: jax.Array  # this worker's index, traced; batched over the lanes
    workers: int
    lanes: int
    reproducible: bool
    bucket_bytes: int
    axis: str = AXIS  # what the mesh calls the workers' axis while this is traced


_SCOPE: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("scope", default=None)
# Part of the key of JAX's tracing caches. Without it a branch of lax.cond that was traced under one
# scope would be taken from the cache under the next, along with the index it had closed over.
_TRACE = jax.make_user_context(None)
_COUNTED: contextvars.ContextVar[int] = contextvars.ContextVar("counted", default=0)
_SILENT: contextvars.ContextVar[bool] = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def scope(
    index: jax.Array,
    *,
    workers: int,
    lanes: int,
    reproducible: bool = False,
    bucket_bytes: int = 0,
    axis: str = AXIS,
) -> Iterator[None]:
    """Tells the primitives how workers are laid on devices, while one step is traced.

    The index is a tracer: it must not outlive the trace, hence a context and never a global.
    """
    token = _SCOPE.set(Scope(index, workers, lanes, reproducible, bucket_bytes, axis))
    try:
        with _TRACE(object()):
            yield
    finally:
        _SCOPE.reset(token)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Refuses communication inside: the loss of a worker is its own."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def _axis() -> str:
    """How the mesh calls the axis of the workers: `worker`, but where it is to be seen who names it."""
    current = _SCOPE.get()
    return current.axis if current else AXIS


def bound() -> bool:
    """Whether the code being traced runs inside a worker axis."""
    try:
        lax.axis_size(_axis())
    except NameError:
        return False
    return True


def is_unbound(error: Exception) -> bool:
    """Whether JAX did not find the axis of the workers; any other missing name is somebody's bug."""
    return f"unbound axis name: {AXIS}" in str(error)


def _enter(name: str) -> Scope | None:
    if _SILENT.get():
        raise Refused(
            f"jaxdist.worker.{name} was called inside loss_fn, but a worker's loss is its own and may "
            f"not communicate; communicate in the algorithm's update, or return the value in aux "
            f"(aux is averaged over workers): return loss, {{'name': value}}"
        )
    if not bound():
        raise Refused(
            f"jaxdist.worker.{name} was called outside a worker axis; call it from an algorithm's update "
            f"or readout run by jd.execute, or inside jax.pmap(..., axis_name={AXIS!r}); to ask what "
            "a method sends, write with jd.worker.counted(8): algorithm.sends(params, step)"
        )
    return _SCOPE.get()


def bucket_bytes() -> int:
    """Leaves smaller than this travel together in one flat buffer (0: every leaf alone)."""
    current = _SCOPE.get()
    return current.bucket_bytes if current else 0


@contextlib.contextmanager
def counted(workers: int) -> Iterator[None]:
    """Tells `count` the number of workers where nothing is traced: around `algorithm.sends(...)`.

    What a method sends may depend on it, as where an array is cut into a part for each worker.

    >>> with counted(8):
    ...     count()
    8
    """
    token = _COUNTED.set(workers)
    try:
        yield
    finally:
        _COUNTED.reset(token)


def there() -> jax.Array:
    """Who takes part in this step: bool `[count()]`, the same for every worker."""
    who = presence.alive()
    return jnp.ones(count(), bool) if who is None else who


def headcount() -> int | jax.Array:
    """How many take part in this step: `count()`, or an int32 scalar where some may be away.

    What a formula calls the number of workers, where `count` is what shapes are made of.
    """
    who = presence.alive()
    return count() if who is None else who.sum(dtype=jnp.int32)


def count() -> int:
    """The number of workers, a Python integer, whether they take part or not."""
    told = _COUNTED.get()
    if told:
        return told
    current = _enter("count")
    return current.workers if current else lax.axis_size(_axis())


def index() -> jax.Array:
    """This worker's index, an int32 scalar in `0 .. count() - 1`."""
    current = _enter("index")
    return current.me if current else lax.axis_index(_axis())


def vary(tree: PyTree) -> PyTree:
    """Marks every leaf as this worker's own value, where it is not yet.

    Needed where a value that all workers agree on enters the local room or a branch whose twin
    returns a per-worker value. Outside a worker axis it is the identity. Costs nothing at run time.
    """
    return jax.tree.map(_vary, tree) if bound() else tree


def _vary(x: Any) -> Any:
    if _axis() in jax.typeof(x).manual_axis_type.varying:
        return x
    return lax.pcast(x, _axis(), to="varying")


def private(x: jax.Array) -> bool:
    """Whether a value being traced may differ between workers, as far as JAX can tell."""
    batched = []

    @custom_vmap
    def probe(x: jax.Array) -> jax.Array:
        return x

    @probe.def_vmap
    def _(_size: int, _batched: Sequence[bool], x: jax.Array):
        batched.append(True)
        return x, True

    probe(x)
    return bool(batched) or _axis() in jax.typeof(x).manual_axis_type.varying


def _communicate(
    name: str,
    x: jax.Array,
    *,
    plain: Callable[[jax.Array], jax.Array],
    lanes: Callable[[jax.Array], tuple[jax.Array, bool]],
    shape: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Runs `plain` on one worker per device, or `lanes` on a block `[lanes, ...]` of workers.

    `lanes` returns its result and whether it differs between the lanes. Under lanes the body of the
    `custom_vmap` only tells shapes and is never executed: `shape` stands in for it.
    """
    current = _enter(name)
    x = _vary(jnp.asarray(x))
    if current is None or current.lanes == 1:
        return plain(x)

    # The index is a second operand because a custom_vmap never fires on unbatched operands: without
    # it a constant would pass through untouched.
    @custom_vmap
    def one_worker(x: jax.Array, _: jax.Array) -> jax.Array:
        return shape(x)

    @one_worker.def_vmap
    def _(axis_size: int, batched: Sequence[bool], x: jax.Array, _: jax.Array):
        if not batched[1]:
            raise Refused(
                f"jaxdist.worker.{name} was called under a jax.vmap of your own; "
                "apply it to the stacked arrays instead: it takes arrays of any shape"
            )
        block = x if batched[0] else jnp.broadcast_to(x, (axis_size, *x.shape))
        return lanes(block)

    return one_worker(x, _vary(current.me))


def shift(tree: PyTree, by: int) -> PyTree:
    """Worker `i` receives the value of worker `i - by` (cyclically): everything moves up by `by`.

    Args:
      tree: this worker's arrays, any shapes and dtypes.
      by: how far, a Python integer; may be negative.

    Returns:
      A pytree like `tree`, this worker's own. With lanes, at most two device permutes of just the
      rows that cross a device boundary.
    """
    return jax.tree.map(lambda x: _shift(x, by), tree)


def _shift(x: jax.Array, by: int) -> jax.Array:
    def plain(x: jax.Array) -> jax.Array:
        return _permute_devices(x, by)

    def lanes(block: jax.Array) -> tuple[jax.Array, bool]:
        size = len(block)
        whole, part = divmod(by % (size * lax.axis_size(_axis())), size)
        if not part:
            return _permute_devices(block, whole), True
        carried = _permute_devices(block[size - part :], whole + 1)
        return jnp.concatenate([carried, _permute_devices(block[: size - part], whole)]), True

    return _communicate("shift", x, plain=plain, lanes=lanes, shape=lambda x: x)


def _permute_devices(x: jax.Array, by: int) -> jax.Array:
    devices = lax.axis_size(_axis())
    if by % devices == 0:
        return x
    return lax.ppermute(x, _axis(), [(d, (d + by) % devices) for d in range(devices)])


def permute(tree: PyTree, source: Sequence[int] | np.ndarray) -> PyTree:
    """Worker `i` receives the value of worker `source[i]`.

    Args:
      tree: this worker's arrays, any shapes and dtypes.
      source: a full permutation of `0 .. count() - 1`, known while tracing.

    Returns:
      A pytree like `tree`, this worker's own. With `V` lanes, at most `V` device permutes of one row
      each, and a gather on the device; cyclic shifts take the cheaper form of `shift`.

    Raises:
      Refused: `source` is not a permutation of all workers.
    """
    wanted = np.asarray(source)
    workers = count()
    if wanted.shape != (workers,) or not np.array_equal(np.sort(wanted), np.arange(workers)):
        raise Refused(
            f"source={wanted.tolist()} is not a permutation of 0..{workers - 1}; name every worker once, "
            "and i at position i for a worker that keeps its own value"
        )
    by = permutations.as_shift(wanted)
    if by is not None:
        return shift(tree, by)
    return jax.tree.map(lambda x: _permute(x, wanted), tree)


def _permute(x: jax.Array, source: np.ndarray) -> jax.Array:
    def plain(x: jax.Array) -> jax.Array:
        return lax.ppermute(x, _axis(), [(int(s), i) for i, s in enumerate(source)])

    def lanes(block: jax.Array) -> tuple[jax.Array, bool]:
        plan = rows.plan(source, lanes=len(block))
        me = lax.axis_index(_axis())
        held = [block]
        for senders, row in zip(plan.senders, plan.rows, strict=True):
            mine = lax.dynamic_slice_in_dim(block, jnp.asarray(row)[me], 1)
            pairs = [(int(s), d) for d, s in enumerate(senders)]
            held.append(lax.ppermute(mine, _axis(), pairs))
        return jnp.concatenate(held)[jnp.asarray(plan.pick)[me]], True

    return _communicate("permute", x, plain=plain, lanes=lanes, shape=lambda x: x)


def accumulation_dtype(dtype: Any) -> Any:
    """In which precision values of this dtype are summed: never less than float32."""
    if jnp.issubdtype(dtype, jnp.integer):
        return dtype
    with jax.numpy_dtype_promotion("standard"):  # the answer is about dtypes, not a silent cast
        return jnp.promote_types(dtype, jnp.float32)


def mean(tree: PyTree) -> PyTree:
    """The mean over all workers, the same for every worker and hence fit for the shared room.

    Low-precision values are accumulated in float32 and cast back; integers and booleans become
    float32 means. Under `jd.faulty` it is over those who are there; over nobody it is 0.
    """
    workers = headcount()

    def of(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        out = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.float32)
        wide = x.astype(accumulation_dtype(out))
        n = workers if isinstance(workers, int) else jnp.maximum(workers, 1).astype(wide.dtype)
        return (_total(_present(wide), "mean") / n).astype(out)

    return jax.tree.map(of, tree)


def total(tree: PyTree) -> PyTree:
    """The sum over all workers, the same for every worker and hence fit for the shared room.

    Low-precision values are accumulated in float32 and cast back; integers stay integers. Under
    `jd.faulty` it is over those who are there.
    """

    def of(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return _total(_present(x.astype(accumulation_dtype(x.dtype))), "total").astype(x.dtype)

    return jax.tree.map(of, tree)


def _present(x: jax.Array) -> jax.Array:
    """This worker's term of a sum: zeros where it is away."""
    who = presence.alive()
    return x if who is None else jnp.where(who[index()], x, jnp.zeros_like(x))


def _total(x: jax.Array, name: str) -> jax.Array:
    current = _SCOPE.get()
    if current is not None and current.reproducible:
        return ordered_sum(_gather(x, name))
    return _communicate(
        name,
        x,
        plain=_sum_devices,
        lanes=lambda block: (_sum_devices(block.sum(0, dtype=block.dtype)), False),
        shape=lambda x: jnp.zeros(x.shape, x.dtype),
    )


def _sum_devices(x: jax.Array) -> jax.Array:
    # XLA aborts on an all-reduce over a manual axis of size 1 beside automatic axes.
    if lax.axis_size(_axis()) == 1:
        return lax.all_gather(x, _axis(), to="invarying", tiled=False)[0]
    return lax.psum(x, _axis())


def ordered_sum(x: jax.Array) -> jax.Array:
    """The sum over the leading axis as a fixed tree of additions, whatever the machine.

    >>> float(ordered_sum(jnp.arange(5.0)))
    10.0
    """
    while len(x) > 1:
        half = len(x) // 2
        rest = x[2 * half :]
        x = jnp.concatenate([x[:half] + x[half : 2 * half], rest])
    return x[0]


def gather(tree: PyTree) -> PyTree:
    """Everybody's values, stacked: leaves `[count(), ...]`, the same for every worker."""
    return jax.tree.map(lambda x: _gather(x, "gather"), tree)


def _gather(x: jax.Array, name: str) -> jax.Array:
    current = _SCOPE.get()
    workers = current.workers if current else 0
    return _communicate(
        name,
        x,
        plain=lambda x: lax.all_gather(x, _axis(), to="invarying", tiled=False),
        lanes=lambda block: (lax.all_gather(block, _axis(), to="invarying", tiled=True), False),
        shape=lambda x: jnp.zeros((workers, *x.shape), x.dtype),
    )


def scatter(tree: PyTree) -> PyTree:
    """The sum over workers (under `jd.faulty`: who are there), of which each keeps its own share.

    Args:
      tree: leaves `[count() * n, ...]`; worker `i` is to own rows `i * n` to `(i + 1) * n`.

    Returns:
      Leaves `[n, ...]`, this worker's own. Low-precision values are accumulated in float32.

    Raises:
      Refused: a leading axis that the number of workers does not divide.
    """
    return jax.tree.map(_scatter, tree)


def _scatter(x: jax.Array) -> jax.Array:
    workers = count()
    x = jnp.asarray(x)
    if x.ndim == 0 or x.shape[0] % workers:
        raise Refused(
            f"scatter was given shape {x.shape}, whose leading axis {workers} workers do not divide; "
            f"pad it to a multiple of {workers}"
        )

    def lanes(block: jax.Array) -> tuple[jax.Array, bool]:
        summed = _scatter_devices(block.sum(0, dtype=block.dtype))
        return summed.reshape(len(block), -1, *summed.shape[1:]), True

    wide = _present(x.astype(accumulation_dtype(x.dtype)))
    current = _SCOPE.get()
    if current is not None and current.reproducible:
        return ordered_sum(_exchange(wide.reshape(workers, -1, *x.shape[1:]))).astype(x.dtype)
    kept = _communicate(
        "scatter", wide, plain=_scatter_devices, lanes=lanes, shape=lambda x: x[: len(x) // workers]
    )
    return kept.astype(x.dtype)


def _scatter_devices(x: jax.Array) -> jax.Array:
    if lax.axis_size(_axis()) == 1:
        return x
    return lax.psum_scatter(x, _axis(), scatter_dimension=0, tiled=True)


def exchange(tree: PyTree) -> PyTree:
    """Everybody sends one row to everybody: row `j` of the result is what worker `j` had in row `i`.

    Args:
      tree: leaves `[count(), ...]`; row `j` is meant for worker `j`.

    Returns:
      Leaves `[count(), ...]`, this worker's own: row `j` comes from worker `j`.

    Raises:
      Refused: a leading axis that is not the number of workers.
    """
    return jax.tree.map(_exchange, tree)


def _exchange(x: jax.Array) -> jax.Array:
    workers = count()
    x = jnp.asarray(x)
    if x.ndim == 0 or x.shape[0] != workers:
        raise Refused(
            f"exchange was given shape {x.shape}; its leading axis must be the {workers} workers: "
            "one row for each receiver"
        )

    def lanes(block: jax.Array) -> tuple[jax.Array, bool]:
        size = len(block)
        parts = block.reshape(size, -1, size, *block.shape[2:])  # from lane, to device, to lane
        parts = _exchange_devices(jnp.moveaxis(parts, 1, 0))  # from device, from lane, to lane
        return jnp.moveaxis(parts, 2, 0).reshape(block.shape), True

    return _communicate("exchange", x, plain=_exchange_devices, lanes=lanes, shape=lambda x: x)


def _exchange_devices(x: jax.Array) -> jax.Array:
    if lax.axis_size(_axis()) == 1:
        return x
    return lax.all_to_all(x, _axis(), split_axis=0, concat_axis=0, tiled=True)
