"""Run an Algorithm: one step of all workers is one XLA program on a mesh.

What a worker does in a step stands in `advance`; how that becomes a program for all workers, in
`jaxdist/lanes.py`.
"""

import collections
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdist import lanes, layout, reduction, verify, worker
from jaxdist.algorithms.base import Algorithm, Params, State
from jaxdist.clock import Clock
from jaxdist.elapsed import timed
from jaxdist.gradient import Loss, gradient, objective_of
from jaxdist.network import Network

PyTree = Any

# XLA on CPU aborts the process when more than 32 steps with a collective are under way.
STEPS_IN_FLIGHT = 8
# Keys of update are folded with a number that is no worker's index: nobody's loss has this key.
UPDATE = np.uint32(2**32 - 1)


class Evaluation(NamedTuple):
    """What a metric says of the model that would be deployed and of each worker's own.

    Attributes:
      readout: the metric at `trainer.readout(state)`.
      workers: the metric at each worker's own point; leaves `[workers, ...]`.
    """

    readout: PyTree
    workers: PyTree


class Said(NamedTuple):
    """What a worker says of a step.

    Attributes:
      values: loss and aux.
      active: whether it delivered; (): all do.
      finite: whether the loss and each leaf of the gradient are finite; (): not asked.
    """

    values: dict[str, Any]
    active: Any
    finite: Any


class Trainer(NamedTuple):
    """An algorithm, a loss and a mesh, ready to run.

    Attributes:
      init: `init(params)` -> `State`. Copies: the caller's arrays stay the caller's.
      step: `step(state, batch)` -> `(state, metrics)`. Leaves of `batch` are `[workers, ...]`, on the
        host or on devices. The old state is donated. `metrics["loss"]`, shape (), and everything in
        the loss's aux are means over the workers (over those that delivered, if not all did);
        what the algorithm reports stands beside them. With `metrics="workers"` they are each
        worker's own, in `metrics["workers"]`.
      steps: `steps(state, batches)` -> `(state, metrics)`: k steps in one call by a scan; leaves
        `[k, workers, ...]`, metrics `[k, ...]`, whose means are taken once, after the last step. Until
        then a device holds loss and aux of its workers for all k: keep large arrays out of aux, or k small.
      gradient_at: `gradient_at(state)` -> where each worker's next gradient is taken, leaves
        `[workers, ...]`.
      readout: `readout(state)` -> the parameters to evaluate and deploy.
      evaluate: `evaluate(state, metric, batch)` -> `Evaluation`, `metric(params, batch)` being any
        function to arrays and `batch` the same for everybody, with no worker axis.
      compiled: the bare jitted step, for lowering and timing: `compiled(state, batch)`.
      lower: `lower(params, batch)` -> the step lowered for the mesh, from shapes alone: arrays or
        `jax.ShapeDtypeStruct`, the batch's leaves `[workers, ...]`. The mesh may be of devices that
        are not there (`jaxdist.targets`).
      place: `place(batch)` puts a batch on the devices, as `step` does by itself.
      workers: how many workers.
      mesh: the devices they run on.
      algorithm: how the workers agree.
    """

    init: Callable[[Params], State]
    step: Callable[[State, PyTree], tuple[State, dict[str, Any]]]
    steps: Callable[[State, PyTree], tuple[State, dict[str, Any]]]
    gradient_at: Callable[[State], Params]
    readout: Callable[[State], Params]
    evaluate: Callable[[State, Callable[[Params, PyTree], PyTree], PyTree], Evaluation]
    compiled: Any
    lower: Callable[[Params, PyTree], Any]
    place: Callable[[PyTree], PyTree]
    workers: int
    mesh: Mesh
    algorithm: Algorithm


