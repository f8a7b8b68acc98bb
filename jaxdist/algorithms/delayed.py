"""Delayed gradients: everybody's mean gradient arrives a fixed number of steps late."""

from typing import Never

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
    refuse_others,
)
from jaxdist.algorithms.membership import AVERAGED


def delayed(inner: optax.GradientTransformation, *others: Never, delay: int) -> Algorithm:
    """Delayed SGD: the step that is taken now uses the mean gradient of `delay` steps ago.

    With x the parameters that all workers share and f_i the loss on worker i's data,

        x(t+1) = x(t) + inner(1/W sum_i grad f_i(x(t - delay)))        x(s) = x(0) for s < 0

    It is asynchrony at its plainest: everybody is equally stale, always. Delay 0 is `all_reduce`.
    On f = h x^2 / 2 plain SGD is stable if and only if

        learning_rate h < 2 sin(pi / (2 (2 delay + 1)))

    that is 2, 1, 0.62, 0.45 for delays 0 to 3, and about pi / (2 delay) for long ones: a method that is
    stale by many versions needs a learning rate that is smaller by as much.

    Args:
      inner: the rule for the mean gradient. It runs once for all workers, sees the newest parameters,
        and may have any memory: momentum is that of the late gradients.
      others: nothing; a topology is refused with the method that takes one.
      delay: how many versions old the gradients are.

    Returns:
      An `Algorithm`. shared: the last delay + 1 parameters and the state of `inner`. local: nothing.

    Raises:
      Refused: a delay below 0, or a rule that is not optax's.

    Communication:
      Per step one all-reduce of size(params) bytes, in at least float32: twice that for bfloat16
      parameters.

    Example:
      Just below the bound for two steps of delay, and just above it:

      >>> import jaxdist as jd
      >>> loss = lambda x, batch, key: (0.5 * x**2, {})
      >>> for learning_rate in (0.6, 0.64):
      ...     algorithm = jd.delayed(optax.sgd(learning_rate), delay=2)
      ...     trainer = jd.execute(algorithm, loss, workers=1)
      ...     state = trainer.init(jnp.ones(()))
      ...     state, metrics = trainer.steps(state, jnp.zeros((400, 1)))
      ...     print(f"{learning_rate}: {abs(trainer.readout(state)) < 1}")
      0.6: True
      0.64: False

    References:
      Langford, Smola, Zinkevich, Slow Learners are Fast, NeurIPS 2009. arXiv:0911.0491
    """
    refuse_others("delayed", others)
    check_rule("inner", inner)
    check_period("delay", delay, least=0)

    # Slot s mod (delay + 1) holds x(s): the oldest one, x(t - delay), is where x(t + 1) will go.
    def at(history: Params, step: jax.Array) -> Params:
        slot = step % (delay + 1)
        return jax.tree.map(lambda h: lax.dynamic_index_in_dim(h, slot, keepdims=False), history)

    def init(params: Params) -> State:
        history = jax.tree.map(lambda x: jnp.stack([x] * (delay + 1)), params)
        return State(jnp.int32(0), (history, inner.init(params)), ())

    def update(grads, state: State, *, key, value, objective) -> State:
        history, inner_state = state.shared
        t = state.step
        x, inner_state = apply(
            inner, reduction.mean(grads), inner_state, at(history, t), value=worker.mean(value)
        )
        slot = (t + 1) % (delay + 1)
        history = jax.tree.map(
            lambda h, x: lax.dynamic_update_index_in_dim(h, x, slot, 0), history, x
        )
        return State(t + 1, (history, inner_state), ())

    return Algorithm(
        init=init,
        gradient_at=lambda state: at(state.shared[0], state.step + 1),
        update=update,
        readout=lambda state: at(state.shared[0], state.step),
        sends=lambda params, step: reduction.mean_bytes(params),
        resize=AVERAGED,
        waits=waiting.everyone(),
    )
