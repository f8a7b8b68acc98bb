"""Synchronous data parallelism: everybody takes the same step along the mean gradient."""

from typing import Never

import jax
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
    size_bytes,
)
from jaxdist.algorithms.membership import AVERAGED


def all_reduce(inner: optax.GradientTransformation, *others: Never) -> Algorithm:
    """Synchronous data parallelism: average the gradients, take one step together.

    With x the parameters that all workers share and f_i the loss on worker i's data,

        x(t+1) = x(t) + inner(1/W sum_i grad f_i(x(t)))      one step of any optax optimizer

    It is exactly the step of a single worker with all the data of the step in one batch. Clipping
    inside `inner` sees the mean gradient. Use it when the network is fast against the compute; it is
    what every other method is compared with. Workers with unequal numbers of examples average by
    the example when their batches come from `jd.data.deal`.

    Args:
      inner: the rule that turns the mean gradient into an update. It sees the mean gradient, runs
        once for all workers, and may have any memory.
      others: nothing; a topology is refused with the method that takes one.

    Returns:
      An `Algorithm`. shared: parameters and the state of `inner`. local: nothing.

    Raises:
      ValueError: `inner` is not an optax rule.

    Communication:
      Per step one all-reduce of size(params) bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.all_reduce(optax.sgd(0.25)), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(20):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.4f}")  # the mean of the four targets
      1.5000

    References:
      Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017.
      arXiv:1706.02677
    """
    refuse_others("all_reduce", others)
    check_rule("inner", inner)

    def init(params: Params) -> State:
        return State(jnp.int32(0), (params, inner.init(params)), ())

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state = state.shared

        # A line search inside `inner` sees the loss over all workers. Its gradient is given here,
        # because differentiating through a reduction would depend on the layout of the workers.
        @jax.custom_vjp
        def common(x: Params) -> jax.Array:
            return worker.mean(objective(worker.vary(x)))

        def forward(x: Params):
            loss, slope = jax.value_and_grad(objective)(worker.vary(x))
            return worker.mean(loss), reduction.mean(slope)

        common.defvjp(forward, lambda slope, g: (jax.tree.map(lambda s: g * s, slope),))

        params, inner_state = apply(
            inner,
            reduction.mean(grads),
            inner_state,
            params,
            value=worker.mean(value),
            objective=common,
        )
        return State(state.step + 1, (params, inner_state), ())

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=lambda params, step: size_bytes(params),
        waits=waiting.everyone(),
        resize=AVERAGED,
    )