def execute(
    algorithm: Algorithm,
    loss_fn: Loss,
    *,
    workers: int,
    mesh: Mesh | None = None,
    seed: int = 0,
    accumulate: int = 1,
    compute_dtype: Any = None,
    reproducible: bool = False,
    finite: bool = False,
    metrics: Literal["mean", "workers"] = "mean",
    bucket_bytes: int | None = None,
    sharding: Any = None,
    clock: Clock | None = None,
    network: Network | None = None,
    overlap: bool = False,
) -> Trainer:
    """Prepares an algorithm to train a model, any number of workers on any number of devices.

    Args:
      algorithm: how the workers agree, for example `jd.gossip(optax.sgd(0.1), jd.topology.ring(8))`.
      loss_fn: `loss_fn(params, batch, key) -> (loss, aux)` of *one* worker on its own batch: a scalar
        and a dict of arrays to be averaged over workers and reported. It may not communicate. A
        model with mutable statistics returns them in aux, finds their mean in the metrics of the
        step, and gets them back as one more leaf of the next batch.
      workers: how many workers, W.
      mesh: the devices. Its axis named "worker" must divide W; further axes (for example "fsdp") spread
        one worker over several devices. None: as many of all devices as divide W.
      seed: of the keys; step t has `fold_in(key(seed), t)`, worker i's loss that folded with i.
      accumulate: split each worker's batch into so many parts, one after the other, and average:
        the memory of a part, the gradient of the whole.
      compute_dtype: cast floating parameters and batches to this dtype inside the loss
        (`jnp.bfloat16`); the state stays as it is.
      reproducible: fix the order of every sum over workers, so that it does not depend on how they
        are laid on devices and processes. Costs a gather in place of each reduction.
      finite: report in `metrics["finite"]`, bool `[workers, 1 + leaves]`, whether each worker's loss
        and each leaf of its gradient, in `jax.tree.leaves` order, is finite. Sends nothing.
      metrics: `"mean"`: of loss and aux the means over workers, which costs every step one small
        all-reduce, and so a wait for everybody. `"workers"`: `metrics["workers"]` holds each worker's
        own, leaves `[workers, ...]`, and `metrics["active"]`, bool `[workers]`, who delivered, where not
        all do (the others report zeros). Nothing is sent: a silent step of a method is silent.
      bucket_bytes: leaves below this size travel together; None: a default by backend.
      sharding: over which further mesh axes parameters are split: a function
        `(path, shape) -> PartitionSpec`, or a pytree of `PartitionSpec` like the parameters. None: the
        model's own annotations, else the largest dimension over an axis named "fsdp".
      clock: how long gradients take: `metrics["simulated_seconds"]` of a synchronous method
        (`jd.timed`). Methods with a clock of their own report it anyway.
      network: what messages cost in simulated seconds; needs a clock.
      overlap: compile a whole step for each kind of step of a method that does not send the same at
        every step (a fragment in turn, a graph that varies), so that an accelerator computes the
        gradient while the message is under way. The results are the same; compiling takes as many
        times longer. Without effect where a method's message needs the gradient, or where all its
        steps are alike (then XLA hides the message anyway).

    Returns:
      A `Trainer`.

    Raises:
      Refused: anything that can be known to be wrong before compiling, here or at the first call
        that shows it: a mesh the workers do not fit, a topology of another size, a batch whose
        leading axis is not W, a loss that is not a scalar or communicates, a per-worker value in
        the shared room.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax, jaxdist as jd
      >>> loss = lambda params, batch, key: (jnp.mean((batch @ params - 1.0) ** 2), {})
      >>> trainer = jd.execute(jd.all_reduce(optax.adam(0.1)), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(3))
      >>> state, metrics = trainer.step(state, np.ones((4, 16, 3), np.float32))
      >>> metrics["loss"].shape, trainer.gradient_at(state).shape
      ((), (4, 3))
    """
    verify.check_algorithm(algorithm)
    verify.check_clock(clock, network, workers)
    if clock is not None:
        algorithm = timed(algorithm, clock, network)
    if mesh is None:
        mesh = layout.default_mesh(workers) if verify.is_count(workers) else layout.default_mesh(1)
    layout.check_mesh(mesh, workers)
    verify.check_count("accumulate", accumulate)
    verify.check_metrics(metrics)
    mesh = layout.as_auto(mesh)
    alone = workers == mesh.shape[worker.AXIS]
    spread = bool(layout.model_axes(mesh))
    given = cast(layout.Rule, sharding) if callable(sharding) else None
    rule = given or layout.default_rule(mesh)
    said: dict[tuple[str, tuple[int, ...]], Any] = {}
    over_workers = partial(
        lanes.over_workers,
        workers=workers,
        mesh=mesh,
        reproducible=reproducible,
        bucket_bytes=layout.default_bucket_bytes(mesh) if bucket_bytes is None else bucket_bytes,
    )
    axes = lanes.ROOMS

    def initial(params: Params) -> State:
        state = algorithm.init(params)
        return State(state.step, state.shared, worker.vary(state.local))

    def advance(
        state: State, batch: PyTree, branch: int | None = None
    ) -> tuple[State, tuple[Said, dict[str, Any]]]:
        kind = {} if branch is None else {"branch": branch}
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss_key = jax.random.fold_in(key, worker.index())
        # Gradients at a value that all workers share would silently be summed over them.
        point = worker.vary(algorithm.gradient_at(state))
        loss = objective_of(loss_fn, batch, loss_key, parts=accumulate, dtype=compute_dtype)
        active = None if algorithm.active is None else worker.vary(algorithm.active(state))
        value, aux, grads = gradient(loss, point, active=active, alone=alone)
        new = algorithm.update(
            grads,
            state,
            key=jax.random.fold_in(key, UPDATE),
            value=value,
            objective=lambda params: loss(params)[0],
            **kind,
        )
        flags = _finite(value, grads) if finite else ()
        said = Said({"loss": value, **aux}, () if active is None else active, flags)
        report = {} if algorithm.report is None else algorithm.report(new)
        return State(new.step, new.shared, worker.vary(new.local)), (worker.vary(said), report)

    def branched(state: State, batch: PyTree) -> tuple[State, tuple[Said, dict[str, Any]]]:
        # The gradient is computed inside the branch that sends: XLA runs nothing beside a branch.
        if not overlap or algorithm.branches is None:
            return advance(state, batch)
        kinds, which = algorithm.branches
        steps = [partial(advance, branch=kind) for kind in range(kinds)]
        return lax.switch(which(state.step), steps, state, batch)

    def settled(state: State) -> State:
        """Pins every leaf to its place, where automatic axes would leave it to the compiler."""
        if not spread:
            return state
        placed = partial(layout.shardings, mesh=mesh, said=said, rule=rule)
        return State(
            state.step,
            lax.with_sharding_constraint(state.shared, placed(state.shared, local=False)),
            lax.with_sharding_constraint(state.local, placed(state.local, local=True)),
        )

    def told(said: Said, report: dict[str, Any], *, leading: int = 0) -> dict[str, Any]:
        flags = {"finite": said.finite} if finite else {}
        if metrics == "workers":
            active = {} if algorithm.active is None else {"active": said.active}
            return {"workers": said.values, **report, **active, **flags}
        # After all steps of a scan: one message for all of them.
        each = jax.tree.map(lambda x: jnp.moveaxis(x, leading, 0), (said.values, said.active))
        return {**over_workers(_mean_of_active, (0, 0), None)(*each), **report, **flags}

    def whole(advance: Callable[[State, PyTree], Any], *, leading: int = 0) -> Any:
        def stepped(state: State, batch: PyTree) -> tuple[State, dict[str, Any]]:
            state, (said, report) = advance(state, batch)
            return settled(state), told(said, report, leading=leading)

        return jax.jit(stepped, donate_argnums=0)

    one_step = over_workers(branched, (axes, 0), (axes, (0, None)))
    many_steps = over_workers(branched, (axes, 0), (axes, (0, None)), scan=True)
    compiled, compiled_steps = whole(one_step), whole(many_steps, leading=1)
    start = jax.jit(lambda params: settled(over_workers(initial, (None,), axes)(params)))
    points = over_workers(lambda state: worker.vary(algorithm.gradient_at(state)), (axes,), 0)
    points_of = jax.jit(points)
    readout = jax.jit(over_workers(algorithm.readout, (axes,), None))
    under_way: collections.deque[Any] = collections.deque()
    bounded = mesh.devices.flat[0].platform == "cpu" and mesh.size > 1

    def init(params: Params) -> State:
        params = verify.as_params(params)
        if given is None:
            said.update(layout.annotations(params, sharding))
        verify.check_rooms(algorithm, params, workers=workers, mesh=mesh, over_workers=over_workers)
        where = layout.shardings(params, mesh, said=said, rule=rule, local=False)
        return start(jax.tree.map(_spread, params, where))

    def lower(params: Params, batch: PyTree) -> Any:
        shapes = jax.eval_shape(verify.as_params, params)
        verify.check_batch(batch, workers=workers, leading=0, parts=accumulate)
        state = jax.eval_shape(over_workers(initial, (None,), axes), shapes)
        placed = partial(layout.shardings, mesh=mesh, said=said, rule=rule)
        state = State(
            _at(state.step, NamedSharding(mesh, PartitionSpec())),
            _at(state.shared, placed(state.shared, local=False)),
            _at(state.local, placed(state.local, local=True)),
        )
        examples = jax.eval_shape(lambda tree: tree, batch)
        rows = jax.tree.map(lambda x: _where(x, mesh, leading=0, spread=spread), examples)
        return compiled.lower(state, _at(examples, rows))

    seen: set[Any] = set()

    def enter(state: State, batch: PyTree, *, leading: int) -> PyTree:
        # All checks depend on structure, shapes and dtypes only: once for each, not at every step.
        leaves, structure = jax.tree.flatten(batch)
        of_leaves = ((np.shape(x), getattr(x, "dtype", None)) for x in leaves)
        signature = leading, structure, *of_leaves
        if signature not in seen:
            verify.check_batch(batch, workers=workers, leading=leading, parts=accumulate)
            point = _without_axes(jax.eval_shape(points, state), 1)
            examples = _without_axes(jax.eval_shape(lambda b: b, batch), leading + 1)
            verify.check_loss(loss_fn, point, examples, parts=accumulate)
            seen.add(signature)
        return place(batch, leading=leading)

    def place(batch: PyTree, *, leading: int = 0) -> PyTree:
        return jax.tree.map(lambda x: _put(x, mesh, leading=leading, spread=spread), batch)

    def bound(metrics: dict[str, Any]) -> None:
        if not bounded:
            return
        under_way.append(metrics.get("workers", metrics)["loss"])
        if len(under_way) > STEPS_IN_FLIGHT:
            jax.block_until_ready(under_way.popleft())

    def step(state: State, batch: PyTree) -> tuple[State, dict[str, Any]]:
        state, metrics = compiled(state, enter(state, batch, leading=0))
        bound(metrics)
        return state, metrics

    def steps(state: State, batches: PyTree) -> tuple[State, dict[str, Any]]:
        state, metrics = compiled_steps(state, enter(state, batches, leading=1))
        bound(metrics)
        return state, metrics

    @partial(jax.jit, static_argnums=1)
    def metric_of_workers(state: State, metric: Callable[..., Any], batch: PyTree) -> PyTree:
        return over_workers(
            lambda state, batch: worker.vary(metric(algorithm.gradient_at(state), batch)),
            (axes, None),
            0,
        )(state, batch)

    metric_of_readout = jax.jit(
        lambda metric, params, batch: metric(params, batch), static_argnums=0
    )

    def evaluate(state: State, metric: Callable[..., Any], batch: PyTree) -> Evaluation:
        everywhere = NamedSharding(mesh, PartitionSpec())
        batch = jax.tree.map(lambda x: _spread(x, everywhere), batch)
        return Evaluation(
            metric_of_readout(metric, readout(state), batch),
            metric_of_workers(state, metric, batch),
        )

    return Trainer(
        init,
        step,
        steps,
        points_of,
        readout,
        evaluate,
        compiled,
        lower,
        place,
        workers,
        mesh,
        algorithm,
    )


