"""Slow momentum: what the workers' mean moved in a round goes through a momentum of its own."""

from collections.abc import Callable
from typing import Any, Never

import jax
import jax.numpy as jnp
import optax

from jaxdist.algorithms.base import Algorithm, check_fraction, check_period, refuse_others
from jaxdist.algorithms.diloco import diloco
from jaxdist.errors import Refused


def slow_momentum(
    inner: optax.GradientTransformation,
    *others: Never,
    period: int,
    learning_rate: float | Callable[[Any], Any],
    slow_learning_rate: float = 1.0,
    slow_momentum: float = 0.7,
) -> Algorithm:
    """SlowMo: `period` local steps, then a momentum step along the displacement of the mean.

    With z the slow parameters, x_i those of worker i, u_i the update of `inner`, lr the learning rate
    of `inner`, a = `slow_learning_rate` and b = `slow_momentum`,

        x_i <- x_i + u_i                        every step
        u    = b u + (z - 1/W sum_j x_j) / lr   every period steps
        z   <- z - a lr u;   x_i <- z           and everybody continues from z

    u is in units of gradients, so that momentum gathered at one learning rate is worth as much at
    another: `learning_rate` matters where it is a schedule, and cancels where it is constant (then
    this is `diloco` with `outer=optax.sgd(a, momentum=b)`). b = 0 and a = 1 make it Local SGD. Of the
    paper's three ways to treat the memory of `inner`, this is "maintain": it stays with its worker.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates.
      others: nothing; a topology is refused with the method that takes one.
      period: local steps from one slow step to the next.
      learning_rate: that of `inner`: a number, or its schedule (step -> number), which is read at the
        last step of a round. Where it is 0 nothing has moved, and nothing is added to u.
      slow_learning_rate: a above; the paper takes 1.
      slow_momentum: b above, at least 0 and below 1; the paper takes 0.4 to 0.8.

    Returns:
      An `Algorithm`. shared: slow parameters, their momentum u, a count of rounds. local: parameters and
      the state of `inner`.

    Raises:
      Refused: a period below 1, a momentum outside 0 to 1, a learning rate that is not positive, a
        rule that is not optax's.

    Communication:
      One all-reduce every `period` steps, of the displacement in at least float32: size(params) bytes
      for float32 parameters, twice that for bfloat16 ones. Nothing in between, nothing for the readout.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.slow_momentum(optax.sgd(0.1), period=4, learning_rate=0.1)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.3f}")
      1.500

    References:
      Wang et al., SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum,
      ICLR 2020. arXiv:1910.00643
    """
    refuse_others("slow_momentum", others)
    check_period("period", period)
    check_fraction("slow_momentum", slow_momentum)
    for name, value in (
        ("learning_rate", learning_rate),
        ("slow_learning_rate", slow_learning_rate),
    ):
        if not callable(value) and not value > 0:
            raise Refused(f"{name}={value!r}: expected a number above zero; write {name}=0.1")

    def init(params):
        return jnp.int32(0), optax.tree.zeros_like(params)

    def update(updates, state, params=None):
        rounds, u = state
        step = (rounds + 1) * period - 1
        lr = jnp.asarray(learning_rate(step) if callable(learning_rate) else learning_rate)

        def gathered(u: jax.Array, d: jax.Array) -> jax.Array:
            rate = lr.astype(d.dtype)
            return slow_momentum * u + jnp.where(rate == 0, 0, d / rate)

        u = jax.tree.map(gathered, u, updates)
        moves = jax.tree.map(lambda u: -slow_learning_rate * lr.astype(u.dtype) * u, u)
        return moves, (rounds + 1, u)

    rule = optax.GradientTransformation(init, update)
    return diloco(inner, rule, period=period)._replace(method="slow_momentum")
