"""Learning rates that grow with the number of workers, after a warm-up, as optax schedules."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxdist.errors import Refused

Schedule = Callable[[Any], Any]


def linear(learning_rate: float | Schedule, workers: int, *, warmup_steps: int) -> Schedule:
    """The linear scaling rule: W times the rate of one worker, reached in a straight line.

    W workers average W times as many examples a step; where their gradients are mostly noise one
    such step may be W times as long. It fails beyond the gradient noise scale (`jd.noise_scale`).

    Args:
      learning_rate: of one worker: a number, or an optax schedule, which is scaled as a whole.
      workers: how many.
      warmup_steps: in how many steps the factor grows from 1 to W; 0: at once.

    Returns:
      An optax schedule.

    Raises:
      Refused: no positive number of workers, or a negative number of steps.

    Example:
      >>> rate = linear(0.1, 8, warmup_steps=100)
      >>> [round(float(rate(step)), 3) for step in (0, 50, 100, 5000)]
      [0.1, 0.45, 0.8, 0.8]

    References:
      Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017.
      arXiv:1706.02677
    """
    return _scaled("linear", learning_rate, workers, warmup_steps, lambda count: count)


def square_root(learning_rate: float | Schedule, workers: int, *, warmup_steps: int) -> Schedule:
    """The square-root scaling rule: sqrt(W) times the rate of one worker, reached in a straight line.

    It keeps the covariance of an update, and suits rules that divide by the size of the gradient,
    Adam and LAMB among them.

    Args:
      learning_rate: of one worker: a number, or an optax schedule, which is scaled as a whole.
      workers: how many.
      warmup_steps: in how many steps the factor grows from 1 to sqrt(W); 0: at once.

    Returns:
      An optax schedule.

    Raises:
      Refused: no positive number of workers, or a negative number of steps.

    Example:
      >>> rate = square_root(0.1, 16, warmup_steps=100)
      >>> [round(float(rate(step)), 3) for step in (0, 50, 100, 5000)]
      [0.1, 0.25, 0.4, 0.4]

    References:
      Krizhevsky, One Weird Trick for Parallelizing Convolutional Neural Networks, 2014.
      arXiv:1404.5997
      You et al., Large Batch Optimization for Deep Learning, ICLR 2020. arXiv:1904.00962
    """
    return _scaled("square_root", learning_rate, workers, warmup_steps, math.sqrt)


def _scaled(
    name: str,
    learning_rate: float | Schedule,
    workers: int,
    warmup_steps: int,
    factor: Callable[[int], float],
) -> Schedule:
    for label, value, least in (("workers", workers, 1), ("warmup_steps", warmup_steps, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise Refused(
                f"jd.scaling.{name} was given {label}={value!r}, expected a whole number of at least "
                f"{least}; write for example jd.scaling.{name}(0.1, 8, warmup_steps=100)"
            )
    top = factor(workers)

    def rate(step: Any) -> Any:
        base = learning_rate(step) if callable(learning_rate) else learning_rate
        done = jnp.minimum(jnp.asarray(step, float) / warmup_steps, 1.0) if warmup_steps else 1.0
        return base * (1.0 + (top - 1.0) * done)

    return rate
