"""What can be known to be wrong before anything is compiled: one line each, with the cure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxdist import worker
from jaxdist.algorithms.base import Algorithm, Params, State
from jaxdist.errors import Refused

PyTree = Any


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_count(name: str, value: Any) -> None:
    """Refuses what is not a positive integer."""
    if not is_count(value):
        raise Refused(f"{name}={value!r} is not a positive integer; write for example {name}=2")


def check_metrics(metrics: Any) -> None:
    """Refuses what says neither of whom metrics are."""
    if metrics not in ("mean", "workers"):
        raise Refused(
            f'metrics={metrics!r}: expected "mean" over workers, or "workers" for those of each; '
            'write metrics="mean"'
        )


def check_algorithm(algorithm: Any) -> None:
    """Refuses what is not an Algorithm, an optax rule above all."""
    if isinstance(algorithm, Algorithm):
        return
    if hasattr(algorithm, "init") and hasattr(algorithm, "update"):
        raise Refused(
            "jd.execute was given an optax rule, which does not say how workers agree; "
            "write jd.execute(jd.all_reduce(rule), loss_fn, workers=...)"
        )
    raise Refused(
        f"jd.execute was given {algorithm!r}, which is not a jaxdist Algorithm; "
        "write for example jd.all_reduce(optax.sgd(0.1))"
    )


def check_clock(clock: Any, network: Any, workers: Any) -> None:
    """Refuses a network without a clock, and a clock for other workers than there are."""
    if clock is None and network is not None:
        raise Refused(
            f"network={network!r} times messages only beside gradients; "
            "write clock=jd.clock.constant(workers, seconds=...) as well"
        )
    if clock is not None and getattr(clock, "size", workers) != workers:
        raise Refused(
            f"clock={clock!r} is for {clock.size} workers and the run has {workers}; give a clock of "
            f"{workers}, or workers={clock.size} to jd.execute"
        )


def as_params(params: Params) -> Params:
    """Parameters as JAX arrays; refuses leaves that are not numbers, and an empty pytree."""

    def of(path: Any, x: Any) -> jax.Array:
        try:
            array = jnp.asarray(x)
        except (TypeError, ValueError) as error:
            raise Refused(
                f"the parameter params{jax.tree_util.keystr(path)} is {type(x).__name__} {x!r}, not an "
                "array of numbers; give init only what is to be trained"
            ) from error
        return jax.lax.convert_element_type(array, array.dtype)  # drops a Python scalar's weak type

    if not jax.tree.leaves(params):
        raise Refused(
            f"params={params!r} holds no arrays; give trainer.init the parameters of the model"
        )
    return jax.tree_util.tree_map_with_path(of, params)


def check_batch(batch: PyTree, *, workers: int, leading: int, parts: int) -> None:
    """Refuses a batch whose leaves do not all lead with the workers (after the steps, if any)."""
    axes = "[steps, workers, ...]" if leading else "[workers, ...]"
    found = jax.tree_util.tree_flatten_with_path(batch)[0]
    if not found:
        raise Refused(f"the batch {batch!r} holds no arrays; give leaves {axes}")
    for path, x in found:
        shape = np.shape(x)
        name = f"batch{jax.tree_util.keystr(path)}"
        if len(shape) <= leading or shape[leading] != workers:
            raise Refused(
                f"{name} has shape {shape}, but its leading axes must be {axes} with {workers} workers; "
                f"reshape the examples to {(*shape[:leading], workers, -1)}"
            )
        if parts > 1 and (len(shape) <= leading + 1 or shape[leading + 1] % parts):
            raise Refused(
                f"{name} has shape {shape}, whose examples accumulate={parts} does not divide; "
                f"give every worker a multiple of {parts} examples"
            )
    if leading and len({np.shape(x)[0] for _, x in found}) > 1:
        raise Refused(
            f"the leaves of the batches have different numbers of steps: "
            f"{sorted({np.shape(x)[0] for _, x in found})}; stack every leaf to {axes}"
        )


def check_loss(loss_fn: Callable[..., Any], point: Params, batch: PyTree, *, parts: int) -> None:
    """Traces the loss of one worker by itself, without any axis to communicate over.

    Args:
      loss_fn: the user's loss.
      point: shapes of the parameters.
      batch: shapes of one worker's batch.
      parts: into how many parts its examples are split.
    """
    name = getattr(loss_fn, "__name__", "loss_fn")
    if parts > 1:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype), batch
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        with worker.silence():
            result = jax.eval_shape(loss_fn, point, batch, key)
    except NameError as error:
        if worker.AXIS not in str(error):
            raise
        raise Refused(
            f"{name} communicates over the axis {worker.AXIS!r}, but a worker's loss is its own; leave "
            "averaging to the algorithm, and return what is to be reported in aux"
        ) from error
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not isinstance(result[1], dict):
        raise Refused(
            f"{name} returned {_shapes(result)}, expected a scalar loss and a dict; "
            "write return loss, {}"
        )
    loss, aux = result
    if loss is None or getattr(loss, "shape", None) != () or not _floating(loss):
        raise Refused(
            f"{name} returned a loss of {_shapes(loss)}, expected one floating-point number, shape (); "
            "write for example return jnp.mean(losses), {}"
        )
    if "loss" in aux:
        raise Refused(
            f"the aux of {name} holds a key 'loss', which is taken by the loss itself; rename it"
        )


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _shapes(tree: Any) -> str:
    shown = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
    return str(shown).replace("'", "")


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
    refuses an update that changes the shape or dtype of the state.
    """
    lanes = next((v for v in range(2, workers + 1) if workers % v == 0), 1)
    sizes = tuple(workers // lanes if n == worker.AXIS else mesh.shape[n] for n in mesh.axis_names)
    abstract = AbstractMesh(sizes, mesh.axis_names, axis_types=(AxisType.Auto,) * len(sizes))

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
            key=jax.random.key(0),
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
        return jnp.zeros(())

    try:
        jax.eval_shape(over_workers(one_worker, (None,), None, mesh=abstract), params)
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
