"""Methods of stale workers and one server: what they have in common, whatever is pushed and pulled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist import presence, worker
from jaxdist.algorithms.arrivals import arrives, enter, open_book, reopen, report
from jaxdist.algorithms.base import Algorithm, Params, Resize, State
from jaxdist.algorithms.membership import averaged, recut
from jaxdist.algorithms.server import Server
from jaxdist.clock import Clock
from jaxdist.errors import Refused


def check_clock(method: str, clock: Any) -> None:
    """Refuses what is not a clock."""
    if not isinstance(clock, Clock):
        raise Refused(
            f"{method} needs a clock and was given {clock!r}; write for example "
            "clock=jd.clock.speeds([1.0, 1.0, 1.0, 0.25]), one speed for each worker"
        )


def served(
    server: Server,
    clock: Clock,
    *,
    method: str,
    parts: int = 1,
    bound: int | None = None,
    push_every: int = 1,
    pull_every: int = 1,
    pushed: Callable[[Params, Params], tuple[Params, ...]] = lambda grads, copy: (grads,),
    pulled: Callable[..., Params] = lambda key, new, old: new,
) -> Algorithm:
    """An algorithm whose workers compute at stale copies and push to a server when they arrive.

    Args:
      server: where its parameters are and what it does with a push.
      clock: who arrives when.
      method: whose.
      parts: how many pytrees a push consists of.
      bound: by how many gradients a worker may lead the slowest; None: nobody waits.
      push_every: of how many gradients a push is the sum.
      pull_every: gradients from one pull to the next.
      pushed: `pushed(gradients, copy)` -> what a worker sends.
      pulled: `pulled(key, new, old)` -> the copy that it goes on with.

    Returns:
      An `Algorithm`. shared: what the server shares, and the book of arrivals. local: the copy, the sum
      of gradients not yet pushed where push_every is above 1, and a share of a sharded server.

    Communication:
      The server's.

    Example:
      >>> import jaxdist as jd, optax
      >>> from jaxdist.algorithms.server import make_server
      >>> clock = jd.clock.constant(4)
      >>> server = make_server(optax.sgd(0.1), "replicated", workers=4)
      >>> served(server, clock, method="mine").sends(jnp.ones(5), 0)
      20

    References:
      Li et al., Scaling Distributed Machine Learning with the Parameter Server, OSDI 2014.
    """

    def init(params: Params) -> State:
        shared, local = server.init(params)
        sums = jax.tree.map(jnp.zeros_like, params) if push_every > 1 else ()
        return State(jnp.int32(0), (shared, open_book(clock)), (params, sums, local))

    def update(grads, state: State, *, key, value, objective) -> State:
        shared, book = state.shared
        copy, sums, local = state.local
        tick, times = clock.tick(book.times, bound=bound, alive=presence.alive())
        pushes = times.counts % push_every == 0
        pull_at = jnp.where(times.counts % pull_every == 0, tick.begins, clock.size)
        turn, book = enter(book, tick, times, pushes=pushes, pull_at=pull_at)
        me = worker.index()
        if push_every > 1:
            grads = jax.tree.map(jnp.add, sums, grads)
            sums = jax.tree.map(lambda g: jnp.where(turn.pushes[me], jnp.zeros_like(g), g), grads)
        shared, local, new = server.serve(shared, local, pushed(grads, copy), copy, turn)
        copy = pulled(jax.random.fold_in(key, me), new, copy)
        return State(state.step + 1, (shared, book), (copy, sums, local))

    def resized(state: State, fresh: State) -> State:
        shared, book = state.shared
        _, sums, local = state.local
        copy, unpushed, own = fresh.local
        # A push is a sum: what is not pushed yet keeps its sum over all workers.
        share = len(state.shared[1].pulled) / len(fresh.shared[1].pulled)
        sums = jax.tree.map(lambda x: (x * share).astype(x.dtype), averaged(sums, unpushed))
        shared = shared, reopen(clock, book, fresh.shared[1])
        return State(state.step, shared, (copy, sums, recut(local, own)))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: server.readout(state.shared[0], state.local[2], state.local[0]),
        active=lambda state: arrives(clock, state.shared[1].times, bound=bound),
        sends=lambda params, step: server.sends(params, parts),
        report=lambda state: report(state.shared[1]),
        resize=Resize(
            resized,
            "the server goes on, and simulated time with it; everybody pulls, begins anew and will push "
            "its part of what was not pushed",
        ),
        method=method,
    )
