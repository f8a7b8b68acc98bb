"""What a way to the mean is, and the exact one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdist import buckets, worker
from jaxdist.compress.base import size_bytes

PyTree = Any
# What a reducer remembers: what is the same for all workers, and what is a worker's own.
Memory = tuple[PyTree, PyTree]


def mean(tree: PyTree) -> PyTree:
    """The mean over all workers of every leaf, the same for every worker.

        x <- 1/W sum_j x_j

    Values below float32 are accumulated in float32 and cast back. Small leaves of one dtype are
    reduced together, which is what makes a difference between processes: there every reduction
    costs a round trip. Under `jd.faulty` it is the mean over the workers that are there.

    Args:
      tree: this worker's arrays, floating point.

    Returns:
      A pytree like `tree`, the same for every worker: fit for the shared room.

    Communication:
      Every leaf once, as the operand of an all-reduce, see `mean_bytes`; a ring moves 2 (W - 1) / W of
      that in and out of every worker.
    """
    buffers, restore = buckets.pack(tree)
    return restore(worker.mean(buffers))


def mean_bytes(tree: PyTree) -> int:
    """What `mean` makes one worker hand to the network: 4 bytes for a number below float32, too."""
    return size_bytes([wide_shape(x) for x in jax.tree.leaves(tree)])


class Reducer(NamedTuple):
    """A way to a mean over workers, perhaps with a memory.

    Attributes:
      init: `init(tree)` -> (shared, local), the memory, to be kept in the two rooms of a state.
      mean: `mean(tree, memory, *, key, step)` -> (mean, memory). `key` is the same for every worker;
        `step` counts the means.
      bytes: `bytes(tree, step)` -> what one worker hands to the network.
    """

    init: Callable[[PyTree], Memory]
    mean: Callable[..., tuple[PyTree, Memory]]
    bytes: Callable[[PyTree, int], int]


def wide_shape(x: Any) -> jax.ShapeDtypeStruct:
    """The shape of a leaf, in the precision in which it is summed."""
    return jax.ShapeDtypeStruct(x.shape, worker.accumulation_dtype(x.dtype))
