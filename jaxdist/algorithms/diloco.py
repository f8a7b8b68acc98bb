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
)
from jaxdist.algorithms.membership import AVERAGED, averaged, remade, residuals
from jaxdist.compress import Compressor, Feedback


def diloco(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *others: Never,
    period: int,
    compressor: Compressor | Feedback | None = None,
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
      compressor: what travels of the displacements, as in `all_reduce`; with a memory
        (`jd.compress.error_feedback(...)`) what is left out of one outer step is added to the next.

    Returns:
      An `Algorithm`. shared: outer parameters and the state of `outer`. local: parameters and the
      state of `inner`. The memory of a compressor stands in both rooms.

    Raises:
      Refused: a period below 1, or a rule that is not optax's.

    Communication:
      One all-reduce every `period` steps, of the displacement in at least float32: size(params) bytes
      for float32 parameters, twice that for bfloat16 ones. Nothing in between, nothing for the
      readout. With a compressor, its payload instead, as in `all_reduce`.

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
    how = reduction.reducer(compressor)

    def init(params: Params) -> State:
        shared, local = how.init(jax.tree.map(displacement, params, params))
        return State(
            jnp.int32(0),
            (params, outer.init(params), shared),
            (params, local_init(inner, params), local),
        )

    def update(grads, state: State, *, key, value, objective) -> State:
        x, inner_state, own = state.local
        t = state.step
        x, inner_state = apply(inner, grads, inner_state, x, value=value, objective=objective)

        def synchronized(rooms):
            (z, outer_state, known), (x, own) = rooms
            d = jax.tree.map(displacement, z, x)
            d, (known, own) = how.mean(d, (known, own), key=key, step=t // period)
            d = jax.tree.map(lambda d, z: d.astype(z.dtype), d, z)
            z, outer_state = apply(outer, d, outer_state, z)
            return (z, outer_state, known), worker.vary((z, own))

        rooms = state.shared, worker.vary((x, own))
        if period == 1:
            shared, (x, own) = synchronized(rooms)
        else:
            shared, (x, own) = lax.cond(
                (t + 1) % period == 0, synchronized, lambda kept: kept, rooms
            )
        return State(t + 1, shared, (x, inner_state, own))

    def sends(params: Params, step: int) -> int:
        if (step + 1) % period:
            return 0
        wide = jax.eval_shape(lambda p: jax.tree.map(displacement, p, p), params)
        return how.bytes(wide, step // period)

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=sends,
        waits=waiting.everyone(period=period),
        resize=remade(
            lambda old, fresh: (*averaged(old[:2], fresh[:2]), residuals(old[2], fresh[2])),
            AVERAGED.says,
        ),
    )


def displacement(z: jax.Array, x: jax.Array) -> jax.Array:
    """z - x_i in at least float32: the difference of two nearby bfloat16 numbers has few bits."""
    wide = worker.accumulation_dtype(z.dtype)
    return z.astype(wide) - x.astype(wide)
