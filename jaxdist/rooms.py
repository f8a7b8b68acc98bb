"""What an algorithm keeps in its two rooms, traced once with two lanes: what is shared is everybody's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxdist import keys, worker
from jaxdist.algorithms.base import Algorithm, Params, State
from jaxdist.errors import Refused

PyTree = Any

# While rooms are checked nobody else knows how the axis of the workers is called.
HIDDEN_AXIS = "axis of workers, whose name is jaxdist's own"


def check_rooms(
    algorithm: Algorithm,
    params: Params,
    *,
    workers: int,
    mesh: Mesh,
    over_workers: Callable[..., Any],
) -> None:
    """Traces init, one update and readout with two workers or more on every device.

    With one worker per device JAX does not see control flow: a `cond` on a per-worker predicate could
    write different values into the shared room unnoticed. Under lanes a per-worker value shows. Also
    refuses an update that changes the shape or dtype of the state, and, as the axis has another name here,
    whoever names it to a collective of JAX: that would be over devices, which are not workers.
    """
    lanes = next((v for v in range(2, workers + 1) if workers % v == 0), 1)

    def one_worker(params: Params) -> jax.Array:
        state = algorithm.init(params)
        _check_shared("init", state, lanes)
        index = worker.vary(worker.index())

        def own(x: jax.Array) -> jax.Array:
            return worker.vary(x) + (index * 0).astype(x.dtype)

        point = algorithm.gradient_at(state)
        value = index.astype(worker.accumulation_dtype(jnp.result_type(float)))
        new = algorithm.update(
            jax.tree.map(own, point),
            State(state.step, state.shared, jax.tree.map(_own_unless_key(own), state.local)),
            key=keys.key(0),
            value=value,
            objective=lambda p: sum(
                (x.sum().astype(value.dtype) for x in jax.tree.leaves(p)), start=value
            ),
        )
        _check_shared("update", new, lanes)
        _check_types(state, new)
        _check_private("readout", algorithm.readout(new), lanes, "worker.mean(...) it")
        if algorithm.active is not None:
            algorithm.active(state)
        if algorithm.report is not None:
            algorithm.report(new)
        return jnp.zeros(())

    def trace(axis: str) -> None:
        sizes = [workers // lanes if n == worker.AXIS else mesh.shape[n] for n in mesh.axis_names]
        names = [axis if n == worker.AXIS else n for n in mesh.axis_names]
        abstract = AbstractMesh(
            tuple(sizes), tuple(names), axis_types=(AxisType.Auto,) * len(sizes)
        )
        mapped = over_workers(one_worker, (None,), None, mesh=abstract, axis=axis)
        jax.eval_shape(mapped, params)

    _trace_hidden(trace)


def _trace_hidden(trace: Callable[[str], None]) -> None:
    """Traces with the axis of the workers under a name that nobody else knows."""
    try:
        trace(HIDDEN_AXIS)
    except (NameError, AssertionError) as error:
        # JAX asserts that a mapped axis is there before it looks for its name. If all is well under the
        # name that everybody knows, it was that; if not, it is somebody's bug.
        if not worker.is_unbound(error):
            trace(worker.AXIS)
        raise Refused(
            f"the algorithm names the axis {worker.AXIS!r} to a function of jax.lax, which would mean "
            "devices: of workers that share one it would see one. Write jd.mean(tree) for jax.lax.pmean, "
            "jd.worker.total for psum, gather for all_gather, permute or shift for ppermute, index() for "
            "axis_index, count() for axis_size"
        ) from error
    except ValueError as error:
        # JAX itself objects where a conditional on a per-worker predicate meets a shared value.
        if "varying manual axes" not in str(error):
            raise
        raise Refused(
            "the algorithm's update decides by a per-worker value what all workers share, or mixes the "
            "two; decide with jnp.where, or by worker.mean(...) of the predicate"
        ) from error


def _own_unless_key(own: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    def of(x: jax.Array) -> jax.Array:
        plain = jnp.issubdtype(x.dtype, jnp.number)
        return own(x) if plain else worker.vary(x)

    return of


def _check_shared(where: str, state: Any, lanes: int) -> None:
    if not isinstance(state, State):
        raise Refused(
            f"the algorithm's {where} returned {type(state).__name__}, expected State(step, shared, local)"
        )
    step = state.step
    if getattr(step, "shape", None) != () or step.dtype != jnp.int32:
        raise Refused(
            f"the algorithm's {where} returned step {step!r}, expected an int32 of shape (); "
            "write jnp.int32(0) in init and state.step + 1 in update"
        )
    _check_private(
        where,
        {"step": step, "shared": state.shared},
        lanes,
        "move it to local, or worker.mean(...) it",
    )


def _check_private(where: str, tree: PyTree, lanes: int, cure: str) -> None:
    if lanes == 1:  # a single worker: everything is everybody's
        return
    private = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        if worker.private(x)
    ]
    if private:
        raise Refused(
            f"the algorithm's {where} returned a per-worker value where all workers share one copy: "
            f"{', '.join(private)}; {cure}"
        )


def _check_types(old: State, new: State) -> None:
    before, after = (jax.tree_util.tree_flatten_with_path(s) for s in (old, new))
    if before[1] != after[1]:
        raise Refused(
            f"the algorithm's update changed the structure of the state from {before[1]} to {after[1]}; "
            "return the same pytree that init returns"
        )
    for (path, a), (_, b) in zip(before[0], after[0], strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Refused(
                f"the algorithm's update turned state{jax.tree_util.keystr(path)} from {a.dtype}"
                f"{list(a.shape)} into {b.dtype}{list(b.shape)}; cast it back: a step is compiled once"
            )
