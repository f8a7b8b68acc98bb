"""Which class is it? Small images, an MLP and cross-entropy: what the tasks on images share."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import data, models
from jaxdist.errors import Refused
from jaxdist.tasks.base import Task

Split = Literal["iid", "by_label", "dirichlet"]
Examples = dict[str, np.ndarray]


def images(
    train: Examples,
    test: Examples,
    *,
    workers: int,
    batch_size: int,
    split: Split,
    concentration: float,
    seed: int,
    white: int,
    model: Any = None,
    shares: int | None = None,
    visit: Callable[[int], Any] | None = None,
) -> Task:
    """Classifies small images with an MLP of one hidden layer.

    Args:
      train: `image`, uint8 [examples, height, width, channels], and `label`, int32 [examples] from 0 on.
      test: the same, of other examples.
      workers: how many share the training images.
      batch_size: images that one worker sees in a step.
      split: `"iid"`: at random; `"by_label"`: sorted by label and cut; `"dirichlet"`: in between.
      concentration: of the Dirichlet split; the smaller, the more unlike the workers.
      seed: of the split and of the order of the images.
      white: the largest value that a pixel can have; images are divided by it, on the device.
      shares: into how many parts the training images are split; None: one for each worker.
      visit: which part each worker sees at a step, as `jd.data.Stream` takes it; None: its own.
      model: a Flax module from images to logits; None: `models.MLP()`, 64 hidden units, 10 classes.

    Returns:
      A `Task`. Batches are `image`, uint8 [workers, batch_size, ...], and `label`, int32.

    Raises:
      Refused: an unknown split, no workers, no images in a batch.
    """
    labels = train["label"]
    parts = workers if shares is None else shares
    if split == "iid":
        shards = data.split.iid(labels, parts, seed=seed)
    elif split == "by_label":
        shards = data.split.by_label(labels, parts, seed=seed)
    elif split == "dirichlet":
        shards = data.split.dirichlet(labels, parts, concentration=concentration, seed=seed)
    else:
        raise Refused(f"split={split!r} is unknown; write one of {', '.join(get_args(Split))}")
    network: Any = models.MLP() if model is None else model

    def init(key):
        return network.init(key, jnp.zeros((1, *train["image"].shape[1:])))["params"]

    def logits_of(params, image):
        return network.apply({"params": params}, image.astype(jnp.float32) / white)

    def loss_fn(params, batch, key):
        logits = logits_of(params, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {}

    def accuracy(params, test):
        return jnp.mean(jnp.argmax(logits_of(params, test["image"]), -1) == test["label"])

    return Task(
        loss_fn=loss_fn,
        init=init,
        stream=data.Stream(train, shards, batch_size=batch_size, seed=seed, visit=visit),
        accuracy=accuracy,
        test=test,
        classes=10,
    )
