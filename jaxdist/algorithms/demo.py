"""DeMo: momenta stay apart, and only their largest frequencies travel."""

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
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.compress import dct_top_k


def demo(
    inner: optax.GradientTransformation,
    *others: Never,
    decay: float = 0.999,
    chunk: int = 64,
    keep: int = 8,
) -> Algorithm:
    """Decoupled momentum: each worker's momentum gives away its fast components, and keeps the rest.

    With g_i the gradient of worker i and C(m) the `keep` components of largest magnitude of every chunk
    of m in the discrete cosine transform,

        m_i <- decay m_i + g_i
        q_i  = C(m_i);   m_i <- m_i - q_i
        x   <- x + inner(1/W sum_i q_i)

    The momenta of the workers differ for ever, and what they have in common travels sooner or later. The
    reference implementation steps along the sign: `optax.chain(optax.scale_by_sign(), optax.sgd(lr))`.
    The learning rate stands outside the momentum, as in any rule with momentum: what was kept back is
    applied with the learning rate of the step in which it travels. Chunks are cut from each leaf laid
    flat; the paper cuts squares from matrices.

    Args:
      inner: the rule that turns the mean of what travels into an update. It runs once for all workers,
        and needs no momentum of its own.
      others: nothing; a topology is refused with the method that takes one.
      decay: of the momenta.
      chunk: numbers that are transformed together.
      keep: components of each chunk that travel.

    Returns:
      An `Algorithm`. shared: parameters and the state of `inner`. local: the momentum.

    Raises:
      Refused: a rule that is not optax's, or more components than a chunk has.

    Communication:
      Per step an all-gather of `jd.compress.dct_top_k(keep, chunk=chunk).bytes(params)` bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.demo(optax.sgd(0.02), decay=0.5, chunk=4, keep=1)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(4))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(16.0).reshape(4, 4) / 8)
      >>> bool(jnp.abs(trainer.readout(state) - jnp.arange(6.0, 10.0) / 8).max() < 0.2)
      True

    References:
      Peng, Quesnelle, Kingma, DeMo: Decoupled Momentum Optimization, 2024. arXiv:2411.19870
    """
    refuse_others("demo", others)
    check_rule("inner", inner)
    compressor = dct_top_k(keep, chunk=chunk)

    def init(params: Params) -> State:
        momentum = worker.vary(jax.tree.map(jnp.zeros_like, params))
        return State(jnp.int32(0), (params, inner.init(params)), momentum)

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state = state.shared
        momentum = jax.tree.map(lambda m, g: decay * m + g, state.local, grads)
        fast = reduction.average(momentum, compressor, key=key)
        momentum = jax.tree.map(jnp.subtract, momentum, fast.own)
        params, inner_state = apply(inner, fast.mean, inner_state, params, value=worker.mean(value))
        return State(state.step + 1, (params, inner_state), momentum)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=lambda params, step: compressor.bytes(params),
        waits=waiting.everyone(),
        resize=AVERAGED,
    )
