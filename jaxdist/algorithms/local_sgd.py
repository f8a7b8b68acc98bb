"""Local SGD: steps on one's own data, and an average of all workers every so often."""

from typing import Literal, Never, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    apply,
    check_period,
    check_rule,
    local_init,
    refuse_others,
)
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.errors import Refused

Memory = Literal["kept", "averaged"]


def local_sgd(
    inner: optax.GradientTransformation,
    *others: Never,
    period: int,
    start: int = 0,
    memory: Memory = "kept",
) -> Algorithm:
    """Local SGD: `period` steps on one's own data, then everybody continues from the mean.

    With x_i the parameters of worker i and u_i the update of `inner` at step t = 0, 1, ...,

        h_i      = x_i + u_i
        x_i(t+1) = 1/W sum_j h_j    where period divides t + 1
                   h_i              elsewhere

    Before step `start` the gradients themselves are averaged (post-local SGD): the same start for
    everybody, then fewer messages. With period 1 and plain SGD it is `all_reduce`. The workers drift
    apart between two averages, which biases the result where their data differ; the bias falls with
    the learning rate and the period.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates.
      others: nothing; a topology is refused with the method that takes one.
      period: steps from one average to the next.
      start: for how many first steps gradients are averaged instead.
      memory: whether the floating-point state of `inner` (momentum) is `"kept"` by its worker or
        `"averaged"` along with the parameters.

    Returns:
      An `Algorithm`. shared: nothing. local: parameters and the state of `inner`.

    Raises:
      Refused: a period below 1, a start below 0, an unknown memory, a rule that is not optax's.

    Communication:
      size(params) bytes through one all-reduce every `period` steps (plus the state of `inner` where
      it is averaged), nothing in between; before `start`, size(params) bytes every step. What is below
      float32 is averaged in float32: 4 bytes a number.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.local_sgd(optax.sgd(0.1), period=4), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(40):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.3f}")
      1.500

    References:
      Stich, Local SGD Converges Fast and Communicates Little, ICLR 2019. arXiv:1805.09767
      Lin et al., Don't Use Large Mini-Batches, Use Local SGD, ICLR 2020. arXiv:1808.07217
    """
    refuse_others("local_sgd", others)
    check_rule("inner", inner)
    check_period("period", period)
    check_period("start", start, least=0)
    if memory not in get_args(Memory):
        raise Refused(f"memory={memory!r} is unknown; write one of {', '.join(get_args(Memory))}")

    def init(params: Params) -> State:
        return State(jnp.int32(0), (), (params, local_init(inner, params)))

    def averaged(local):
        params, inner_state = local
        params = worker.vary(reduction.mean(params))
        if memory == "averaged":
            floats, rest = _split(inner_state)
            inner_state = _join(worker.vary(reduction.mean(floats)), rest)
        return params, inner_state

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state = state.local
        t = state.step
        if start:
            grads = lax.cond(
                t < start, lambda g: worker.vary(reduction.mean(g)), lambda g: g, worker.vary(grads)
            )
        params, inner_state = apply(
            inner, grads, inner_state, params, value=value, objective=objective
        )
        local = worker.vary((params, inner_state))
        if period == 1:
            local = averaged(local)
        else:
            local = lax.cond((t + 1) % period == 0, averaged, lambda kept: kept, local)
        return State(t + 1, (), local)

    def sends(params: Params, step: int) -> int:
        synced = reduction.mean_bytes(params)
        if memory == "averaged":
            synced += reduction.mean_bytes(_split(jax.eval_shape(inner.init, params))[0])
        return reduction.mean_bytes(params) * (step < start) + synced * ((step + 1) % period == 0)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: reduction.mean(state.local[0]),
        sends=sends,
        waits=waiting.everyone(period=period, start=start),
        resize=AVERAGED,
    )


def _split(inner_state):
    """The leaves that have a mean, and everything else (counters, keys)."""
    leaves, structure = jax.tree.flatten(inner_state)
    floats = {
        i: x for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    }
    return floats, (leaves, structure)


def _join(floats, rest):
    leaves, structure = rest
    return jax.tree.unflatten(structure, [floats.get(i, x) for i, x in enumerate(leaves)])
