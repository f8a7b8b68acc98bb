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
)
from jaxdist.algorithms.membership import REDUCED
from jaxdist.compress import Compressor, Feedback, PowerSGD
from jaxdist.errors import Refused


def all_reduce(
    inner: optax.GradientTransformation,
    *others: Never,
    compressor: Compressor | Feedback | None = None,
    reducer: PowerSGD | None = None,
) -> Algorithm:
    """Synchronous data parallelism: average the gradients, take one step together.

    With x the parameters that all workers share and f_i the loss on worker i's data,

        x(t+1) = x(t) + inner(1/W sum_i grad f_i(x(t)))      one step of any optax optimizer

    It is exactly the step of a single worker with all the data of the step in one batch. Clipping
    inside `inner` sees the mean gradient. Use it when the network is fast against the compute; it is
    what every other method is compared with. Workers with unequal numbers of examples average by
    the example when their batches come from `jd.data.deal`.

    With a compressor the mean is made of payloads. Quantizers and signs: every worker gets a part of
    everybody's gradient, averages in at least float32, compresses the mean again and hands it to all, so
    that the error is that of two compressions. `random_k`: one key for all, and the numbers it picks are
    all-reduced. `top_k`: everybody gathers all payloads. A memory (`error_feedback`, `ef21`) remembers
    gradients, before `inner`; see there what that means where a learning rate moves.

    Args:
      inner: the rule that turns the mean gradient into an update. It sees the mean gradient, runs
        once for all workers, and may have any memory.
      others: nothing; a topology is refused with the method that takes one.
      compressor: what travels, for example `jd.compress.int8()` or
        `jd.compress.error_feedback(jd.compress.top_k(0.01))`; None: the arrays.
      reducer: `jd.compress.power_sgd(rank)`: two small dependent reductions in place of a large one.

    Returns:
      An `Algorithm`. shared: parameters and the state of `inner`; what all know of a memory. local:
      what each remembers for itself, if anything.

    Raises:
      Refused: `inner` is not an optax rule; a compressor that is none, or both a compressor and a
        reducer.

    Communication:
      Per step one all-reduce of size(params) bytes, in at least float32: twice that for bfloat16
      parameters. Compressed, with p = compressor.bytes(gradients):
      one all-gather of p (`top_k`), one all-reduce of p without its seed (`random_k`), or, of the parts of
      1/W of every leaf, an all-to-all of W payloads and an all-gather of one. Small leaves do not gain:
      each part has a scale of its own. `power_sgd`: rank x (rows + columns) numbers for every matrix.

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
    if isinstance(compressor, PowerSGD):
        raise Refused(
            f"jd.all_reduce was given compressor={compressor!r}, which reduces in two steps; "
            f"write reducer=jd.compress.{compressor!r}"
        )
    if reducer is not None and (compressor is not None or not isinstance(reducer, PowerSGD)):
        raise Refused(
            f"jd.all_reduce was given compressor={compressor!r} and reducer={reducer!r}; write either "
            "compressor=jd.compress.top_k(0.01) or the like, or reducer=jd.compress.power_sgd(4)"
        )
    how = reduction.reducer(compressor if reducer is None else reducer)

    def init(params: Params) -> State:
        shared, local = how.init(params)
        return State(jnp.int32(0), (params, inner.init(params), shared), local)

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state, known = state.shared
        grads, (known, own) = how.mean(grads, (known, state.local), key=key, step=state.step)

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
            grads,
            inner_state,
            params,
            value=worker.mean(value),
            objective=common,
        )
        return State(state.step + 1, (params, inner_state, known), own)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=how.bytes,
        waits=waiting.everyone(),
        resize=REDUCED,
    )
