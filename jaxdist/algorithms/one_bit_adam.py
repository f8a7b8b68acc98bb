"""1-bit Adam: Adam until its second moment has settled, then momentum of one bit a number."""

from collections.abc import Callable
from typing import Any, Never

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist import faults, reduction, waiting, worker
from jaxdist.algorithms.base import Algorithm, Params, State, check_period, refuse_others
from jaxdist.algorithms.membership import REDUCED
from jaxdist.compress import error_feedback, sign


def one_bit_adam(
    learning_rate: float | Callable[[Any], Any],
    *others: Never,
    warmup_steps: int,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Algorithm:
    """1-bit Adam: exact Adam for `warmup_steps`, then a frozen second moment and compressed momentum.

    With g_i the gradient of worker i, m and v the moments that all workers share, T = warmup_steps and S
    the mean of payloads of `jd.compress.error_feedback(jd.compress.sign())`, k = t + 1,

        t < T     m <- b1 m + (1 - b1) mean g_i;   v <- b2 v + (1 - b2) (mean g_i)^2
        t >= T    m <- S(b1 m + (1 - b1) g_i)
        always    x <- x - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^min(k, T))) + eps)    where v > 0

    Adam is not linear in the gradient, but with v fixed it is, and errors that are remembered cancel.
    Both compressions, a worker's and that of the mean, have a residual. They are residuals of the momentum;
    where the learning rate is a schedule they are rescaled by lr(t - 1) / lr(t). A number whose second
    moment is still 0 at step T, as those of an embedding row that no example has used, stays where it is
    for good: a bit gives it a momentum all the same, and there is nothing to divide it by. Warm up until
    all that are to move have had gradients.

    Args:
      learning_rate: a number, or a schedule.
      others: nothing; a topology is refused with the method that takes one.
      warmup_steps: steps of exact Adam, at least 1; the paper takes 15 to 20 % of all steps.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      An `Algorithm`. shared: parameters and both moments. local: the residuals, of the parameters' size
      and of 1/W of it.

    Raises:
      Refused: a warm-up of less than one step; workers that may be away (`jd.faulty`).

    Communication:
      Per step an all-reduce of size(params) bytes during the warm-up, in at least float32 (twice that
      for bfloat16 parameters); after it one bit a number and a scale for each part, 4 bytes: of every
      leaf an all-to-all of W parts and an all-gather of one.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.one_bit_adam(0.1, warmup_steps=10), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(150):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.1f}")
      1.5

    References:
      Tang et al., 1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence
      Speed, ICML 2021. arXiv:2102.02888
    """
    refuse_others("one_bit_adam", others)
    check_period("warmup_steps", warmup_steps)
    schedule = learning_rate if callable(learning_rate) else None
    how = reduction.reducer(error_feedback(sign(), learning_rate=schedule))

    def init(params: Params) -> State:
        zeros = jax.tree.map(jnp.zeros_like, params)
        known, own = how.init(params)
        return State(jnp.int32(0), (params, zeros, zeros, known), own)

    def update(grads, state: State, *, key, value, objective) -> State:
        faults.refuse_away(
            "the second of its two compressions is shared out over all",
            "write jd.all_reduce(optax.adam(0.1))",
        )
        params, m, v, known = state.shared
        t = state.step

        def exact(rooms):
            grads, m, v, memory = rooms
            g = reduction.mean(grads)
            v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, g)
            return jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, g), v, memory

        def compressed(rooms):
            grads, m, v, memory = rooms
            ahead = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
            m, memory = how.mean(ahead, memory, key=key, step=t)
            return m, v, memory

        rooms = worker.vary(grads), m, v, (known, worker.vary(state.local))
        m, v, (known, own) = lax.cond(t < warmup_steps, exact, compressed, rooms)

        rate = schedule(t) if schedule else learning_rate

        def moved(x: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            wide = worker.accumulation_dtype(x.dtype)
            m, v = m.astype(wide), v.astype(wide)
            m = m / (1 - jnp.asarray(b1, wide) ** (t + 1).astype(wide))
            v = v / (1 - jnp.asarray(b2, wide) ** jnp.minimum(t + 1, warmup_steps).astype(wide))
            step = jnp.asarray(rate).astype(wide) * m / (jnp.sqrt(v) + eps)
            # Not v > 0: what is NaN shall be seen.
            return x - jnp.where(v == 0, 0, step).astype(x.dtype)

        params = jax.tree.map(moved, params, m, v)
        return State(t + 1, (params, m, v, known), own)

    exactly = reduction.reducer(None)

    def sends(params: Params, step: int) -> int:
        return (exactly if step < warmup_steps else how).bytes(params, step)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=sends,
        waits=waiting.everyone(),
        resize=REDUCED,
    )
