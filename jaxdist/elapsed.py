"""Simulated seconds of a synchronous method: who computes how long, who waits for whom."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import presence
from jaxdist.algorithms.base import Algorithm, Params, Resize, State, bytes_sent, method_of
from jaxdist.clock import Clock, duration, later
from jaxdist.errors import Refused
from jaxdist.network import Network


class Elapsed(NamedTuple):
    """How far simulated time has come, beside what the method itself shares.

    Attributes:
      now: when the first worker finished the last step, exchange included, shape ().
      lag: [W], how many seconds after `now` a worker finished it; infinite: it has stopped.
      rest: what `now` could not hold (`clock.later`).
    """

    now: jax.Array
    lag: jax.Array
    rest: jax.Array


def timed(algorithm: Algorithm, clock: Clock, network: Network | None = None) -> Algorithm:
    """The same method, which also reports `simulated_seconds`.

    With s_i the moment at which worker i begins step t, d_i(t) how long its gradient takes, N_i those
    it waits for at the end of the step, itself among them, and c_i what the exchange costs (0 for who
    has nobody to talk to),

        r_i  = s_i + d_i(t)
        s_i <- max(r_i, max_{j in N_i} r_j + c_i)       c_i + s_j in place of it, where it overlaps

    and the simulated seconds are those of the last worker. Nothing is sent for it, and nothing that
    the method computes changes. Nobody waits for who is away (`jd.faulty`), and who comes back begins
    with the first of the others; an exchange costs what it does with all.

    Args:
      algorithm: a method that declares whom it waits for (its `waits`). Methods that take a clock
        themselves report their own.
      clock: how long gradients take.
      network: what messages cost, by the bytes the method declares; None: nothing.

    Returns:
      An `Algorithm`. shared: what `algorithm` shares, and `Elapsed`. local: as it was.

    Raises:
      Refused: what is given is not a clock or a network, or the method waits for no one.

    Example:
      >>> import jaxdist as jd, jax.numpy as jnp, optax
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> clock = jd.clock.speeds([1.0, 1.0, 0.5, 1.0])
      >>> algorithm = jd.timed(jd.all_reduce(optax.sgd(0.1)), clock)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state, metrics = trainer.step(trainer.init(jnp.zeros(())), jnp.arange(4.0))
      >>> metrics["simulated_seconds"].item()  # all wait for the slowest
      2.0
    """
    _check(algorithm, clock, network)

    def inside(state: State) -> State:
        return State(state.step, state.shared[0], state.local)

    def init(params: Params) -> State:
        state = algorithm.init(params)
        zero = jnp.zeros((), jnp.result_type(float))
        elapsed = Elapsed(zero, jnp.zeros(clock.size, zero.dtype), zero)
        return State(state.step, (state.shared, elapsed), state.local)

    def update(grads: Any, state: State, **given: Any) -> State:
        new = algorithm.update(grads, inside(state), **given)
        there = presence.alive() if algorithm.alive is None else algorithm.alive(inside(state))
        elapsed = advance(
            algorithm, clock, network, grads, state.step, state.shared[1], alive=there
        )
        return State(new.step, (new.shared, elapsed), new.local)

    def report(state: State) -> dict[str, Any]:
        own = {} if algorithm.report is None else algorithm.report(inside(state))
        now, lag, rest = state.shared[1]
        return {**own, "simulated_seconds": now + (lag.max() + rest)}

    active, alive, resize = algorithm.active, algorithm.alive, algorithm.resize

    def resized(state: State, fresh: State) -> State:
        assert resize is not None
        new = resize.rule(inside(state), inside(fresh))
        now, lag, rest = state.shared[1]
        # All begin together, when the last of those before them had finished.
        elapsed = Elapsed(now + lag.max(), fresh.shared[1].lag, rest)
        return State(new.step, (new.shared, elapsed), new.local)

    return Algorithm(
        init=init,
        gradient_at=lambda state: algorithm.gradient_at(inside(state)),
        update=update,
        readout=lambda state: algorithm.readout(inside(state)),
        active=None if active is None else lambda state: active(inside(state)),
        sends=algorithm.sends,
        report=report,
        resize=None if resize is None else Resize(resized, resize.says),
        branches=algorithm.branches,
        method=method_of(algorithm),
        alive=None if alive is None else lambda state: alive(inside(state)),
    )


def advance(
    algorithm: Algorithm,
    clock: Clock,
    network: Network | None,
    params: Params,
    step: jax.Array,
    elapsed: Elapsed,
    *,
    alive: jax.Array | None = None,
) -> Elapsed:
    """One step of all workers, by the rule of `timed`.

    Args:
      algorithm: of which `waits` and `sends` are asked.
      clock: how long gradients take.
      network: what messages cost, or None.
      params: for their shapes.
      step: which one.
      elapsed: before it.
      alive: bool [W], who is there; None: everybody.
    """
    now, begin, rest = elapsed
    waits, dtype = algorithm.waits, now.dtype
    assert waits is not None
    count = jnp.broadcast_to(step, (clock.size,))
    ready = begin + duration(clock, count, now + begin)
    # All that does not depend on time is worked out here, while tracing: a row for each kind of step.
    before = 1 if waits.start else 0
    steps = [*range(before), *range(waits.start, waits.start + waits.period)]
    rows = [_row(algorithm, network, params, one, clock.size) for one in steps]
    kinds = list(dict.fromkeys(rows))
    place = jnp.where(step < waits.start, 0, before + (step - waits.start) % waits.period)
    kind = jnp.asarray([kinds.index(row) for row in rows], jnp.int32)[place]
    heard = _padded([listens for listens, _ in kinds], clock.size)
    base = begin if waits.overlaps else ready
    if alive is not None:
        base = jnp.where(alive, base, -jnp.inf)  # nobody hears of those who are away
    arrives = base[jnp.asarray(heard)[kind]].max(axis=1)
    everybody = jnp.asarray([listens is None for listens, _ in kinds])[kind]
    costs = jnp.asarray([seconds for _, seconds in kinds], dtype)[kind]
    finish = jnp.maximum(ready, jnp.where(everybody, base.max(), arrives) + costs)
    if alive is not None:
        first = jnp.where(alive, finish, jnp.inf).min()
        finish = jnp.where(alive, finish, jnp.where(alive.any(), first, begin))
    first = finish.min()
    now, rest = later(now, first, rest)
    # Equal infinities (everybody has stopped for ever) are no lag.
    return Elapsed(now, jnp.where(finish == first, 0.0, finish - first), rest)


def _row(
    algorithm: Algorithm, network: Network | None, params: Params, step: int, workers: int
) -> tuple[Any, tuple[float, ...]]:
    """Whom everybody waits for at a step, and what that costs; oneself, at no cost, where nobody meets."""
    waits = algorithm.waits
    meeting = None if waits is None else waits.meeting(step, workers)
    if meeting is None:
        return ((),) * workers, (0.0,) * workers
    if network is None or algorithm.sends is None or workers == 1:
        return meeting.listens, (0.0,) * workers
    sent = bytes_sent(algorithm, params, step, workers=workers)
    return meeting.listens, tuple(meeting.seconds(network, sent))


def _padded(kinds: list[Any], workers: int) -> np.ndarray:
    """Whom each worker listens to, int32 [kinds, W, most], itself among them."""
    most = max((len(others) for listens in kinds for others in listens or ()), default=0) + 1
    table = np.tile(np.arange(workers, dtype=np.int32)[:, None], (len(kinds), 1, most))
    for k, listens in enumerate(kinds):
        for i, others in enumerate(listens or ()):
            table[k, i, : len(others)] = others
    return table


def _check(algorithm: Any, clock: Any, network: Any) -> None:
    if not isinstance(clock, Clock):
        raise Refused(
            f"clock={clock!r} is not a clock; write for example clock=jd.clock.constant(8)"
        )
    if network is not None and not isinstance(network, Network):
        raise Refused(
            f"network={network!r} is not a network; "
            'write for example network=jd.network.PRESETS["ethernet_10g"]'
        )
    if algorithm.waits is None:
        raise Refused(
            "the method does not say whom its workers wait for: an asynchronous one takes the clock itself, "
            "for example jd.downpour(rule, clock=clock); one of your own needs Algorithm(..., "
            "waits=jaxdist.waiting.everyone())"
        )
    if network is not None and algorithm.sends is None:
        raise Refused(
            "the method does not say how many bytes it sends, so that a network can not time it; "
            "write Algorithm(..., sends=...), or leave network out"
        )
