"""A mean of which every worker keeps its own share, and all shares put together."""

import jax

from jaxdist import buckets, faults, worker
from jaxdist.reduction.base import PyTree


def scattered_mean(rows: PyTree) -> PyTree:
    """The mean over all workers, of which each keeps one row.

    Args:
      rows: leaves `[workers, n]`, floating point; row i is to be worker i's.

    Returns:
      Leaves `[n]`, this worker's own. Values below float32 are averaged in float32 and cast back.

    Raises:
      Refused: workers may be away (`jd.faulty`), and nobody else would have their rows.

    Communication:
      Every leaf once, in at least float32, as the operand of a reduce-scatter, small ones together; a
      ring moves (W - 1) / W of that in and out of every worker.
    """
    faults.refuse_away(
        "a share of the parameters is at one worker only",
        "write jd.all_reduce(rule), or faults that lose messages only: "
        "jd.faults.link_loss(0.01, seed=0)",
    )
    wide = jax.tree.map(lambda x: x.astype(worker.accumulation_dtype(x.dtype)), rows)
    buffers, restore = buckets.pack(wide, leading=1)
    summed = restore(worker.scatter(buffers))
    return jax.tree.map(lambda s, x: (s[0] / worker.count()).astype(x.dtype), summed, rows)


def gathered(tree: PyTree) -> PyTree:
    """Everybody's row of every leaf: leaves `[n]` to `[workers, n]`, the same for every worker.

    Args:
      tree: this worker's rows.

    Returns:
      The rows of all workers, in their order.

    Communication:
      Every leaf once, in its own dtype, as the operand of an all-gather, small ones together; a ring
      moves W - 1 times that in and out of every worker.
    """
    buffers, restore = buckets.pack(jax.tree.map(lambda x: x[None], tree), leading=1)
    return restore([x[:, 0] for x in worker.gather(buffers)])
