"""How examples are split over workers: evenly at random, by label, or by a Dirichlet draw.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
AISTATS 2017. arXiv:1602.05629
Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019.
arXiv:1905.12022
"""

import numpy as np
from numpy.typing import ArrayLike

from jaxdist.data.randomness import generator
from jaxdist.errors import Refused


def iid(labels_or_n: ArrayLike, workers: int, *, seed: int) -> list[np.ndarray]:
    """Every worker gets an even share at random: the workers' data are alike.

    Args:
      labels_or_n: the number of examples, or an array with one entry for each of them.
      workers: how many shards.
      seed: the same seed gives the same split.

    Returns:
      One sorted array of indices for each worker; disjoint, complete, and even up to one example.

    Example:
      >>> [len(shard) for shard in iid(10, 4, seed=0)]
      [3, 3, 2, 2]
    """
    given = np.asarray(labels_or_n)
    if given.ndim == 0 and not np.issubdtype(given.dtype, np.integer):
        raise Refused(
            f"labels_or_n={labels_or_n!r}: expected a number of examples or an array with one "
            "entry for each; write len(labels)"
        )
    count = int(given) if given.ndim == 0 else len(given)
    _check_workers(workers, count)
    order = generator(seed).permutation(count)
    return [np.sort(shard) for shard in np.array_split(order, workers)]


def by_label(labels: ArrayLike, workers: int, *, seed: int) -> list[np.ndarray]:
    """Sorted by label and cut into even pieces: the workers' data are as unlike as can be.

    With C classes of about one size a worker sees C / workers of them, and the two it may have been
    cut in.

    Args:
      labels: integers [examples].
      workers: how many shards.
      seed: which examples of a class go to which of the workers that share it.

    Returns:
      One sorted array of indices for each worker; disjoint, complete, and even up to one example.

    Example:
      >>> labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
      >>> [labels[shard].tolist() for shard in by_label(labels, 2, seed=0)]
      [[0, 0, 0, 0], [1, 1, 1, 1]]
    """
    classes = _check_labels(labels)
    _check_workers(workers, len(classes))
    order = generator(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    return [np.sort(shard) for shard in np.array_split(order, workers)]


def dirichlet(
    labels: ArrayLike, workers: int, *, concentration: float, seed: int
) -> list[np.ndarray]:
    """Each class is dealt to the workers in proportions drawn from a Dirichlet distribution.

    For each class, p ~ Dirichlet(concentration, ..., concentration) over the workers, and worker i
    gets the fraction p_i of its examples. 100 is close to `iid`; 1 is uneven; at 0.1 most of a
    class is with one or two workers. Shards differ in size as well. A worker that the draw leaves
    with nothing gets one example of the largest shard, so that every worker has a gradient.

    Args:
      labels: integers [examples].
      workers: how many shards.
      concentration: above zero; the smaller, the more unlike the workers.
      seed: the same seed gives the same split.

    Returns:
      One sorted array of indices for each worker; disjoint, complete, none of them empty.

    Example:
      >>> labels = np.repeat(np.arange(4), 25)
      >>> shards = dirichlet(labels, 4, concentration=0.1, seed=0)
      >>> np.array([np.bincount(labels[shard], minlength=4) for shard in shards])
      array([[ 0,  1,  0,  0],
             [ 9, 18,  0, 23],
             [ 4,  0, 17,  0],
             [12,  6,  8,  2]])
    """
    classes = _check_labels(labels)
    _check_workers(workers, len(classes))
    if not (np.isfinite(concentration) and concentration > 0):
        raise Refused(
            f"concentration={concentration!r}: expected a number above zero; write "
            "concentration=0.1 for skewed workers, or split.iid for workers that are alike"
        )
    random = generator(seed)
    pieces: list[list[np.ndarray]] = [[] for _ in range(workers)]
    for label in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == label))
        share = random.dirichlet(np.full(workers, float(concentration)))
        cuts = np.rint(np.cumsum(share)[:-1] * len(members)).astype(int)
        for worker, piece in enumerate(np.split(members, cuts)):
            pieces[worker].append(piece)
    shards = [np.concatenate(parts) for parts in pieces]
    for worker in range(workers):
        if not len(shards[worker]):
            largest = max(range(workers), key=lambda other: len(shards[other]))
            shards[worker], shards[largest] = shards[largest][:1], shards[largest][1:]
    return [np.sort(shard) for shard in shards]


def _check_labels(labels: ArrayLike) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise Refused(
            f"labels have shape {array.shape} and type {array.dtype}: expected integers "
            "[examples]; write labels.argmax(-1) if they are one-hot, or "
            "np.unique(labels, return_inverse=True)[1] if they are names"
        )
    return array


def _check_workers(workers: int, examples: int) -> None:
    if workers < 1:
        raise Refused(f"workers={workers}: expected one or more; write workers=1")
    if workers > examples:
        raise Refused(
            f"workers={workers} can not share {examples} examples: expected at least one example "
            f"for each worker; write workers={max(examples, 1)} or fewer"
        )
