"""Tiny data sets for tests: images that tell which one they are, in files and in ArrayRecord."""

import io

import cv2
import numpy as np
from ml_collections import ConfigDict


def picture(value, height=6, width=9, channels=3):
    """An image that tells which one it is: its mean is `value`."""
    return np.full((height, width, channels), value, np.uint8)


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image[..., ::-1] if image.shape[2] == 3 else image)[1].tobytes()


def settings(source, path="", name="", split="train", per_class=0):
    """What the sources read of config.data."""
    return ConfigDict(dict(source=source, path=str(path), name=name, split=split, per_class=per_class))


def prepare(data_dir, version="1.0.0", feature="image", first=0, labels=("y",)):
    """Prepares a small ArrayRecord data set; images handed over encoded need no TensorFlow.

    Image i has the value first + i and the label i % 3; in the split "unlabelled" only image 0 has one, and the
    other's is -1, as it is in TFDS.
    """
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            features = {feature: tfds.features.Image(shape=(None, None, 3))}
            features |= {label: tfds.features.ClassLabel(names=["c", "a", "b"]) for label in labels}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(10),
                "test": self._generate_examples(3),
                "unlabelled": self._generate_examples(2, labelled=False),
            }

        def _generate_examples(self, count, labelled=True):
            for i in range(count):
                image = {feature: io.BytesIO(encode(picture(first + i, height=5 + first + i)))}
                yield i, image | dict.fromkeys(labels, i % 3 if labelled or i == 0 else -1)

    Tiny(data_dir=data_dir, file_format="array_record").download_and_prepare()
