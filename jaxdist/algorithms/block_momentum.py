"""Block momentum (BMUF): the blockwise model updates of many workers, filtered by a momentum."""

from typing import Never

import jax
import jax.numpy as jnp
import optax

from jaxdist import worker
from jaxdist.algorithms.base import Algorithm, check_fraction, check_period, refuse_others
from jaxdist.algorithms.diloco import diloco
from jaxdist.errors import Refused


def block_momentum(
    inner: optax.GradientTransformation,
    *others: Never,
    period: int,
    momentum: float | None = None,
    block_learning_rate: float = 1.0,
    nesterov: bool = False,
) -> Algorithm:
    """Blockwise model-update filtering: what a block of local steps adds up to, with momentum.

    With z the global parameters, y the point from which a block begins, x_i the parameters of worker
    i, u_i the update of `inner`, b = `momentum` and c = `block_learning_rate`,

        x_i <- x_i + u_i                  every step
        G    = 1/W sum_j x_j - y          every period steps: what the block moved
        D    = b D + c G;   z <- z + D
        y    = z, with nesterov z + b D;  x_i <- y

    Averaging W workers makes a step W times smaller than theirs add up to; a momentum of 1 - 1/W
    gives that back over time. The readout is z. Seen from y, `nesterov` is `diloco` with
    `outer=optax.sgd(c, momentum=b, nesterov=True)`, whose readout is y. The memory of `inner` stays
    with its worker and is not reset.

    Args:
      inner: the local rule. It sees one worker's gradients and never communicates.
      others: nothing; a topology is refused with the method that takes one.
      period: local steps in a block.
      momentum: b above, at least 0 and below 1. None: 1 - 1/W, the paper's rule.
      block_learning_rate: c above; the paper takes 1.
      nesterov: whether a block begins ahead of z, where the momentum would carry it.

    Returns:
      An `Algorithm`. shared: the point y and the momentum D. local: parameters and the state of
      `inner`.

    Raises:
      Refused: a period below 1, a momentum outside 0 to 1, a block learning rate that is not
        positive, a rule that is not optax's.

    Communication:
      One all-reduce every `period` steps, of the displacement in at least float32: size(params) bytes
      for float32 parameters, twice that for bfloat16 ones. Nothing in between, nothing for the readout.

    Example:
      >>> import jax.numpy as jnp, jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.block_momentum(optax.sgd(0.1), period=4), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> for _ in range(400):
      ...     state, metrics = trainer.step(state, jnp.arange(4.0))
      >>> print(f"{trainer.readout(state):.3f}")
      1.500

    References:
      Chen & Huo, Scalable Training of Deep Learning Machines by Incremental Block Training with
      Intra-Block Parallel Optimization and Blockwise Model-Update Filtering, ICASSP 2016.
    """
    refuse_others("block_momentum", others)
    check_period("period", period)
    if momentum is not None:
        check_fraction("momentum", momentum)
    if not block_learning_rate > 0:
        raise Refused(
            f"block_learning_rate={block_learning_rate!r}: expected a number above zero; write "
            "block_learning_rate=1.0"
        )

    def kept(D: jax.Array) -> jax.Array:
        """b D."""
        if momentum is not None:
            return momentum * D
        n = jnp.maximum(jnp.asarray(worker.headcount()), 1)
        return (1 - 1 / n.astype(D.dtype)) * D

    def update(updates, state, params=None):
        D = jax.tree.map(lambda D, d: kept(D) - block_learning_rate * d, state, updates)
        if not nesterov:
            return D, D
        return jax.tree.map(lambda D, d: kept(D) - block_learning_rate * d, D, updates), D

    def readout(state):
        y, D, _ = state.shared
        return jax.tree.map(lambda y, D: y - kept(D), y, D) if nesterov else y

    filtered = optax.GradientTransformation(lambda params: optax.tree.zeros_like(params), update)
    made = diloco(inner, filtered, period=period)
    return made._replace(readout=readout, method="block_momentum")
