"""DiLoCo: many local steps, then one step of an outer optimizer on what they add up to."""

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
    local_init,
    refuse_others,
    size_bytes,
)
from jaxdist.algorithms.membership import AVERAGED


def diloco(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *others: Never,
    period: int,
) -> Algorithm:
    """DiLoCo: `period` local steps, whose mean displacement is the gradient of an outer optimizer.

    With z the outer parameters, x_i those of worker i, and u_i the update of `inner`,

        x_i <- x_i + u_i                      every step
        d    = z - 1/W sum_j x_j              every period steps: the outer gradient
        z   <- z + outer(d);   x_i <- z       and everybody continues from z

    `outer=optax.sgd(0.7, momentum=0.9, nesterov=True)` is the paper's choice; `optax.sgd(1.0)` makes it
    Local SGD. The state of `inner` is not reset. Use it when workers are far apart: it communicates
    once in hundreds of steps.

    Args:
      inner: the local rule (AdamW in the paper). It never communicates; its memory stays.
      outer: the rule for the displacement; runs once for all workers.
      others: nothing; a topology is refused with the method that takes one.
      period: local steps from one outer step to the next.

    Returns:
      An `Algorithm`. shared: outer parameters and the state of `outer`. local: parameters and the
      state of `inner`.

    Raises:
      ValueError: a period below 1, or a rule that is not optax's.

    Communication:
      One all-reduce every `period` steps, of the displacement in at least float32: size(params) bytes
      for float32 parameters, twice that for bfloat16 ones. Nothing in between, nothing for the
      readout.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> algorithm = jd.diloco(optax.sgd(0.1), optax.sgd(0.7), period=4)
      >>> trainer = jd.execute(algorithm, loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(80):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.3f}")
      1.500

    References:
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, 2023.
      arXiv:2311.08105
    """
    refuse_others("diloco", others)
    check_rule("inner", inner)
    check_rule("outer", outer)
    check_period("period", period)

    def init(params: Params) -> State:
        local = params, local_init(inner, params)
        return State(jnp.int32(0), (params, outer.init(params)), local)

    def synchronized(rooms):
        (z, outer_state), x = rooms
        d = jax.tree.map(displacement, z, x)
        d = jax.tree.map(lambda d, z: d.astype(z.dtype), reduction.mean(d), z)
        z, outer_state = apply(outer, d, outer_state, z)
        return (z, outer_state), worker.vary(z)

    def update(grads, state: State, *, key, value, objective) -> State:
        x, inner_state = state.local
        t = state.step
        x, inner_state = apply(inner, grads, inner_state, x, value=value, objective=objective)
        rooms = state.shared, worker.vary(x)
        if period == 1:
            shared, x = synchronized(rooms)
        else:
            shared, x = lax.cond((t + 1) % period == 0, synchronized, lambda kept: kept, rooms)
        return State(t + 1, shared, (x, inner_state))

    def sends(params: Params, step: int) -> int:
        wide = jax.eval_shape(lambda p: jax.tree.map(displacement, p, p), params)
        return size_bytes(wide) * ((step + 1) % period == 0)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=sends,
        waits=waiting.everyone(period=period),
        resize=AVERAGED,
    )


def displacement(z: jax.Array, x: jax.Array) -> jax.Array:
    """z - x_i in at least float32: the difference of two nearby bfloat16 numbers has few bits."""
    wide = worker.accumulation_dtype(z.dtype)
    return z.astype(wide) - x.astype(wide)
