"""Scikit-learn's handwritten digits: a task of seconds, with no download."""

from jaxdist import data
from jaxdist.cohort import Cohort
from jaxdist.tasks.base import Task
from jaxdist.tasks.images import Split, images


def digits(
    workers: int,
    *,
    batch_size: int = 32,
    split: Split = "iid",
    concentration: float = 0.1,
    seed: int = 0,
    cohort: Cohort | None = None,
    local_steps: int = 1,
) -> Task:
    """Which digit is it? 1,437 images of 8x8 to learn from, 360 to test, 4,810 parameters.

    Args:
      workers: how many share the training images.
      batch_size: images that one worker sees in a step.
      split: `"iid"`: at random; `"by_label"`: sorted by digit and cut; `"dirichlet"`: in between.
      concentration: of the Dirichlet split; the smaller, the more unlike the workers.
      seed: of the split and of the order of the images.
      cohort: what `jd.cohort` returned, for more clients than workers: the images are shared by its
        clients, and each worker sees those of the client that it drew.
      local_steps: steps in a round, from one draw to the next.

    Returns:
      A `Task`. Batches are `image`, uint8 [workers, batch_size, 8, 8, 1], and `label`, int32.

    Raises:
      Refused: an unknown split, no workers, no images in a batch.

    Example:
      >>> task = digits(4, split="by_label")
      >>> task.stream.batch(0)["label"].shape
      (4, 32)
    """
    found = data.digits.load()
    return images(
        {"image": found.train_images, "label": found.train_labels},
        {"image": found.test_images, "label": found.test_labels},
        workers=workers,
        batch_size=batch_size,
        split=split,
        concentration=concentration,
        seed=seed,
        white=16,
        shares=None if cohort is None else cohort.clients,
        visit=None if cohort is None else lambda step: cohort(step // local_steps),
    )
