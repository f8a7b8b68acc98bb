"""Elastic averaging SGD: workers explore on their own, held by a spring to a center that they pull along."""

from typing import Never

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import buckets, presence, reduction, waiting, worker
from jaxdist.algorithms.arrivals import arrives, enter, open_book, reopen, report
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    Resize,
    State,
    apply,
    check_period,
    check_rule,
    local_init,
    refuse_others,
    size_bytes,
)
from jaxdist.algorithms.membership import AVERAGED, averaged
from jaxdist.algorithms.served import check_clock
from jaxdist.clock import Clock
from jaxdist.errors import Refused


def elastic_averaging(
    inner: optax.GradientTransformation,
    *others: Never,
    period: int,
    attraction: float,
    clock: Clock | None = None,
) -> Algorithm:
    """EASGD: every worker is drawn towards a center, and the center towards all workers.

    With z the center, x_i the parameters of worker i, u_i the update of `inner` at x_i and a the
    attraction, everything on the right as it was before the step,

        x_i <- x_i + u_i - a (x_i - z)
        z   <- z + a sum_i (x_i - z)

    the terms with a only where period divides t + 1; x_i <- x_i + u_i elsewhere. Unlike in `local_sgd`
    workers are never made equal: the weaker the spring, the further they explore. With
    `optax.sgd(..., momentum=..., nesterov=True)` it is EAMSGD. With a clock there is no common step:
    whoever arrives does this alone, with the center as it then is, and period counts its own
    arrivals (Algorithm 1 of the paper).

    For plain SGD with learning rate r on f = h x^2 / 2, period 1 and W workers, with e = r h, it is
    stable if and only if

        e + a < 2  and  a (2 + 2 W - W e) < 4 - 2 e      all at once
        a (4 - e) < 4 - 2 e                              one after the other, in turn

    so that the synchronous form needs an attraction that falls as 1/W (the paper's W a = 0.9), and the
    other does not.

    Args:
      inner: the local rule. It never communicates; its memory stays with the worker and is not told of
        the spring.
      others: nothing; a topology is refused with the method that takes one.
      period: steps (with a clock: arrivals of one worker) from one exchange to the next.
      attraction: a, above 0 and at most 1.
      clock: how long everybody's gradients take; None: all workers step together.

    Returns:
      An `Algorithm`. shared: the center, and the clock where there is one. local: parameters and the
      state of `inner`. The readout is the center.

    Raises:
      Refused: a period below 1, an attraction outside (0, 1], a rule that is not optax's, a clock of
        another size.

    Communication:
      One all-reduce every `period` steps, of the displacement in at least float32: size(params) bytes
      for float32 parameters. With a clock, per step one all-gather of size(params) bytes. Nothing
      for the readout. With a clock it reports what `downpour` does, a version being a change of the
      center and staleness the changes since a worker's last exchange; an idle worker computes
      nothing where it has a device to itself, with lanes its gradient is computed and masked.

    Example:
      >>> import jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.elastic_averaging(optax.sgd(0.05), period=2, attraction=0.2)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.steps(state, jnp.tile(jnp.arange(4.0), (200, 1)))
      >>> points = trainer.gradient_at(state)
      >>> print(f"center {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      center 1.500, spread 1.378

    References:
      Zhang, Choromanska, LeCun, Deep Learning with Elastic Averaging SGD, NeurIPS 2015.
      arXiv:1412.6651
    """
    refuse_others("elastic_averaging", others)
    check_rule("inner", inner)
    check_period("period", period)
    if not 0 < attraction <= 1:
        raise Refused(
            f"attraction={attraction!r} is not a number above 0 and at most 1; write for example "
            "attraction=0.9 / workers"
        )
    if clock is not None:
        check_clock("elastic_averaging", clock)
        return _by_arrivals(inner, clock, period, attraction)

    def init(params: Params) -> State:
        return State(jnp.int32(0), params, (params, local_init(inner, params)))

    def update(grads, state: State, *, key, value, objective) -> State:
        z, (x, inner_state), t = state.shared, state.local, state.step

        def drawn(rooms):
            z, x = rooms
            pull = jax.tree.map(lambda x, z: _pull(x, z, attraction), x, z)
            together = reduction.mean(pull)
            n = jnp.asarray(worker.headcount())
            center = jax.tree.map(
                lambda z, p: (z.astype(p.dtype) + p * n.astype(p.dtype)).astype(z.dtype),
                z,
                together,
            )
            return center, worker.vary(pull)

        def free(rooms):
            z, x = rooms
            return z, worker.vary(jax.tree.map(lambda x, z: _pull(x, z, 0.0), x, z))

        rooms = z, worker.vary(x)
        moved, inner_state = apply(inner, grads, inner_state, x, value=value, objective=objective)
        if period == 1:
            z, pull = drawn(rooms)
        else:
            z, pull = lax.cond((t + 1) % period == 0, drawn, free, rooms)
        return State(t + 1, z, (_less(moved, pull), inner_state))

    def sends(params: Params, step: int) -> int:
        wide = jax.eval_shape(lambda p: jax.tree.map(lambda x: _pull(x, x, attraction), p), params)
        return size_bytes(wide) * ((step + 1) % period == 0)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: state.shared,
        sends=sends,
        resize=AVERAGED,
        waits=waiting.everyone(period=period),
    )


