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

from jaxdist import batch_axes as axes_of_batch
from jaxdist import keys, lanes, layout, reduction, rooms, verify, worker
from jaxdist.algorithms.base import UPDATE, Algorithm, Params, State
from jaxdist.clock import Clock
from jaxdist.elapsed import timed
from jaxdist.gradient import Loss, delivered, local_loss
from jaxdist.isolated import isolated
from jaxdist.network import Network
from jaxdist.put_batch import examples_sharding, put_batch, put_whole

PyTree = Any

# XLA on CPU aborts the process when more than 32 steps with a collective are under way.
STEPS_IN_FLIGHT = 8


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


class SpreadStep(NamedTuple):
    """A jitted step of workers that have several devices each: the state comes back where it was.

    Attributes:
      jitted: `jitted(where, state, batch)`, the shardings of the state's leaves being static.
      layout: state -> these shardings.
    """

    jitted: Any
    layout: Callable[[State], tuple[NamedSharding, ...]]

    def __call__(self, state: State, batch: PyTree) -> Any:
        """Runs the step, compiled for where the state lies."""
        return self.jitted(self.layout(state), state, batch)

    def lower(self, state: State, batch: PyTree) -> Any:
        """Lowers it."""
        return self.jitted.lower(self.layout(state), state, batch)


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
      compiled: the bare jitted step, for lowering and timing: `compiled(state, batch)`. It checks nothing.
      lower: `lower(params, batch)` -> the step lowered for the mesh, from shapes alone: arrays or
        `jax.ShapeDtypeStruct`, the batch's leaves `[workers, ...]`. The parameters lie where `init` would
        put them. The mesh may be of devices that are not there (`jaxdist.targets`).
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
    batch_axes: Any = 0,
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
        and a dict of arrays to be averaged over workers and reported. It may not communicate: it is
        traced by itself, as under `jax.jit`, and never sees the axis of the workers. A model with mutable
        statistics returns them in aux, finds their mean in the metrics of the step, and gets them back as
        one more leaf of the next batch, of which `batch_axes` says that it holds no examples.
      workers: how many workers, W.
      mesh: the devices. Its axis named "worker" must divide W; further axes (for example "fsdp") spread
        one worker over several devices. None: as many of all devices as divide W.
      seed: of the keys; step t has `fold_in(key(seed), t)`, worker i's loss that folded with i. They are of
        threefry whatever `jax_default_prng_impl` says: what "rbg" draws depends on the layout.
      accumulate: split each worker's examples into so many parts, one after the other, and average loss,
        aux and gradient, in float32 at least: the memory of a part, the gradient of the whole.
      compute_dtype: cast floating parameters and examples to this dtype inside the loss
        (`jnp.bfloat16`); the state stays as it is.
      batch_axes: which leaves of a batch hold examples, a pytree prefix of it as `in_axes` of `jax.vmap`: 0,
        or None for leaves that hold none (class weights, running statistics), which `accumulate` does not
        split and `compute_dtype` does not cast. Names that a dict leaves out hold examples.
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
        leading axis is not W, a loss that is not a scalar or communicates, an algorithm that names a
        collective of JAX, a per-worker value in the shared room, complex parameters, a state that was
        stepped before.

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
    over_workers = partial(
        lanes.over_workers,
        workers=workers,
        mesh=mesh,
        reproducible=reproducible,
        bucket_bytes=layout.default_bucket_bytes(mesh) if bucket_bytes is None else bucket_bytes,
    )
    axes = lanes.ROOMS
    examples = partial(axes_of_batch.examples, batch_axes)
    local = local_loss(loss_fn, parts=accumulate, dtype=compute_dtype, examples=examples)

    def initial(params: Params) -> State:
        state = algorithm.init(params)
        return State(state.step, state.shared, worker.vary(state.local))

    def advance(
        state: State, batch: PyTree, branch: int | None = None
    ) -> tuple[State, tuple[Said, dict[str, Any]]]:
        kind = {} if branch is None else {"branch": branch}
        key = jax.random.fold_in(keys.key(seed), state.step)
        loss_key = jax.random.fold_in(key, worker.index())
        # Gradients at a value that all workers share would silently be summed over them.
        point = worker.vary(algorithm.gradient_at(state))
        active = None if algorithm.active is None else worker.vary(algorithm.active(state))
        (value, aux), grads = delivered(
            lambda point: local.gradient(point, batch, loss_key), point, active=active, alone=alone
        )
        new = algorithm.update(
            grads,
            state,
            key=jax.random.fold_in(key, UPDATE),
            value=value,
            objective=lambda params: local.value(params, batch, loss_key),
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

    def settled(state: State, where: tuple[NamedSharding, ...]) -> State:
        """Pins every leaf to its place, where automatic axes would leave it to the compiler."""
        if not where:
            return state
        leaves, structure = jax.tree.flatten(state)
        return jax.tree.unflatten(structure, map(lax.with_sharding_constraint, leaves, where))

    def places(state: State, annotated: layout.Annotations) -> State:
        """A sharding for each leaf of a state, or of its shapes."""
        of_room = partial(layout.shardings, mesh=mesh, annotated=annotated, rule=rule)
        both = of_room(state.shared, local=False), of_room(state.local, local=True)
        return State._make((NamedSharding(mesh, PartitionSpec()), *both))

    def lies(state: State) -> tuple[NamedSharding, ...]:
        """Where a state lies; leaves that lie nowhere in this mesh go where the rule puts them."""
        return layout.lies(state, lambda: places(state, ()), mesh)

    def told(said: Said, report: dict[str, Any], *, leading: int = 0) -> dict[str, Any]:
        flags = {"finite": said.finite} if finite else {}
        if metrics == "workers":
            active = {} if algorithm.active is None else {"active": said.active}
            return {"workers": said.values, **report, **active, **flags}
        # After all steps of a scan: one message for all of them.
        each = jax.tree.map(lambda x: jnp.moveaxis(x, leading, 0), (said.values, said.active))
        return {**over_workers(_mean_of_active, (0, 0), None)(*each), **report, **flags}

    def whole(advance: Callable[[State, PyTree], Any], *, leading: int = 0) -> Any:
        def stepped(where: Any, state: State, batch: PyTree) -> tuple[State, dict[str, Any]]:
            state, (said, report) = advance(state, batch)
            return settled(state, where), told(said, report, leading=leading)

        if not spread:
            return jax.jit(partial(stepped, ()), donate_argnums=0)
        return SpreadStep(jax.jit(stepped, static_argnums=0, donate_argnums=1), lies)

    one_step = over_workers(branched, (axes, 0), (axes, (0, None)))
    many_steps = over_workers(branched, (axes, 0), (axes, (0, None)), scan=True)
    compiled, compiled_steps = whole(one_step), whole(many_steps, leading=1)
    begin = over_workers(initial, (None,), axes)
    start = jax.jit(lambda where, params: settled(begin(params), where), static_argnums=0)
    points = over_workers(lambda state: worker.vary(algorithm.gradient_at(state)), (axes,), 0)
    points_of = verify.of_living(jax.jit(points))
    readout = verify.of_living(jax.jit(over_workers(algorithm.readout, (axes,), None)))
    under_way: collections.deque[Any] = collections.deque()
    bounded = mesh.devices.flat[0].platform == "cpu" and mesh.size > 1

    def check_params(params: Params, shapes: Params) -> layout.Annotations:
        """Traces the algorithm for these parameters; returns what is said of where they lie."""
        rooms.check_rooms(algorithm, shapes, workers=workers, mesh=mesh, over_workers=over_workers)
        return layout.annotations(params, None if given else sharding)

    def init(params: Params) -> State:
        params = verify.as_params(params)
        annotated = check_params(params, params)
        where = layout.shardings(params, mesh, annotated=annotated, rule=rule, local=False)
        state = places(jax.eval_shape(begin, params), annotated) if spread else None
        return start(tuple(jax.tree.leaves(state)), jax.tree.map(put_whole, params, where))

    def lower(params: Params, batch: PyTree) -> Any:
        shapes = jax.eval_shape(verify.as_params, params)
        annotated = check_params(params, shapes)
        check(batch, leading=0)
        state = jax.eval_shape(begin, shapes)
        check_loss(state, batch, leading=0)
        state = _at(state, places(state, annotated))
        rows = jax.eval_shape(lambda tree: tree, batch)
        return compiled.lower(state, _at(rows, batch_places(rows, leading=0)))

    def check(batch: PyTree, *, leading: int) -> None:
        verify.check_batch(batch, workers=workers, leading=leading)
        cast = compute_dtype is not None
        axes_of_batch.check(batch_axes, batch, leading=leading, parts=accumulate, cast=cast)

    def check_loss(state: State, batch: PyTree, *, leading: int) -> None:
        point = _without_axes(jax.eval_shape(points, state), 1)
        rows = _without_axes(jax.eval_shape(lambda tree: tree, batch), leading + 1)
        aux = verify.check_loss(loss_fn, point, rows)
        if accumulate > 1 or compute_dtype is not None:
            axes_of_batch.check_returned(batch_axes, rows, aux)
        if accumulate > 1:
            part = axes_of_batch.part(rows, parts=accumulate, held=examples(rows))
            verify.check_loss(loss_fn, point, part)

    seen: set[Any] = set()

    def enter(state: State, batch: PyTree, *, leading: int) -> PyTree:
        verify.check_alive(state)
        # All checks depend on structure, shapes and dtypes only: once for each, not at every step.
        leaves, structure = jax.tree.flatten(batch)
        of_leaves = ((np.shape(x), getattr(x, "dtype", None)) for x in leaves)
        signature = leading, structure, *of_leaves
        if signature not in seen:
            check(batch, leading=leading)
            check_loss(state, batch, leading=leading)
            seen.add(signature)
        return place(batch, leading=leading)

    def batch_places(batch: PyTree, *, leading: int) -> PyTree:
        leaves, structure = jax.tree.flatten(batch)
        where = partial(examples_sharding, mesh=mesh, leading=leading, spread=spread)
        made = [where(x, examples=of) for x, of in zip(leaves, examples(batch), strict=True)]
        return jax.tree.unflatten(structure, made)

    def place(batch: PyTree, *, leading: int = 0) -> PyTree:
        return put_batch(batch, batch_places(batch, leading=leading))

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
            lambda state, batch: isolated(metric)(algorithm.gradient_at(state), batch),
            (axes, None),
            0,
        )(state, batch)

    metric_of_readout = jax.jit(
        lambda metric, params, batch: metric(params, batch), static_argnums=0
    )

    def evaluate(state: State, metric: Callable[..., Any], batch: PyTree) -> Evaluation:
        everywhere = NamedSharding(mesh, PartitionSpec())
        batch = put_batch(batch, jax.tree.map(lambda _: everywhere, batch))
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


def _at(shapes: PyTree, where: PyTree) -> Any:
    """The same shapes, with shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where
    )


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
