"""Scikit-learn's handwritten digits, an MLP and cross-entropy: a task of seconds, with no download."""

from typing import Any, Literal, get_args

import jax.numpy as jnp
import optax

from jaxdist import data, models
from jaxdist.cohort import Cohort
from jaxdist.tasks.base import Task

Split = Literal["iid", "by_label", "dirichlet"]


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
      ValueError: an unknown split, no workers, no images in a batch.

    Example:
      >>> task = digits(4, split="by_label")
      >>> task.stream.batch(0)["label"].shape
      (4, 32)
    """
    images = data.digits.load()
    labels = images.train_labels
    shares = workers if cohort is None else cohort.clients
    if split == "iid":
        shards = data.split.iid(labels, shares, seed=seed)
    elif split == "by_label":
        shards = data.split.by_label(labels, shares, seed=seed)
    elif split == "dirichlet":
        shards = data.split.dirichlet(labels, shares, concentration=concentration, seed=seed)
    else:
        raise ValueError(f"split={split!r} is unknown; write one of {', '.join(get_args(Split))}")
    model: Any = models.MLP()

    def init(key):
        return model.init(key, jnp.zeros((1, 8, 8, 1)))["params"]

    def logits_of(params, image):
        return model.apply({"params": params}, image.astype(jnp.float32) / 16)  # from 0 to 16

    def loss_fn(params, batch, key):
        logits = logits_of(params, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {}

    def accuracy(params, test):
        return jnp.mean(jnp.argmax(logits_of(params, test["image"]), -1) == test["label"])

    return Task(
        loss_fn=loss_fn,
        init=init,
        stream=data.Stream(
            {"image": images.train_images, "label": labels},
            shards,
            batch_size=batch_size,
            seed=seed,
            visit=None if cohort is None else lambda step: cohort(step // local_steps),
        ),
        accuracy=accuracy,
        test={"image": images.test_images, "label": images.test_labels},
        classes=10,
    )
