"""Decentralized SGD: no server, no global reduction, every worker averages with its neighbors."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from jaxdist import compensated, mixing, reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    apply,
    check_rule,
    local_init,
    size_bytes,
)
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.algorithms.neighbors import check_doubly_stochastic, exchanges, rounds
from jaxdist.compress.base import Compressor, check_compressor
from jaxdist.errors import Refused
from jaxdist.topology import Topology

Order = Literal["adapt_then_combine", "combine_then_adapt", "combine_while_adapt"]


def gossip(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    order: Order = "adapt_then_combine",
    compressor: Compressor | None = None,
) -> Algorithm:
    """Decentralized SGD: take a local step, then average with your neighbors.

    With x_i the parameters of worker i, u_i(y) the update that `inner` returns for the gradient of
    worker i at y, and W(t) the topology's mixing matrix,

        adapt_then_combine     x_i(t+1) = sum_j W(t)_ij (x_j + u_j(x_j))
        combine_then_adapt     y_i = sum_j W(t)_ij x_j;   x_i(t+1) = y_i + u_i(y_i)
        combine_while_adapt    x_i(t+1) = sum_j W(t)_ij x_j + u_i(x_i)

    There is no server and no global reduction: a worker needs only those it listens to at step t.
    The workers' mean moves by the mean of their updates; their disagreement shrinks by
    1 - spectral_gap a step, down to a floor set by the step size and by how different their data
    are. The three orders have three different floors. `combine_while_adapt` is D-PSGD as published:
    what it sends does not depend on the gradient, so the exchange can hide behind the backward
    pass (where the graph varies, with `jd.execute(..., overlap=True)`: docs/overlap.md).

    With a compressor C only payloads travel, and

        sum_j W(t)_ij h_j    becomes    h_i + sum_j W(t)_ij C(h_j) - C(h_i)

    which leaves the mean of the workers as it is, whatever C does, and is the same without C. The error
    of C is one of parameters, not of steps: with a coarse C it never settles. `choco` remembers what
    it sent, and does.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates; its memory stays
        with the worker.
      topology: who listens to whom, doubly stochastic; its size is the number of workers.
      order: when to average, as above.
      compressor: what travels, for example `jd.compress.cast(jnp.bfloat16)`; None: the arrays.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters (for `combine_then_adapt` the combined y,
      at which the next gradient is taken), the state of `inner` and, with a compressor, what
      rounding drops: one more array of size(params), float32 at least.

    Raises:
      Refused: an unknown order, a rule that is not optax's, or a topology whose rows or columns do
        not sum to one (then the mean of the workers would drift); a compressor with a memory.

    Communication:
      Per step, size(params) bytes, or those of its payload, `compressor.bytes(params)`, out of every
      worker for each neighbor it listens to. The readout
      is one all-reduce of size(params) bytes.

    Example:
      Four workers on a ring, each pulling to a target of its own; the spread that is left:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.gossip(optax.sgd(0.05), jd.topology.ring(4))
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(100):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      mean 1.500, spread 0.121

    References:
      Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017.
      arXiv:1705.09056
      Sayed, Adaptation, Learning, and Optimization over Networks, 2014 (the orders and their names).
    """
    check_rule("inner", inner)
    check_doubly_stochastic("gossip", topology)
    if order not in get_args(Order):
        raise Refused(f"order={order!r} is unknown; write one of {', '.join(get_args(Order))}")
    if compressor is not None:
        check_compressor("jd.gossip", compressor)

    ahead = 1 if order == "combine_then_adapt" else 0
    early = order == "combine_while_adapt"

    def init(params: Params) -> State:
        rest = () if compressor is None else (worker.vary(compensated.nothing(params).low),)
        return State(jnp.int32(0), (), (params, local_init(inner, params), *rest))

    def update(grads, state: State, *, key, value, objective, branch=None) -> State:
        params, inner_state, *rest = state.local
        moved, inner_state = apply(
            inner, grads, inner_state, params, value=value, objective=objective
        )
        # combine_then_adapt keeps the next point y instead of x: nobody may communicate between steps.
        t = state.step + ahead
        if compressor is not None:
            # Payloads never come to rest: what rounding drops at every step would move the mean.
            spoken = params if early else moved
            change, _ = mixing.change_compressed(
                spoken, topology, t, compressor=compressor, key=key
            )
            new, low = compensated.moved(moved, rest[0], change)
            return State(state.step + 1, (), (new, inner_state, low))
        if early:
            mixed = mixing.mix(params, topology, t, branch=branch)
            new = jax.tree.map(lambda m, new, old: m + (new - old), mixed, moved, params)
        else:
            new = mixing.mix(moved, topology, t)
        return State(state.step + 1, (), (new, inner_state))

    def sends(params: Params, step: int) -> int:
        payload = size_bytes(params) if compressor is None else compressor.bytes(params)
        return exchanges(topology, step + ahead) * payload

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=sends,
        waits=waiting.neighbors(topology, ahead=ahead, overlaps=early),
        resize=AVERAGED,
        branches=rounds(topology) if early and compressor is None else None,
    )
