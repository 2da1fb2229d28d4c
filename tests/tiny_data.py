"""Tiny data sets for tests: images that tell which one they are, in files and in ArrayRecord."""

import io
import json

import cv2
import numpy as np
from ml_collections import ConfigDict


def picture(value, height=6, width=9, channels=3):
    """An image that tells which one it is: its mean is `value`."""
    return np.full((height, width, channels), value, np.uint8)


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image[..., ::-1] if image.shape[2] == 3 else image)[1].tobytes()


def settings(source, path="", name="", split="train", per_class=0, image_column="", label_column=""):
    """What the sources read of config.data."""
    columns = dict(image_column=image_column, label_column=label_column)
    return ConfigDict(dict(source=source, path=str(path), name=name, split=split, per_class=per_class, **columns))


def of_pictures(data):
    """A config of pictures of 8 bits with the section `data`."""
    reading = dict(dtype="uint8", channels=(), alpha="drop", page=0, no_data="none")
    return ConfigDict(dict(data=reading | data.to_dict(), model=dict(in_channels=3)))


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


SQUARE, TRIANGLE = [1, 1, 5, 1, 5, 5, 1, 5], [6.5, 1, 9, 1, 9, 6.25]
COLUMNS = {"size": [8, 12], "counts": [16, 16, 64]}  # uncompressed run lengths: the third and the fourth column


def coco(folder, split="train", count=6, **changes):
    """Writes a data set in COCO's layout, and returns its JSON, of which `changes` replace parts.

    Image i is 8 x 12 pixels of the value i. Image 0 has no objects, image 1 only a crowd, the others one to four
    objects, with all kinds of segmentation.
    """
    from pycocotools import mask

    compressed = {"size": [8, 12], "counts": mask.frPyObjects([SQUARE], 8, 12)[0]["counts"].decode()}
    kinds = [([1, 1, 4, 4], [SQUARE]), ([1, 1, 8, 5.25], [SQUARE, TRIANGLE]), ([2, 0, 2, 8], COLUMNS)]
    kinds += [([1, 1, 4, 4], compressed)]
    rows = [(1, ([0, 0, 12, 8], COLUMNS), 1)]
    rows += [(image, kinds[k], 0) for image in range(2, count) for k in range(1 + (image - 2) % 4)]
    annotations = [
        {"id": n, "image_id": 10 + image, "category_id": (7, 3)[n % 2], "bbox": box, "area": 16.5, "iscrowd": crowd}
        | {"segmentation": segmentation}
        for n, (image, (box, segmentation), crowd) in enumerate(rows, 1)
    ]
    names = [f"{i}.png" for i in range(count)]
    found = {
        "images": [dict(id=10 + i, file_name=name, height=8, width=12) for i, name in enumerate(names)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": annotations,
    } | changes
    for path in (folder / split, folder / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        (folder / split / name).write_bytes(encode(picture(i, 8, 12)))
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))
    return found
