"""What is looked at in the first batch, before anything is compiled for it."""

from collections.abc import Mapping

import numpy as np

from jaxdist.errors import Refused

LABELS = ("label", "labels")


def check_batch(batch: Mapping[str, np.ndarray], *, classes: int | None = None) -> None:
    """Refuses a batch that can not be learned from.

    Args:
      batch: arrays by name, leaves `[workers, batch, ...]`.
      classes: labels (the leaf named `label`) are integers from 0 to classes - 1; None: unknown.

    Raises:
      Refused: values that are not finite, types that JAX would not take as they are, labels out of
        range; names the leaf and the worker.
    """
    for name, leaf in batch.items():
        array = np.asarray(leaf)
        if not array.size:
            raise Refused(f"batch[{name!r}] has shape {array.shape}: it is empty")
        if array.dtype.kind not in "biuf" and array.dtype.kind != "V":
            raise Refused(
                f"batch[{name!r}] has type {array.dtype}: expected numbers; encode it first"
            )
        if array.dtype == np.float64:
            raise Refused(
                f"batch[{name!r}] is float64, which JAX would cut to float32; "
                "write .astype(np.float32)"
            )
        if array.dtype.kind in "fV" and not (finite := np.isfinite(array)).all():
            worker = int(np.argwhere(~finite)[0][0])
            raise Refused(
                f"batch[{name!r}] holds {array[~finite][0]} in the rows of worker {worker}: expected "
                "finite numbers; clean the data, or write np.nan_to_num"
            )
        if name in LABELS and array.dtype.kind in "iu":
            bad = (array < 0) | (array >= classes if classes is not None else False)
            if bad.any():
                worker = int(np.argwhere(bad)[0][0])
                top = "0 or more" if classes is None else f"0 to {classes - 1}"
                raise Refused(
                    f"batch[{name!r}] holds {array[bad][0]} in the rows of worker {worker}: expected "
                    f"{top}; write np.unique(labels, return_inverse=True)[1]"
                )
