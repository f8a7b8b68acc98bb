"""Synchronous data parallelism that measures how much the workers' gradients differ, and may act on it."""

from collections.abc import Callable
from typing import Any, Never

import jax
import jax.numpy as jnp
import optax

from jaxdist import reduction, waiting, worker
from jaxdist.algorithms.base import (
    Algorithm,
    Params,
    State,
    apply,
    check_fraction,
    check_rule,
    refuse_others,
    updates,
    widest,
)
from jaxdist.algorithms.membership import AVERAGED
from jaxdist.errors import Refused

Schedule = Callable[[Any], Any]


def noise_scale(
    inner: optax.GradientTransformation,
    *others: Never,
    decay: float = 0.99,
    examples_per_worker: int = 1,
) -> Algorithm:
    """`all_reduce` that also reports the gradient noise scale: how large a batch still pays.

    The step is that of `jd.all_reduce(inner)`. From the workers' gradients g_i and their mean, which
    are there anyway,

        noise  = 1/(W-1) sum_i |g_i - mean g|^2       the variance of one worker's gradient
        signal = |mean g|^2 - noise / W               the squared norm of the true gradient

    without bias; `metrics["noise_scale"]` is the ratio of their moving averages, in batches of one
    worker, or in examples if you say how many a worker has; infinite while no signal shows. With a
    batch well below it twice as many workers need about half as many steps; well above it they bring
    nearly nothing.

    Args:
      inner: the rule that turns the mean gradient into an update.
      others: nothing; a topology is refused.
      decay: of the moving averages. Single steps are far too noisy.
      examples_per_worker: the unit of the report.

    Returns:
      An `Algorithm`. shared: parameters, the state of `inner`, the two averages. local: nothing.

    Raises:
      Refused: `inner` is not an optax rule, a decay outside [0, 1), or a single worker, which has
        nobody to differ from.

    Communication:
      Per step one all-reduce of size(params) bytes and of one number, which travels with the small
      leaves, in at least float32: 4 bytes a number for bfloat16 parameters, too.

    Example:
      >>> import jaxdist as jd
      >>> slope = lambda x, g, key: (jnp.sum(x * g), {})
      >>> trainer = jd.execute(jd.noise_scale(optax.sgd(0.1)), slope, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.step(state, jnp.array([1.0, 3.0, 1.0, 3.0]))
      >>> print(f"{metrics['noise_scale']:.3f}")  # (4/3) / (4 - 1/3)
      0.364

    References:
      McCandlish et al., An Empirical Model of Large-Batch Training, 2018. arXiv:1812.06162
    """
    refuse_others("noise_scale", others)
    check_rule("inner", inner)
    check_fraction("decay", decay)

    def init(params: Params) -> State:
        if worker.count() == 1:
            raise Refused(
                "jd.noise_scale compares workers' gradients and there is one worker; write "
                "workers=2 or more, or jd.all_reduce(inner)"
            )
        zero = jnp.zeros((), widest(params))
        return State(jnp.int32(0), (params, inner.init(params), zero, zero), ())

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state, noise, signal = state.shared
        mean, one, all_of_them = _norms(grads)
        workers = jnp.asarray(worker.headcount()).astype(noise.dtype)
        others = jnp.maximum(workers - 1, 1)
        new_noise = (one - all_of_them) * (workers / others)
        # Where all others are away there is nobody to differ from, and nothing is learned.
        keep = jnp.where(workers > 1, jnp.asarray(decay, noise.dtype), 1)
        noise = keep * noise + (1 - keep) * new_noise
        signal = keep * signal + (1 - keep) * (all_of_them - new_noise / jnp.maximum(workers, 1))
        params, inner_state = apply(inner, mean, inner_state, params, value=worker.mean(value))
        return State(state.step + 1, (params, inner_state, noise, signal), ())

    def report(state: State) -> dict[str, jax.Array]:
        _, _, noise, signal = state.shared
        # Both averages start from 0: what that takes from them cancels in the ratio.
        ratio = noise / jnp.where(signal > 0, signal, 1)
        return {"noise_scale": examples_per_worker * jnp.where(signal > 0, ratio, jnp.inf)}

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=_sends,
        waits=waiting.everyone(),
        report=report,
        resize=AVERAGED,
    )


