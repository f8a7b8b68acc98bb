"""A task: everything about an experiment that is not about how the workers agree."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from jaxdist.gradient import Loss

PyTree = Any
Params = Any


class Stream(Protocol):
    """What feeds the workers: `jd.data.Stream`, or anything like it."""

    @property
    def workers(self) -> int:
        """How many are fed."""
        ...

    def batch(self, step: int) -> Any:
        """The batch of a step, the same each time it is asked for: leaves `[workers, ...]`."""
        ...


class Task(NamedTuple):
    """What the workers learn, and from what.

    Attributes:
      loss_fn: `loss_fn(params, batch, key) -> (loss, aux)`, see `jd.execute`.
      init: `init(key)` -> the parameters at the start.
      stream: the batches of all workers, a pure function of the step; `jd.data.Stream` is one.
      accuracy: `accuracy(params, test)` -> a scalar, of one model.
      test: the test examples, the same for everybody, with no worker axis.
      classes: labels are integers below it; None: not checked.
    """

    loss_fn: Loss
    init: Callable[[jax.Array], Params]
    stream: Stream
    accuracy: Callable[[Params, PyTree], jax.Array]
    test: PyTree
    classes: int | None = None
