"""Deep gradient compression: the largest numbers travel, with the momentum they were owed."""

from collections.abc import Callable
from typing import Any, Literal, Never, get_args

import jax
import jax.numpy as jnp

from jaxdist import reduction, waiting, worker
from jaxdist.algorithms.base import Algorithm, Params, State, refuse_others
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.compress import top_k
from jaxdist.errors import Refused

Velocity = Literal["masked", "kept"]


def dgc(
    learning_rate: float | Callable[[Any], Any],
    *others: Never,
    ratio: float,
    momentum: float = 0.9,
    velocity: Velocity = "masked",
) -> Algorithm:
    """Deep gradient compression: sparse messages with momentum correction and factor masking.

    With g_i the gradient of worker i and lr the learning rate,

        u_i <- momentum u_i + g_i
        v_i <- v_i + lr u_i
        s_i  = the largest share `ratio` of v_i, by magnitude; cleared in v_i, and (masked) in u_i
        x   <- x - 1/W sum_i s_i

    What waits in v_i keeps the momentum it would have had, where error feedback of plain gradients
    with momentum after it delays them; and momentum of numbers that were just sent is stopped, for it
    is stale. Where the workers' data differ, that has a price: a number that is sent often has less
    momentum than one that waits, so it comes to rest beside the minimizer, however small the learning
    rate. With `velocity="kept"` nothing is lost, and it settles as near as the learning rate is small.

    The learning rate stands inside v_i: what waits is applied as it was when it arose. Clip
    gradients in the loss, and raise the ratio for the first epochs, as the paper does, by a run of its own.

    Args:
      learning_rate: a number, or a schedule.
      others: nothing; a topology is refused with the method that takes one.
      ratio: the share of the numbers of each leaf that travels.
      momentum: of each worker's velocity.
      velocity: what becomes of u_i where a number was sent: `"masked"`, as in the paper, or `"kept"`.

    Returns:
      An `Algorithm`. shared: parameters. local: velocity u_i, and v_i, what waits.

    Raises:
      Refused: a ratio that is not above 0 and at most 1, an unknown velocity.

    Communication:
      Per step an all-gather of `jd.compress.top_k(ratio).bytes(params)` bytes.

    Example:
      >>> import jaxdist as jd
      >>> loss = lambda x, target, key: (jnp.sum((x - target) ** 2), {})
      >>> trainer = jd.execute(jd.dgc(0.02, ratio=0.25, momentum=0.5), loss, workers=4)
      >>> state = trainer.init(jnp.zeros(4))
      >>> for _ in range(200):
      ...     state, metrics = trainer.step(state, jnp.arange(16.0).reshape(4, 4) / 8)
      >>> bool(jnp.abs(trainer.readout(state) - jnp.arange(6.0, 10.0) / 8).max() < 0.2)
      True

    References:
      Lin et al., Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed
      Training, ICLR 2018. arXiv:1712.01887
    """
    refuse_others("dgc", others)
    compressor = top_k(ratio)
    if velocity not in get_args(Velocity):
        raise Refused(
            f"velocity={velocity!r} is unknown; write one of {', '.join(get_args(Velocity))}"
        )

    def init(params: Params) -> State:
        zeros = worker.vary(jax.tree.map(jnp.zeros_like, params))
        return State(jnp.int32(0), (params,), (zeros, zeros))

    def update(grads, state: State, *, key, value, objective) -> State:
        (params,), (u, v) = state.shared, state.local
        rate = jnp.asarray(learning_rate(state.step) if callable(learning_rate) else learning_rate)
        u = jax.tree.map(lambda u, g: momentum * u + g, u, grads)
        v = jax.tree.map(lambda v, u: v + rate.astype(u.dtype) * u, v, u)
        step = reduction.average(v, compressor, key=key)

        def cleared(x: jax.Array, own: jax.Array) -> jax.Array:
            return jnp.where(own != 0, jnp.zeros_like(x), x)

        v = jax.tree.map(cleared, v, step.own)
        if velocity == "masked":
            u = jax.tree.map(cleared, u, step.own)
        params = jax.tree.map(jnp.subtract, params, step.mean)
        return State(state.step + 1, (params,), (u, v))

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=lambda params, step: compressor.bytes(params),
        waits=waiting.everyone(),
        resize=AVERAGED,
    )
