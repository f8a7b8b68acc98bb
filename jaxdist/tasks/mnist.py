"""MNIST out of TFDS: 60,000 handwritten digits, which must be prepared once."""

import os

from jaxdist import data
from jaxdist.tasks.base import Task
from jaxdist.tasks.images import Split, images


def mnist(
    workers: int,
    *,
    batch_size: int = 32,
    split: Split = "iid",
    concentration: float = 0.1,
    seed: int = 0,
    train: str = "train",
    test: str = "test",
    data_dir: str | os.PathLike[str] | None = None,
) -> Task:
    """Which digit is it? 60,000 images of 28x28 to learn from, 10,000 to test, 50,890 parameters.

    LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 86, 1998.

    Args:
      workers: how many share the training images.
      batch_size: images that one worker sees in a step.
      split: `"iid"`: at random; `"by_label"`: sorted by digit and cut; `"dirichlet"`: in between.
      concentration: of the Dirichlet split; the smaller, the more unlike the workers.
      seed: of the split and of the order of the images.
      train: which part to learn from, as TFDS writes it: `"train[:90%]"`.
      test: which to test on, for example `"train[90%:]"` while choosing a learning rate.
      data_dir: where prepared data sets are; None: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Returns:
      A `Task`. Batches are `image`, uint8 [workers, batch_size, 28, 28, 1], and `label`, int32.

    Raises:
      Refused: MNIST is not prepared (says how), or what `tasks.digits` refuses.
    """
    names = ("image", "label")
    return images(
        data.tfds.load("tfds:mnist", train, features=names, data_dir=data_dir),
        data.tfds.load("tfds:mnist", test, features=names, data_dir=data_dir),
        workers=workers,
        batch_size=batch_size,
        split=split,
        concentration=concentration,
        seed=seed,
        white=255,
    )
