"""Scikit-learn's handwritten digits as a TFDS builder, prepared with neither network nor TensorFlow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxdist.data import digits


class Digits(tfds.core.GeneratorBasedBuilder):
    """`tfds:digits`, the arrays of `data.digits.load()`: train 1,437 examples, test 360.

    An example: `image`, uint8 [8, 8, 1] from 0 (paper) to 16 (ink), and `label`, int64 [] from 0 to 9.
    Licence: CC BY 4.0, see `data.digits`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The 1,797 handwritten digits that scikit-learn carries.",
            features=tfds.features.FeaturesDict(
                {
                    # Not an Image: encoding one needs TensorFlow, and these pixels end at 16.
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation="Alpaydin and Kaynak, UCI Machine Learning Repository, 1998.",
            # TFDS would order examples by a hash of their keys; this keeps the order of the arrays.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        found = digits.load()
        return {
            "train": self._generate_examples(found.train_images, found.train_labels),
            "test": self._generate_examples(found.test_images, found.test_labels),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield number, {"image": image, "label": int(label)}