def _by_arrivals(
    inner: optax.GradientTransformation, clock: Clock, period: int, attraction: float
) -> Algorithm:
    def init(params: Params) -> State:
        local = params, local_init(inner, params)
        return State(jnp.int32(0), (params, open_book(clock)), local)

    def update(grads, state: State, *, key, value, objective) -> State:
        (z, book), (x, inner_state) = state.shared, state.local
        tick, times = clock.tick(book.times, alive=presence.alive())
        exchanges = tick.active & (times.counts % period == 0)
        pull_at = jnp.where(exchanges, tick.rank, clock.size)
        turn, book = enter(book, tick, times, pushes=exchanges, pull_at=pull_at)
        me = worker.index()
        buffers, restore = buckets.pack(x)
        everyones = worker.gather(buffers)

        def arrival(k, carry):
            z, met = carry
            i = turn.order[k]
            met = jax.tree.map(lambda z, met: jnp.where(i == me, z, met), z, met)
            other = restore([lax.dynamic_index_in_dim(b, i, keepdims=False) for b in everyones])

            def pulled(z: jax.Array, x: jax.Array) -> jax.Array:
                pull = jnp.where(exchanges[i], _pull(x, z, attraction), 0)
                return (z.astype(pull.dtype) + pull).astype(z.dtype)

            return jax.tree.map(pulled, z, other), met

        z, met = lax.fori_loop(0, turn.arrivals, arrival, (z, worker.vary(z)))
        pull = jax.tree.map(
            lambda x, z: jnp.where(exchanges[me], _pull(x, z, attraction), 0), x, met
        )
        moved, moved_state = apply(inner, grads, inner_state, x, value=value, objective=objective)
        active = tick.active[me]
        moved, inner_state = jax.tree.map(
            lambda new, old: jnp.where(active, new, old),
            (_less(moved, pull), moved_state),
            (x, inner_state),
        )
        return State(state.step + 1, (z, book), (moved, inner_state))

    def resized(state: State, fresh: State) -> State:
        (z, book), (_, new) = state.shared, fresh.shared
        local = averaged(state.local, fresh.local)
        return State(state.step, (z, reopen(clock, book, new)), local)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: state.shared[0],
        active=lambda state: arrives(clock, state.shared[1].times),
        sends=lambda params, step: size_bytes(params),
        report=lambda state: report(state.shared[1]),
        resize=Resize(
            resized,
            "the center goes on, and simulated time with it; everybody begins anew at the workers' mean "
            "parameters with their mean memory",
        ),
        method="elastic_averaging",
    )


def _pull(x: jax.Array, z: jax.Array, attraction: float) -> jax.Array:
    """a (x - z) in at least float32: the difference of two nearby bfloat16 numbers has few bits."""
    wide = worker.accumulation_dtype(z.dtype)
    return jnp.asarray(attraction, wide) * (x.astype(wide) - z.astype(wide))


def _less(x: Params, pull: Params) -> Params:
    return jax.tree.map(lambda x, p: (x.astype(p.dtype) - p).astype(x.dtype), x, pull)