def _where(x: Any, mesh: Mesh, *, leading: int, spread: bool) -> NamedSharding:
    """Where a leaf `[..., workers, examples, ...]` lies: with its workers."""
    spec = [*[None] * leading, worker.AXIS]
    examples = np.shape(x)[leading + 1] if np.ndim(x) > leading + 1 else 0
    if spread and "fsdp" in mesh.shape and examples and examples % mesh.shape["fsdp"] == 0:
        # The examples of a worker are split over its devices: each computes on its own part.
        spec.append("fsdp")
    return NamedSharding(mesh, PartitionSpec(*spec))


def _at(shapes: PyTree, where: PyTree) -> Any:
    """The same shapes, with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )


def _put(x: Any, mesh: Mesh, *, leading: int, spread: bool) -> jax.Array:
    """Puts a leaf `[..., workers, examples, ...]` where its workers are."""
    where = _where(x, mesh, leading=leading, spread=spread)
    if isinstance(x, jax.Array):
        return jax.device_put(x, where)
    return _spread(x, where)


def _spread(x: Any, where: Any) -> jax.Array:
    """Puts a value on the devices of all processes; each reads only what its own devices get."""
    if where.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, where)
    # Here device_put would first send the value around, to compare what the processes hold.
    return jax.make_array_from_callback(np.shape(x), where, lambda rows: np.asarray(x)[rows])


def _mean_of_active(values: dict[str, Any], active: Any) -> dict[str, Any]:
    """The means over workers, or over those that are active, of what a worker says."""
    means = reduction.mean(values)
    if isinstance(active, tuple):
        return means
    # Idle workers report zeros: the mean over all, scaled up, is that over the others.
    share = worker.mean(active.astype(means["loss"].dtype))

    def of_active(m: jax.Array) -> jax.Array:
        return m / jnp.expand_dims(share, range(share.ndim, m.ndim)).astype(m.dtype)

    return jax.tree.map(of_active, means)


def _finite(value: jax.Array, grads: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in (value, *jax.tree.leaves(grads))])


def _without_axes(shapes: PyTree, drop: int) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[drop:], x.dtype), shapes)