def adascale(
    inner: optax.GradientTransformation,
    *others: Never,
    schedule: Schedule | None = None,
    decay: float | None = None,
) -> Algorithm:
    """AdaScale: steps as much longer as the workers' mean is better than one worker's gradient.

    With g the mean of the workers' gradients g_i, and averages over the last steps,

        r(t)   = average of 1/W sum_i |g_i|^2 / average of |g|^2, within [1, W]     the gain
        x(t+1) = x(t) + r(t) schedule(floor(tau(t))) inner(g)
        tau(t+1) = tau(t) + r(t)                        steps of one worker that this is worth

    Where the gradients are alike the gain is 1: W workers bring nothing, and a rate that suits one
    suits them. Where they are mostly noise it is W, the linear scaling rule. Nothing is to be tuned
    with the number of workers: take the rate and the schedule of one worker, and stop when
    `metrics["invariant_steps"]`, tau, reaches that worker's number of steps.

    Args:
      inner: the rule for the mean gradient at the rate of one worker; SGD with or without momentum,
        whose updates are proportional to its rate. A schedule inside it would count steps, not tau.
      others: nothing; a topology is refused.
      schedule: factor of the update as a function of tau, any optax schedule. With `optax.sgd(1.0)` it
        is the learning rate. None: 1.
      decay: of the averages. None: 1 - W / 1000, at least 0, the paper's.

    Returns:
      An `Algorithm`. shared: parameters, the state of `inner`, tau, the two averages. local: nothing.

    Raises:
      Refused: `inner` is not an optax rule, a schedule that is not a function, or a decay outside
        [0, 1).

    Communication:
      Per step one all-reduce of size(params) bytes and of one number, which travels with the small
      leaves, in at least float32: 4 bytes a number for bfloat16 parameters, too.

    Example:
      >>> import jaxdist as jd
      >>> slope = lambda x, g, key: (jnp.sum(x * g), {})
      >>> trainer = jd.execute(jd.adascale(optax.sgd(0.1)), slope, workers=4)
      >>> state = trainer.init(jnp.zeros(()))
      >>> state, metrics = trainer.step(state, jnp.array([1.0, 3.0, 1.0, 3.0]))
      >>> print(f"{metrics['gain']:.2f} {trainer.readout(state):.2f}")  # 5 / 4, -0.1 x 2 x 5 / 4
      1.25 -0.25

    References:
      Johnson et al., AdaScale SGD: A User-Friendly Algorithm for Distributed Training, ICML 2020.
      arXiv:2007.05105
    """
    refuse_others("adascale", others)
    check_rule("inner", inner)
    if decay is not None:
        check_fraction("decay", decay)
    if schedule is not None and not callable(schedule):
        raise Refused(
            f"schedule={schedule!r} is not a function of the steps; write for example "
            "schedule=optax.cosine_decay_schedule(0.1, 1000)"
        )

    def init(params: Params) -> State:
        zero = jnp.zeros((), widest(params))
        return State(jnp.int32(0), (params, inner.init(params), zero, zero, zero, zero), ())

    def update(grads, state: State, *, key, value, objective) -> State:
        params, inner_state, tau, _, one, all_of_them = state.shared
        mean, new_one, new_all = _norms(grads)
        workers = jnp.asarray(worker.headcount()).astype(one.dtype)
        keep = jnp.maximum(1 - workers / 1000, 0.0) if decay is None else decay
        one = keep * one + (1 - keep) * new_one
        all_of_them = keep * all_of_them + (1 - keep) * new_all
        gain = jnp.where(all_of_them > 0, one / jnp.where(all_of_them > 0, all_of_them, 1), 1)
        gain = jnp.clip(gain, 1, jnp.maximum(workers, 1))
        factor = gain if schedule is None else gain * schedule(jnp.floor(tau))
        u, inner_state = updates(inner, mean, inner_state, params, value=worker.mean(value))
        u = jax.tree.map(lambda u: factor.astype(u.dtype) * u, u)
        params = optax.apply_updates(params, u)
        shared = params, inner_state, tau + gain, gain, one, all_of_them
        return State(state.step + 1, shared, ())

    return Algorithm(
        init=init,
        gradient_at=lambda state: state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
        sends=_sends,
        waits=waiting.everyone(),
        report=lambda state: {"gain": state.shared[3], "invariant_steps": state.shared[2]},
        resize=AVERAGED,
    )


def _norms(grads: Params) -> tuple[Params, jax.Array, jax.Array]:
    """The mean gradient, the mean of the squared norms, and the squared norm of the mean."""
    mean, one = reduction.mean((grads, _squared(grads)))
    return mean, one, _squared(mean)


def _squared(tree: Params) -> jax.Array:
    wide = widest(tree)
    squares = [jnp.sum(jnp.square(x.astype(wide))) for x in jax.tree.leaves(tree)]
    return sum(squares[1:], squares[0])


def _sends(params: Params, step: int) -> int:
    return reduction.mean_bytes(params) + jnp.dtype(widest(params)).itemsize
