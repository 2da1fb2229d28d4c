"""Data sets that TensorFlow Datasets (TFDS) prepared as ArrayRecord. TensorFlow is neither needed nor imported."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded, Undecoded
from greenjax.data.sources.array_record import count_records, naming_damage
from greenjax.data.sources.base import Source
from greenjax.errors import InputError, NoLabels, installed, listed, refuse
from greenjax.runtime.files import expanded, folders_in

VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class TfdsSource(Source):
    """One split of a TFDS data set; only the feature `image` is decoded, by greenjax."""

    place = ("data.path", "data.name")

    examples: Any = field(compare=False)  # tfds.core.data_sources.BaseDataSource: a sequence of dicts
    image: str  # the feature
    name: str  # of data set, version and split
    shards: tuple[str, ...] = field(compare=False)  # copies of a data set are equal
    counts: tuple[int, ...]  # images in each shard

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        of_init = values["task"] in ("eval", "knn") and values["init"] != "none"  # configs/eval.py names no data
        if not (values["data.name"] or values["data.path"] or of_init):
            refuse(values, "data.name", "a name such as 'imagenet2012', or data.path, for data.source 'tfds'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "TfdsSource":
        tfds = library()
        folder = find_builder(data.path, data.name)
        builder: Any = tfds.builder_from_directory(folder)
        array_record = tfds.core.FileFormat.ARRAY_RECORD
        formats = [stored.value for stored in builder.info.available_file_formats()]
        if array_record.value not in formats:
            command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
            found = f"{str(folder)!r} is stored as {listed(formats)}, expected 'array_record'"
            raise InputError(f"{found}: `{command}` converts it (docs/data.md)")
        if split not in builder.info.splits:
            available = listed(builder.info.splits)
            raise InputError(f"{str(folder)!r} has no split {split!r}: available are {available}")
        images = features_of(builder.info.features, tfds.features.Image)
        image = image_feature(folder, builder.info.features, images)
        instructions = builder.info.splits[split].file_instructions
        shards, counts = tuple(each.filename for each in instructions), tuple(each.take for each in instructions)
        count_records(shards, "prepare the data set anew, or copy it again", counts)
        decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
        examples = builder.as_data_source(split, decoders=decoders, file_format=array_record)
        return cls(examples, image, f"{builder.info.full_name} {split}", shards, counts)

    def __len__(self) -> int:
        return len(self.examples)

    def encoded(self, index: int) -> Encoded:
        return self.image_of(self.example(index), index)

    def example(self, index: int) -> Mapping[str, Any]:
        """All features, the image not decoded. Raises DecodeError."""
        with naming_damage(self.name_of(index), index, self.shards, self.counts):
            example = self.examples[index]
        if example[self.image] is None:
            raise DecodeError(f"{self.name_of(index)} has no image")
        return example

    def image_of(self, example: Mapping[str, Any], index: int) -> Encoded:
        """The image of the example `index`."""
        return Encoded(example[self.image], self.name_of(index))

    def name_of(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def labelled(self, training: bool) -> "TfdsLabelled":
        """The label is the feature `label`, or the only ClassLabel."""
        tfds = library()
        features = self.examples.dataset_info.features
        labels = features_of(features, tfds.features.ClassLabel)
        label = named_or_only("label", labels)
        if label is None:
            found = f"its features are {listed(sorted(features))}"
            raise (InputError if labels else NoLabels)(
                f"{self.name!r} needs a class label, named 'label' or the only one: {found}"
            )
        return TfdsLabelled(self, label, tuple(features[label].names))

    def parts(self) -> Iterator[bytes]:
        yield repr((self.name, len(self))).encode()


@dataclass(frozen=True)
class TfdsLabelled(Undecoded):
    """One split with its labels. A record holds image and label, so that reading a label reads its image's file."""

    source: TfdsSource
    feature: str
    classes: tuple[str, ...]
    labels: None = None

    def __len__(self) -> int:
        return len(self.source)

    def encoded(self, index: int) -> tuple[Encoded, int]:
        example = self.source.example(index)
        return self.source.image_of(example, index), self.checked(example, index)

    def label(self, index: int) -> int:
        return self.checked(self.source.example(index), index)

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

    def checked(self, example: Mapping[str, Any], index: int) -> int:
        """The label of the example `index`. Raises InputError where it is none of the classes."""
        label = int(example[self.feature])
        if not 0 <= label < len(self.classes):  # TFDS marks images whose class is not public by -1
            allowed = f"0 or more, below {len(self.classes)}, the classes of feature {self.feature!r}"
            raise InputError(f"label {label} of image {self.source.name_of(index)}: expected {allowed}")
        return label


def image_feature(folder: Path, features: Any, images: list[str]) -> str:
    """The feature that holds the images: `image`, or the only one of `images`. Raises InputError for none."""
    image = named_or_only("image", images)
    if image is None:
        what = "needs an image feature, named 'image' or the only one"
        raise InputError(f"{str(folder)!r} {what}: its features are {listed(features)}")
    kind = np.dtype(features[image].np_dtype).name
    if kind not in ("uint8", "uint16"):  # TFDS stores the bytes of float32 as pixels of four channels
        raise InputError(f"{str(folder)!r} has feature {image!r} of {kind}: expected an image of uint8 or uint16")
    return image


def features_of(features: Any, kind: type) -> list[str]:
    """Names of the features of a FeaturesDict that are of exactly this kind."""
    return [name for name, feature in features.items() if type(feature) is kind]


def named_or_only(name: str, names: list[str]) -> str | None:
    return name if name in names else names[0] if len(names) == 1 else None


def find_builder(path: str, name: str) -> Path:
    """The directory of a prepared data set: `path` itself, or that of `name` in the data_dir `path`.

    `name` is "name", "name/config", "name:version" or "name/config:version"; without a version the newest one is
    taken. An empty `path` is TFDS's own default.
    """
    root = expanded(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if (root / "dataset_info.json").is_file():
        return root
    name, _, version = name.partition(":")
    folder = root / name
    infos = folder.glob(f"{version or '*'}/dataset_info.json") if name else ()
    prepared = [info.parent for info in infos if VERSION.fullmatch(info.parent.name)]
    if not prepared:
        raise InputError(
            f"{str(folder)!r} holds no prepared TFDS data set {version or name}: expected VERSION/dataset_info.json,"
            f" found {listed(folders_in(folder)) or 'no folders'}; data.path and data.name say where, and"
            " `tfds build NAME --data_dir=PATH --file_format=array_record` prepares one (docs/data.md)"
        )
    return max(prepared, key=lambda version: [int(part) for part in version.name.split(".")])


def library() -> Any:
    """The module `tensorflow_datasets`: only this source needs it."""
    return installed("tensorflow_datasets", "greenjax[tfds]", "data.source 'tfds' needs tensorflow-datasets")
