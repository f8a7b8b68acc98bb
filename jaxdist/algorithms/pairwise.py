"""AD-PSGD: no server and no common step; whoever is ready averages with a neighbor and goes on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import mixing, presence, reduction, worker
from jaxdist.algorithms.arrivals import arrives, check_size
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    Resize,
    State,
    apply,
    check_rule,
    local_init,
    size_bytes,
)
from jaxdist.algorithms.membership import averaged
from jaxdist.algorithms.neighbors import check_doubly_stochastic, exchanges
from jaxdist.algorithms.served import check_clock
from jaxdist.clock import Clock, Times
from jaxdist.errors import Refused
from jaxdist.topology import Topology
from jaxdist.topology.matcha import matchings
from jaxdist.topology.rounds import metropolis


class Meetings(NamedTuple):
    """What is known of everybody without a message.

    Attributes:
      times: of the clock.
      missed: int32 [W], how often others have averaged with a worker since it took its copy.
      staleness: int32 [4 W], how many gradients had missed 0, 1, ... such averages; the last entry
        counts all that had missed more.
    """

    times: Times
    missed: jax.Array
    staleness: jax.Array


def pairwise(inner: optax.GradientTransformation, topology: Topology, *, clock: Clock) -> Algorithm:
    """Asynchronous decentralized SGD: a worker that is ready meets one neighbor, nobody waits.

    With x_i the parameters of worker i, y_i the copy that it took when it began its gradient, P(t) the
    pairs of step t and u_i the update of `inner` for grad f_i(y_i),

        x_i <- sum_j P(t)_ij x_j        if i or its partner has finished a gradient: half and half
        x_i <- x_i + u_i;  y_i <- x_i   if i has

    A step is one tick of the clock: everybody who finishes before somebody finishes for the second
    time. A partner that is still computing is averaged with all the same, so that its gradient, when
    it comes, belongs to an older copy than what it is applied to. That is why a slow worker holds up
    nobody. Where everybody finishes in every step it is `gossip` in the order
    `combine_while_adapt`. A pair meets once in a step, even if both have finished.

    After every step it reports `staleness`, int32 [4 W]: how many gradients so far had missed 0, 1,
    ... averages with others when they were applied; and `simulated_seconds`. With one worker a
    device an idle worker computes nothing; with lanes its gradient is computed and masked.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates; its memory stays
        with the worker and steps only when the worker does.
      topology: rounds of pairs, for example `jd.topology.random_matching(8, 16, seed=0)` or
        `jd.topology.one_peer_hypercube(8)`, one round a step; or one undirected graph, whose links
        are split into rounds of pairs that take turns.
      clock: how long everybody's gradients take; its size is the number of workers.

    Returns:
      An `Algorithm`. shared: the clock and the staleness. local: parameters, the copy, and the state
      of `inner`.

    Raises:
      Refused: a directed topology, rounds in which somebody meets several others, no clock, a clock
        of another size, or a rule that is not optax's.

    Communication:
      Per step, size(params) bytes out of every worker to its partner, whether the pair meets or not: a
      program's permutes are fixed when it is compiled. The readout is one all-reduce.

    Example:
      >>> import jax.numpy as jnp, optax, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> clock = jd.clock.speeds([1.0, 1.0, 1.0, 1.0])
      >>> algorithm = jd.pairwise(optax.sgd(0.05), jd.topology.ring(4), clock=clock)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.steps(state, jnp.tile(jnp.arange(4.0), (200, 1)))
      >>> print(f"{trainer.readout(state):.2f}")
      1.50

    References:
      Lian et al., Asynchronous Decentralized Parallel Stochastic Gradient Descent, ICML 2018.
      arXiv:1710.06952
    """
    check_rule("inner", inner)
    pairs = _in_pairs(topology)
    check_clock("pairwise", clock)
    partners = np.stack([_partners(pairs, t) for t in range(pairs.period)])

    def init(params: Params) -> State:
        check_size(clock)
        none, bins = jnp.zeros(clock.size, jnp.int32), jnp.zeros(4 * clock.size, jnp.int32)
        local = params, params, local_init(inner, params)
        return State(jnp.int32(0), Meetings(clock.start(), none, bins), local)

    def update(grads, state: State, *, key, value, objective) -> State:
        times, missed, staleness = state.shared
        x, copy, inner_state = state.local
        t, me = state.step, worker.index()
        alive = presence.alive()
        tick, times = clock.tick(times, alive=alive)
        active = tick.active
        meets = active | active[jnp.asarray(partners)[t % pairs.period]]
        meets = meets if alive is None else meets & alive

        moved, moved_state = apply(inner, grads, inner_state, x, value=value, objective=objective)

        def met(mixed: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
            x = jnp.where(meets[me], mixed, old)
            return jnp.where(active[me], x + (new - old), x)

        def where_active(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(active[me], new, old), new, old)

        x = jax.tree.map(met, mixing.mix(x, pairs, t), x, moved)
        local = x, where_active(x, copy), where_active(moved_state, inner_state)

        bins = jnp.minimum(missed, len(staleness) - 1)
        staleness = staleness.at[bins].add(active.astype(jnp.int32))
        missed = jnp.where(active, 0, missed + meets.astype(jnp.int32))
        return State(t + 1, Meetings(times, missed, staleness), local)

    def resized(state: State, fresh: State) -> State:
        x, _, inner_state = averaged(state.local, fresh.local)
        meetings = fresh.shared._replace(times=clock.afresh(state.shared.times))
        return State(state.step, meetings, (x, x, inner_state))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[1],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        active=lambda state: arrives(clock, state.shared.times),
        sends=lambda params, step: exchanges(pairs, step) * size_bytes(params),
        report=lambda state: {
            "simulated_seconds": state.shared.times.now,
            "staleness": state.shared.staleness,
        },
        resize=Resize(
            resized,
            "simulated time goes on; everybody begins anew at the workers' mean parameters with their "
            "mean memory",
        ),
    )


def _in_pairs(topology: Topology) -> Topology:
    """The topology as rounds in which nobody meets more than one other."""
    check_doubly_stochastic("pairwise", topology)
    if topology.symmetric and topology.degree <= 1:
        return topology
    if topology.directed or topology.period > 1:
        raise Refused(
            f"pairwise lets everybody meet at most one other in a step, and in {topology!r} that is not "
            f"so; write jd.topology.random_matching({topology.size}, 16, seed=0), or an undirected graph "
            f"such as jd.topology.ring({topology.size}), whose links take turns"
        )
    rounds = [metropolis(p[:, 0], p[:, 1], size=topology.size) for p in matchings(topology)]
    return Topology(f"pairs of {topology.name}", tuple(rounds))


def _partners(pairs: Topology, step: int) -> np.ndarray:
    """For each worker whom it meets; itself where nobody."""
    met = pairs.neighbors(step)
    return np.array([others[0] if others else i for i, others in enumerate(met)], np.int32)
