"""Gradient tracking: each worker follows the mean gradient of all, and steps along that."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from jaxdist import compensated, mixing, reduction, waiting
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    check_rule,
    local_init,
    size_bytes,
    updates,
)
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.algorithms.neighbors import check_columns, exchanges
from jaxdist.algorithms.push_sum import quotient, unit_weight
from jaxdist.compensated import Sum, nothing, plus
from jaxdist.errors import Refused
from jaxdist.topology import Topology

Order = Literal["adapt_then_combine", "combine_while_adapt", "push_diging"]


def gradient_tracking(
    inner: optax.GradientTransformation,
    topology: Topology,
    *,
    order: Order = "adapt_then_combine",
) -> Algorithm:
    """Gradient tracking: gossip whose fixed point is the minimizer, however unlike the data are.

    Beside its parameters x_i a worker keeps a tracker y_i, which the gossip of gradients and their
    differences keeps near the mean gradient, and which `inner` gets in place of the gradient. With
    g_i(t) the gradient at x_i, u_i = inner(y_i(t)), and y_i(0) = g_i(0), unmixed,

        adapt_then_combine    y(t) = W(t-1) (y(t-1) + g(t) - g(t-1));  x(t+1) = W(t) (x + u)
        combine_while_adapt   y(t) = W(t-1) y(t-1) + g(t) - g(t-1);    x(t+1) = W(t) x + u
        push_diging           y(t) = W(t-1) y(t-1) + g(t) - g(t-1);    x(t+1) = W(t) (x + u)

    The mean of the trackers is the mean of the gradients at every step, so the mean of the parameters
    takes the step of the mean gradient. Where all agree and that mean vanishes nothing moves: the
    bias that gossip keeps under a fixed rate is gone. The first order bears the largest rates; the
    other two need one exchange a step rather than two in a row. `combine_while_adapt` is DIGing.

    Graphs may be directed and vary. On a matrix of which only the columns sum to one, x is the
    quotient n / w of push-sum, n and y go the way of the rule above, and w(t+1) = W(t) w: then the
    third order is push-DIGing as published. It needs a smaller rate the more unlike the weights are.

    Args:
      inner: the local rule. It sees the tracker, so a memory in it is one of the mean gradient, nearly
        the same for all workers; the minimizer stays the fixed point of any rule that rests where
        its gradients vanish. It never communicates.
      topology: who listens to whom; its columns sum to one.
      order: as above.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters (numerators and a weight where only columns
      sum to one), what exchanges have changed in the tracker (twice in at least float32, a sum and what
      rounding drops of it, which would be lost to the mean for ever) and the state of `inner`.

    Raises:
      Refused: an unknown order, a rule that is not optax's, a row-stochastic topology, or a round
        in which a worker gets nothing.

    Communication:
      Per step, twice size(params) bytes out of every worker for each permutation of the round, and
      the weight where there is one.

    Example:
      Four workers on a ring, each pulling to a target of its own; no spread is left:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.gradient_tracking(optax.sgd(0.05), jd.topology.ring(4))
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> points = trainer.gradient_at(state)
      >>> print(f"mean {trainer.readout(state):.3f}, spread {points.max() - points.min():.3f}")
      mean 1.500, spread 0.000

    References:
      Nedic, Olshevsky and Shi, Achieving Geometric Convergence for Distributed Optimization over
      Time-Varying Graphs, 2017 (DIGing, push-DIGing). arXiv:1607.03218
      Xu et al., Augmented Distributed Gradient Methods for Multi-Agent Optimization, CDC 2015.
      Pu and Nedic, Distributed Stochastic Gradient Tracking Methods, 2021. arXiv:1805.11454
    """
    check_rule("inner", inner)
    check_columns("gradient_tracking", topology)
    if order not in get_args(Order):
        raise Refused(f"order={order!r} is unknown; write one of {', '.join(get_args(Order))}")
    adapt_first = order != "combine_while_adapt"
    weighted = topology.stochastic == "column"

    def point(state: State) -> Params:
        n, w = state.local[0]
        return quotient(n, w) if weighted else n

    def init(params: Params) -> State:
        held = params, unit_weight(params) if weighted else ()
        return State(jnp.int32(0), (), (held, nothing(params), local_init(inner, params)))

    def update(grads, state: State, *, key, value, objective) -> State:
        (n, w), rest, inner_state = state.local
        t = state.step
        # From nothing at step 0: y_0 = g_0.
        y = jax.tree.map(lambda high, low, g: _add(high, g) + low, *rest, grads)
        change = nothing(n)
        if order == "adapt_then_combine":
            change = mixing.change(_message(y, grads), topology, t - 1)
            change = jax.tree.map(lambda x: jnp.where(t == 0, jnp.zeros_like(x), x), change)
            y = jax.tree.map(_add, y, compensated.value(change))
        u, inner_state = updates(
            inner, _message(y, grads), inner_state, point(state), value=value, objective=objective
        )
        moved = optax.apply_updates(n, u)
        sent = moved if adapt_first else n
        if order == "adapt_then_combine":
            dn, dw = compensated.value(mixing.change((sent, w), topology, t))
        else:
            # Both in one exchange; the tracker is mixed here for the step to come.
            (own, high), (other, low) = mixing.change(((sent, w), _message(y, grads)), topology, t)
            (dn, dw), change = compensated.value(Sum(own, other)), Sum(high, low)
        # y(t) - g(t) is y(t-1) - g(t-1) and what the exchange has changed.
        rest = plus(rest, change)
        n = jax.tree.map(lambda x, d: _add(d, x).astype(x.dtype), moved, dn)
        w = jax.tree.map(jnp.add, w, dw)
        return State(t + 1, (), ((n, w), rest, inner_state))

    def readout(state: State) -> Params:
        n, w = reduction.mean(state.local[0])
        return quotient(n, w) if weighted else n

    def sends(params: Params, step: int) -> int:
        tracker = exchanges(topology, step - 1 if order == "adapt_then_combine" else step)
        weight = size_bytes(jax.eval_shape(unit_weight, params)) if weighted else 0
        own = exchanges(topology, step) * (size_bytes(params) + weight)
        return own + tracker * size_bytes(params)

    return Algorithm(
        init=init,
        gradient_at=point,
        update=update,
        readout=readout,
        sends=sends,
        resize=AVERAGED,
        waits=waiting.neighbors(topology),
    )


def _add(wide: jax.Array, x: jax.Array) -> jax.Array:
    return wide + x.astype(wide.dtype)


def _message(y: Any, grads: Any) -> Any:
    """The tracker as it is sent and as `inner` sees it: in the type of the gradients."""
    return jax.tree.map(lambda y, g: y.astype(g.dtype), y, grads)
