"""Batches on the devices, one after the other: sent from the host, or gathered where the data is."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxdist import data
from jaxdist.errors import Refused
from jaxdist.executor import Trainer
from jaxdist.put_batch import check_integers

PyTree = Any


@contextlib.contextmanager
def batches(stream: Any, trainer: Trainer, begin: int, *, resident: bool = False) -> Iterator[Any]:
    """Inside, an iterator over the placed batches of the steps from `begin` on, made ahead of time.

    Args:
      stream: what has `batch(step)`; if resident a `jd.data.Stream`.
      trainer: which says where a batch goes.
      begin: the first step.
      resident: all examples are put on every device once, and a step sends only which of them it
        takes. The batches are the same, bit for bit.

    Yields:
      An iterator without end.

    Example:
      >>> import jaxdist as jd, optax
      >>> task = jd.tasks.digits(2, batch_size=4)
      >>> trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), task.loss_fn, workers=2)
      >>> with batches(task.stream, trainer, 0, resident=True) as made:
      ...     next(made)["image"].shape
      (2, 4, 8, 8, 1)
    """
    if not resident:
        with data.prefetch(lambda step: trainer.place(stream.batch(step)), begin) as placed:
            yield placed
        return
    check_resident(stream)
    examples = everywhere(stream, trainer)

    def rows(step: int) -> jax.Array:
        return trainer.place(stream.indices(step, 1)[0].astype(np.int32))

    # Only transfers are made ahead of time: of several processes all must start their programs in one
    # order, and a program that another thread starts may come before or after a step.
    with data.prefetch(rows, begin) as placed:
        yield (gather(examples, taken, taken.sharding) for taken in placed)


def check_resident(stream: Any) -> None:
    """Refuses a stream that has no table of examples.

    Raises:
      Refused: it is no `jd.data.Stream`.
    """
    if not isinstance(stream, data.Stream):
        raise Refused(
            f"resident=True and the stream is a {type(stream).__name__}: expected a jd.data.Stream, "
            "whose examples are arrays; write resident=False"
        )


def everywhere(stream: data.Stream, trainer: Trainer) -> dict[str, jax.Array]:
    """All examples of a stream on every device."""
    where = NamedSharding(trainer.mesh, PartitionSpec())
    for name, array in stream.examples.items():
        check_integers(f"the examples' {name!r}", array)
    # Across processes device_put would first compare what they hold.
    return {
        name: jax.make_array_from_callback(array.shape, where, array.__getitem__)
        for name, array in stream.examples.items()
    }


@partial(jax.jit, static_argnums=2)
def gather(examples: PyTree, rows: jax.Array, where: Sharding) -> PyTree:
    """The examples of these rows, int32 `[workers, batch]`: leaves `[workers, batch, ...]`.

    The rows must be there (a stream has checked that). They lie where the batch is to lie, so nothing
    moves between devices.
    """
    taken = {name: x.at[rows].get(mode="promise_in_bounds") for name, x in examples.items()}
    return jax.lax.with_sharding_constraint(taken, where)
