"""Uneven shares of a batch in arrays of one shape: padding, and weights that make up for it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxdist.errors import Refused

WEIGHT = "weight"


def deal(
    batch: dict[str, Any], shares: Sequence[ArrayLike] | np.ndarray, *, pad_to: int | None = None
) -> dict[str, Any]:
    """Gives every worker as many examples as it can bear, with weights that keep the mean the mean.

    All workers run one program, so their batches have one shape: shares are filled up with copies of
    a row of the batch, whose weight is 0. The weight of a real example is workers x pad_to / examples,
    so that the mean over all places of all workers is the mean over all examples. Weigh the losses
    *before* you take their mean, and every other mean alike:

        loss = jnp.mean(batch["weight"] * losses)

    The mean of the workers' gradients is then that of all the examples in one batch, for
    `jd.all_reduce` and all methods that average gradients, with `accumulate` as well. Methods that
    keep a model a worker see losses in proportion to the worker's examples.

    Args:
      batch: a dict of arrays `[examples, ...]`.
      shares: for each worker how many rows it gets, the next ones in order (`jd.balance` proposes
        them), or which ones, as `jd.data.split` returns them. An empty share is a share.
      pad_to: the places of every worker; give the same at every step, or every new largest share is
        compiled anew. None: the largest share.

    Returns:
      The batch with leaves `[workers, pad_to, ...]`, and a leaf "weight" `[workers, pad_to]`, float32
      unless the batch holds float64.

    Raises:
      Refused: shares that are not those of the batch, a share above `pad_to`, or a batch that has
        a "weight" already.

    Example:
      >>> batch = deal({"x": np.arange(5.0)}, [3, 1, 1])
      >>> batch["x"].tolist()
      [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [4.0, 0.0, 0.0]]
      >>> print(f"{np.mean(batch['weight'] * batch['x']):.3f}")  # the mean of all five
      2.000
    """
    sizes = {len(x) for x in jax.tree.leaves(batch) if np.ndim(x)}
    if not isinstance(batch, dict) or len(sizes) != 1 or WEIGHT in batch:
        raise Refused(
            f"deal was given a batch with leading axes {sorted(sizes)}"
            f"{' and a weight of its own' if isinstance(batch, dict) and WEIGHT in batch else ''}; expected "
            'a dict of arrays [examples, ...] without a "weight": {"image": images, "label": labels}'
        )
    examples = sizes.pop()
    rows = _rows(shares, examples)
    largest = max(len(own) for own in rows)
    places = largest if pad_to is None else pad_to
    if places < largest or places < 1:
        raise Refused(
            f"pad_to={pad_to!r} is too small for a share of {largest} examples; write pad_to={largest}"
        )
    pick = np.zeros((len(rows), places), int)
    exact = any(np.result_type(x) == np.float64 for x in jax.tree.leaves(batch))
    weight = np.zeros((len(rows), places), np.float64 if exact else np.float32)
    for i, own in enumerate(rows):
        pick[i, : len(own)] = own
        weight[i, : len(own)] = weight.size / sum(map(len, rows))
    return {**jax.tree.map(lambda x: np.asarray(x)[pick], batch), WEIGHT: weight}


def _rows(shares: Any, examples: int) -> list[np.ndarray]:
    """Which rows each worker gets."""
    given = [np.asarray(share) for share in shares]
    whole = all(np.issubdtype(x.dtype, np.integer) or not x.size for x in given)
    if given and whole and all(x.ndim == 0 for x in given):
        counts = [int(x) for x in given]
        if min(counts) < 0 or sum(counts) != examples:
            raise Refused(
                f"the shares {counts} sum to {sum(counts)}, but the batch has {examples} examples; write "
                f"for example jd.balance(clock, {examples})"
            )
        return np.split(np.arange(examples), np.cumsum(counts)[:-1])
    if not given or not whole or any(x.ndim != 1 for x in given) or not sum(map(len, given)):
        raise Refused(
            f"shares={shares!r} are neither numbers of examples nor lists of rows, one for each worker; "
            "write for example [3, 1] or [[0, 1, 2], [3]]"
        )
    rows = [x.astype(int) for x in given]
    everything = np.concatenate(rows)
    if everything.min() < 0 or everything.max() >= examples:
        raise Refused(
            f"the shares name the rows {everything.min()} to {everything.max()}, but the batch has only "
            f"0 to {examples - 1}; deal out the batch that the rows were drawn for"
        )
    return rows
