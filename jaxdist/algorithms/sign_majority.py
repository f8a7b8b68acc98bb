"""Sign descent by majority vote: one bit a number each way."""

from typing import Never

import jax.numpy as jnp
import optax

from jaxdist import reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    apply,
    check_rule,
    refuse_others,
)
from jaxdist.algorithms.membership import AVERAGED


def sign_majority(inner: optax.GradientTransformation, *others: Never) -> Algorithm:
    """signSGD with majority vote: every worker votes for a sign of every number of the gradient.

    With x the parameters that all workers share and g_i the gradient of worker i,

        x(t+1) = x(t) + inner(sign(sum_i sign(g_i)))

    A bit has no third value: the sign of 0 is +1, for a gradient of 0 and for a tied vote. All steps have the
    same size, so it needs a learning rate that falls; and where workers' data differ, the majority is
    not the mean: it settles where as many gradients point one way as the other. A gradient that is
    NaN has no sign: a byte beside the votes says so, and everybody's vote on that leaf is NaN.

    Args:
      inner: the rule that turns the vote, of +1 and -1, into an update. It runs once for all workers.
      others: nothing; a topology is refused with the method that takes one.

    Returns:
      An `Algorithm`. shared: parameters and the state of `inner`. local: nothing.

    Raises:
      Refused: `inner` is not an optax rule.

    Communication:
      Per step and leaf, of size n, with b = ceil(n / 8 W) + 1: an all-to-all of W b bytes, by which every
      worker counts the votes on its part, and an all-gather of b bytes.

    Example:
      Three of four workers want more than 1.5, one does not:

      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.sign_majority(optax.sgd(0.125)), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(12):
      ...     state, metrics = trainer.step(state, jnp.array([0.0, 2.0, 2.0, 2.0]))
      >>> print(f"{trainer.readout(state):.4f}")
      1.5000

    References:
      Bernstein et al., signSGD with Majority Vote is Communication Efficient and Fault Tolerant, ICLR
      2019. arXiv:1810.05291
    """
    refuse_others("sign_majority", others)
    check_rule("inner", inner)

    def init(params: Params) -> State:
        return State(jnp.int32(0), (params, inner.init(params)), ())

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state = state.shared
        vote = reduction.majority(grads)
        params, inner_state = apply(inner, vote, inner_state, params, value=worker.mean(value))
        return State(state.step + 1, (params, inner_state), ())

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=lambda params, step: reduction.majority_bytes(params),
        waits=waiting.everyone(),
        resize=AVERAGED,
    )
