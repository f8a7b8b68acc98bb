"""A parameter server inside one program: pushes are taken one after another, as they arrive.

Who arrives when is told by a clock, which all workers compute alike, so the order costs no message.
The server either stands on every device, which then receives every push, or is split into equal
shares, one a worker: then a push travels by all-to-all, and every share runs the same arrivals on its
own part of the parameters.

Li et al., Scaling Distributed Machine Learning with the Parameter Server, OSDI 2014.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import buckets, faults, worker
from jaxdist.algorithms.base import Params, PyTree, apply, size_bytes
from jaxdist.algorithms.elementwise import check_elementwise
from jaxdist.algorithms.shares import join, split
from jaxdist.errors import Refused

Placement = Literal["replicated", "sharded"]


class Turn(NamedTuple):
    """What the server does in one step, known to all workers.

    Attributes:
      order: int32 [W], the workers by arrival; idle ones come last.
      arrivals: int32 (), how many of them arrive.
      pushes: bool [W], who brings a push when it arrives.
      pull_at: int32 [W], after which arrival (from 0) a worker takes the server's parameters; W: it
        does not.
    """

    order: jax.Array
    arrivals: jax.Array
    pushes: jax.Array
    pull_at: jax.Array


class Server(NamedTuple):
    """Where the server's parameters are.

    Attributes:
      init: parameters -> what is shared, what is local.
      serve: `serve(shared, local, pushed, copy, turn)` -> shared, local, and this worker's copy after
        its pull. `pushed` is a tuple of pytrees like the parameters.
      readout: shared, local, copy -> the server's parameters.
      sends: parameters, number of pytrees in a push -> bytes out of one worker in a step.
    """

    init: Callable[[Params], tuple[PyTree, PyTree]]
    serve: Callable[..., tuple[PyTree, PyTree, Params]]
    readout: Callable[[PyTree, PyTree, Params], Params]
    sends: Callable[[Params, int], int]


def make_server(
    inner: optax.GradientTransformation,
    placement: Placement,
    *,
    workers: int,
    gradient: Callable[..., PyTree] = lambda x, g: g,
) -> Server:
    """A server that runs `inner` once for every push.

    Args:
      inner: the rule; elementwise where the server is sharded.
      placement: `"replicated"`, or `"sharded"`: every worker holds 1/W of it.
      workers: how many there are.
      gradient: `gradient(x, *pushed)` -> what `inner` gets, x being the server's parameters when the
        push arrives; elementwise.

    Raises:
      Refused: an unknown placement, or a rule that is not elementwise on a sharded server.
    """
    if placement not in get_args(Placement):
        raise Refused(
            f"server={placement!r} is unknown; write one of {', '.join(get_args(Placement))}"
        )
    if placement == "replicated":
        return _replicated(inner, gradient)
    check = partial(
        check_elementwise, inner, where="a sharded server", instead="server='replicated'"
    )
    check()
    return _sharded(inner, gradient, workers, check)


def _replicated(inner: optax.GradientTransformation, gradient: Callable[..., PyTree]) -> Server:
    def serve(shared, local, pushed, copy, turn):
        buffers, restore = buckets.pack(pushed)
        everyones = worker.gather(buffers)
        me = worker.index()

        def pushed_by(i):
            return restore([lax.dynamic_index_in_dim(b, i, keepdims=False) for b in everyones])

        def pull(pulls, x, copy):
            return jax.tree.map(lambda new, old: jnp.where(pulls[me], new, old), x, copy)

        def step(server, i):
            x, inner_state = server
            return apply(inner, gradient(x, *pushed_by(i)), inner_state, x)

        shared, copy = _in_order(turn, step, pull, shared, worker.vary(copy))
        return shared, local, copy

    return Server(
        init=lambda params: ((params, inner.init(params)), ()),
        serve=serve,
        readout=lambda shared, local, copy: shared[0],
        sends=lambda params, parts: parts * size_bytes(params),
    )


def _sharded(
    inner: optax.GradientTransformation,
    gradient: Callable[..., PyTree],
    workers: int,
    check: Callable[..., None],
) -> Server:
    def init(params):
        own = [rows[worker.index()] for rows in split(params, workers)]
        dtypes = [x.dtype for x in own]
        check(params, own, of=[dtypes.index(x.dtype) for x in jax.tree.leaves(params)])
        return (), worker.vary((own, inner.init(own)))

    def serve(shared, local, pushed, copy, turn):
        faults.refuse_away(
            "a share of a sharded server is at one worker only", 'write server="replicated"'
        )
        # Row i of each: what worker i pushes to this worker's share.
        everyones = [worker.exchange(split(one, workers)) for one in pushed]

        def pull(pulls, x, copies):
            return jax.tree.map(
                lambda new, old: jnp.where(pulls[:, None], new[None], old), x, copies
            )

        def step(server, i):
            x, inner_state = server
            mine = [
                [lax.dynamic_index_in_dim(rows, i, keepdims=False) for rows in one]
                for one in everyones
            ]
            return worker.vary(apply(inner, gradient(x, *mine), inner_state, x))

        copies = worker.vary([jnp.zeros_like(rows) for rows in everyones[0]])
        local, copies = _in_order(turn, step, pull, local, copies)
        pulled = join(worker.exchange(copies), copy)
        pulls = turn.pull_at[worker.index()] < workers
        copy = jax.tree.map(lambda new, old: jnp.where(pulls, new, old), pulled, copy)
        return shared, local, copy

    def sends(params, parts):
        rows = jax.eval_shape(lambda p: split(p, workers), params)
        return (parts + 1) * size_bytes(rows)

    return Server(
        init=init,
        serve=serve,
        readout=lambda shared, local, copy: join(worker.gather(local[0]), copy),
        sends=sends,
    )


def _in_order(turn: Turn, step, pull, server: PyTree, copies: PyTree) -> tuple[PyTree, PyTree]:
    """One arrival after another; only as many trips as there are arrivals."""

    def arrival(k, carry):
        server, copies = carry
        i = turn.order[k]
        server = lax.cond(
            turn.pushes[i], lambda server: step(server, i), lambda server: server, server
        )
        return server, pull(turn.pull_at == k, server[0], copies)

    return lax.fori_loop(0, turn.arrivals, arrival, (server, copies))
