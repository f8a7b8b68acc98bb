"""A small MNIST that looks like a prepared one: drawn images, written by TFDS as array_record."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration

TRAIN, TEST = 512, 40


def drawn(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, 28, 28, 1] with a bright row that tells the label, and labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 10, count)
    images = draw.integers(0, 60, (count, 28, 28, 1)).astype(np.uint8)
    images[np.arange(count), 2 * labels + 4] = 255
    return images, labels


def write_mnist(data_dir: Path) -> Path:
    """Prepares it in a folder; returns the path of the set."""
    with skip_registration():

        class Mnist(tfds.core.GeneratorBasedBuilder):
            """Named and shaped as the stock builder, without what that downloads."""

            VERSION = tfds.core.Version("3.0.1")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "name": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {
                    "train": self._generate_examples(TRAIN, 0),
                    "test": self._generate_examples(TEST, 1),
                }

            def _generate_examples(self, count, seed):
                for number, (image, label) in enumerate(zip(*drawn(count, seed=seed), strict=True)):
                    # Pixels would need TensorFlow to become a PNG; a file that is one does not.
                    file = io.BytesIO()
                    Image.fromarray(image[..., 0]).save(file, "png")
                    file.seek(0)
                    yield number, {"image": file, "label": int(label), "name": f"number {number}"}

    builder = Mnist(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return data_dir / "mnist" / "3.0.1"
