"""Batches for every worker as pure functions of the seed and the step, without end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxdist.data.randomness import generator
from jaxdist.errors import Refused

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Stream:
    """Each worker walks its own shard, in a fresh order every epoch, for ever.

    Worker w has n_w examples and draws them in the order p(w, 0), p(w, 1), ..., where p(w, e) is a
    permutation of its shard that depends on the seed, w and e alone. Its batch at step t is the
    entries t * batch_size to (t + 1) * batch_size - 1 of that endless sequence. So nothing is
    dropped at the end of an epoch (a batch may straddle it), every epoch shows each example exactly
    once, and resuming needs one integer. Epochs are counted per worker: shards may be uneven.

    Args:
      examples: arrays by name, all with the same leading axis [examples, ...]; keep them small
        (uint8 images, int32 labels) and normalise on the device.
      shards: one array of indices into them for each worker, for instance from `split.iid`.
      batch_size: how many examples one worker gets in a step. It may exceed the shard.
      seed: the same seed gives the same batches.
      visit: step -> the shard that each worker walks at that step, where there are more shards
        (clients) than workers: `drawn = jd.cohort(len(shards), workers, seed)` and then
        `visit=lambda step: drawn(step // local_steps)`. A shard's endless sequence goes on while
        nobody walks it, so that a batch still depends on the seed and the step alone; over the steps
        of one visit examples repeat only where the shard is smaller than what is taken. None: shard
        w is worker w's.

    Example:
      Two workers that own five examples each; after five steps of two, each has seen its own twice.

      >>> shards = [np.arange(5), np.arange(5, 10)]
      >>> stream = Stream({"x": np.arange(10)}, shards, batch_size=2, seed=0)
      >>> stream.batch(0)["x"].shape
      (2, 2)
      >>> np.bincount(stream.batches(0, 5)["x"].ravel()).tolist()
      [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
      >>> for step, batch in zip(range(3), stream.iterate(start=7)):
      ...     assert (batch["x"] == stream.batch(7 + step)["x"]).all()
    """

    examples: Mapping[str, np.ndarray]
    shards: Sequence[np.ndarray]
    batch_size: int = field(kw_only=True)
    seed: int = field(kw_only=True)
    visit: Callable[[int], Sequence[int] | np.ndarray] | None = field(default=None, kw_only=True)
    # Drawing a permutation costs as much as gathering an epoch, so each shard remembers its latest
    # two: a batch may straddle the end of an epoch. What is returned never depends on it.
    _orders: list[dict[int, np.ndarray]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        arrays = {name: np.asarray(array) for name, array in self.examples.items()}
        count = _count(arrays)
        if not self.shards:
            raise Refused("shards is empty: expected one for each worker; write split.iid(...)")
        if self.batch_size < 1:
            raise Refused(
                f"batch_size={self.batch_size}: expected one or more examples for each worker and "
                "step; write batch_size=32"
            )
        generator(self.seed)  # refuses a bad seed here rather than at the first batch
        shards = tuple(_shard(shard, worker, count) for worker, shard in enumerate(self.shards))
        # A frozen value must be built this way.
        object.__setattr__(self, "examples", arrays)
        object.__setattr__(self, "shards", shards)
        object.__setattr__(self, "_orders", [{} for _ in shards])

    @property
    def workers(self) -> int:
        """How many workers are fed."""
        return len(self.shards if self.visit is None else self.visit(0))

    def batch(self, step: int, *, workers: Sequence[int] | None = None) -> Batch:
        """The batch of one step: leaves [workers, batch_size, ...].

        Args:
          step: zero or more; steps may be asked for in any order.
          workers: which rows to load; None means all. A process that feeds only its own devices
            asks for its own workers and gets what it would have got among all the others.
        """
        return {name: leaf[0] for name, leaf in self.batches(step, 1, workers=workers).items()}

    def batches(self, start: int, count: int, *, workers: Sequence[int] | None = None) -> Batch:
        """The batches of `count` steps from `start`: leaves [count, workers, batch_size, ...]."""
        rows = self.indices(start, count, workers=workers)
        return {name: array[rows] for name, array in self.examples.items()}

    def iterate(self, *, start: int = 0) -> Iterator[Batch]:
        """The batches from step `start` on, without end; resume with `start=int(state.step)`."""
        step = start
        while True:
            yield self.batch(step)
            step += 1

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()

    def indices(
        self, start: int, count: int, *, workers: Sequence[int] | None = None
    ) -> np.ndarray:
        """Which examples the batches consist of: integers [count, workers, batch_size]."""
        if start < 0 or count < 1:
            raise Refused(
                f"start={start} and count={count}: expected a step from zero on and at least one "
                "batch; write stream.batches(0, 10)"
            )
        if self.visit is not None:
            steps = range(start, start + count)
            return np.stack([self._visited(self.visit(step), step, workers) for step in steps])
        chosen = range(self.workers) if workers is None else workers
        first, size = start * self.batch_size, count * self.batch_size
        rows = np.stack([self._walk(worker, first, size) for worker in chosen])
        return rows.reshape(len(chosen), count, self.batch_size).swapaxes(0, 1)

    def _visited(
        self, shards: Sequence[int] | np.ndarray, step: int, workers: Sequence[int] | None
    ) -> np.ndarray:
        """The batches of one step, each from the shard that its worker walks then."""
        chosen = range(len(shards)) if workers is None else workers
        first = step * self.batch_size
        return np.stack([self._walk(int(shards[w]), first, self.batch_size) for w in chosen])

    def _walk(self, worker: int, first: int, size: int) -> np.ndarray:
        """Entries `first` to `first + size - 1` of a worker's endless sequence."""
        epoch, begin = divmod(first, len(self.shards[worker]))
        pieces = []
        while size > 0:
            piece = self._order(worker, epoch)[begin : begin + size]
            pieces.append(piece)
            size -= len(piece)
            epoch, begin = epoch + 1, 0
        return np.concatenate(pieces)

    def _order(self, worker: int, epoch: int) -> np.ndarray:
        """A worker's shard in the order of one epoch."""
        recent = self._orders[worker]
        order = recent.get(epoch)
        if order is None:
            order = generator(self.seed, worker, epoch).permutation(self.shards[worker])
            # A loader thread may do the same at the same time: this order is right whichever stays.
            for old in list(recent)[:-1]:
                recent.pop(old, None)
            recent[epoch] = order
        return order


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    """How many examples there are; refuses arrays that do not agree."""
    shapes = {name: array.shape for name, array in arrays.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or () in lengths:
        raise Refused(
            f"examples have shapes {shapes}: expected one or more arrays with the same leading "
            'axis; write {"image": images, "label": labels}'
        )
    return lengths.pop()[0]


def _shard(shard: np.ndarray, worker: int, count: int) -> np.ndarray:
    """A worker's indices as an array; refuses what can not be walked."""
    array = np.asarray(shard)
    if array.size == 0:
        raise Refused(
            f"the shard of worker {worker} is empty: expected at least one example for every "
            "worker; write a split with fewer workers, or split.iid"
        )
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise Refused(
            f"the shard of worker {worker} has shape {array.shape} and type {array.dtype}: "
            "expected integers [examples]; write np.flatnonzero(mask) if it is a mask"
        )
    if array.min() < 0 or array.max() >= count:
        raise Refused(
            f"the shard of worker {worker} reaches from {array.min()} to {array.max()}: expected "
            f"indices from 0 to {count - 1}; write a split of these examples, "
            f"split.iid({count}, ...)"
        )
    return array
