"""Where images come from: scikit-learn's digits, a directory of images, prepared records, or a TFDS data set.

A source is a sequence of decoded images that can be pickled for data workers. All share one grammar of
splits: NAME or NAME[from:to], where from and to count images or percent (train[:98%]), negative ones from the
end.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded, Image, decoded, undecoded
from greenjax.data.records import count_records, naming_damage, open_records
from greenjax.errors import InputError, listed
from greenjax.runtime.files import expanded

SUFFIXES = (".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png")
SUFFIXES += (".pnm", ".ppm", ".tif", ".tiff", ".webp")
# Of images and of what cameras write, that are not read. Other files beside the images are none of a user's concern.
UNREAD = (".apng", ".arw", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico")
UNREAD += (".jxl", ".jxr", ".nef", ".orf", ".pcx", ".pfm", ".psd", ".raf", ".rw2", ".sgi", ".svg", ".tga", ".xcf")

Opener = Callable[[ConfigDict, str], Any]  # config.data and the NAME of a split -> a source

_SPLIT = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<start>(-?\d+%?)?):(?P<stop>(-?\d+%?)?)\])?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@runtime_checkable
class Source(Protocol):
    """Images by index: RGB or grey, as they are stored."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """One image, c = 1 or 3. Raises DecodeError."""
        ...


def open_source(data: ConfigDict, split: str) -> Source:
    """The images of a split of the data set that `config.data` describes.

    Raises InputError if the data set, the split or any image in it is not there.
    """
    name, _, _ = parse_split(split)
    openers = {"digits": open_digits, "folder": open_folder, "records": open_records, "tfds": open_tfds}
    source = opener(data, openers)(data, name)
    rows = split_range(split, len(source))
    return source if len(rows) == len(source) else Slice(source, rows.start, rows.stop)


def opener(data: ConfigDict, openers: Mapping[str, Opener]) -> Opener:
    """The one for `data.source`."""
    if data.source not in openers:
        raise InputError(f"data.source is {data.source!r}: expected one of {listed(openers)}")
    return openers[data.source]


def parse_split(split: str) -> tuple[str, str, str]:
    """The name and the two boundaries, "" where not given. Raises InputError for another grammar."""
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise InputError(f"split {split!r}: expected NAME or NAME[from:to], such as train or train[:98%]")
    return match["name"], match["start"] or "", match["stop"] or ""


def split_range(split: str, length: int) -> range:
    """Which of the `length` images of its NAME a split takes. Raises InputError if there are none."""
    name, start, stop = parse_split(split)
    first, last = _boundary(split, start, length, 0), _boundary(split, stop, length, length)
    if first >= last:
        raise InputError(f"split {split!r} is empty: {name!r} has {length} images")
    return range(first, last)


def _boundary(split: str, text: str, length: int, default: int) -> int:
    """A boundary as an index. Percent are rounded to the nearest image, as TFDS does."""
    if not text:
        return default
    index = round(length * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    if abs(index) > length:
        raise InputError(f"split {split!r} reaches beyond its {length} images")
    return index + length if text.startswith("-") else index


@dataclass(frozen=True)
class Slice:
    """The images `start` up to `stop` of another source."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return decoded(self.encoded(index))

    def encoded(self, index: int) -> Image:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return undecoded(self.source, self.start + index)

    def name_of(self, index: int) -> str:
        named = getattr(self.source, "name_of", None)
        return str(self.start + index) if named is None else named(self.start + index)


# Digits


def open_digits(data: ConfigDict, name: str) -> UInt8[np.ndarray, "n 8 8 1"]:
    """scikit-learn's 1,797 handwritten digits: "train" is the first 1,500, "test" the rest, "all" both."""
    return read_digits(name)[0]


def read_digits(name: str) -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, " n"]]:
    """The digits of a split as pictures and as numbers."""
    from sklearn.datasets import load_digits  # only this source needs scikit-learn

    parts = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}
    if name not in parts:
        raise InputError(f"digits have no split {name!r}: expected one of {listed(parts)}")
    pixels, digits = load_digits(return_X_y=True)  # pixels are 0 to 16
    images = np.round(pixels[parts[name]] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images, digits[parts[name]].astype(np.int32)


# Folder


@dataclass(frozen=True)
class FolderSource:
    """Image files under `root`."""

    root: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return self.encoded(index).decode()

    def encoded(self, index: int) -> Encoded:
        path = self.name_of(index)
        try:
            with open(path, "rb", buffering=0) as file:  # read at once, without a buffer between
                return Encoded(file.read(), path)
        except OSError as error:
            raise DecodeError(f"{path} cannot be read: {error.strerror}") from error

    def name_of(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])


def open_folder(data: ConfigDict, name: str) -> FolderSource:
    """The images below data.path ("all") or below its sub-folder `name`, class sub-folders or not.

    Their order is that of a hash of their names: classes mix, so that a slice has images of all of them, and
    a new file leaves the order of the others alone.
    """
    root = split_folder(data, name)
    names = find_images(root)
    if not names:
        raise InputError(f"{str(root)!r} has no images: expected *{', *'.join(SUFFIXES)}, at any depth")
    names.sort(key=lambda name: blake2b(os.fsencode(name), digest_size=8).digest())
    return FolderSource(str(root), names)


def split_folder(data: ConfigDict, name: str) -> Path:
    """The directory of a split."""
    root = expanded(data.path)
    if not data.path or not root.is_dir():
        raise InputError(f"data.path is {data.path!r}: expected a directory of images")
    if name == "all":
        return root
    if not (root / name).is_dir():
        available = listed(["all", *folders_in(root)])
        raise InputError(f"{str(root)!r} has no sub-folder for split {name!r}: available are {available}")
    return root / name


def find_images(root: Path) -> list[str]:
    """Paths of all images below `root`, relative to it, sorted; hidden files and folders are left out.

    Only regular files are images: to open a pipe would wait for ever. One warning tells how many files look like
    images and are left out.
    """
    names, left_out, seen, folders = [], Counter(), set(), [""]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(root / folder)
        if real in seen:  # a symbolic link back up
            continue
        seen.add(real)
        inside = []
        for entry in scan(root / folder):
            path = os.path.join(folder, entry.name)
            suffix = os.path.splitext(entry.name)[1].lower()
            if is_kind(entry.is_dir):
                inside.append(path)
            elif suffix not in SUFFIXES:
                left_out[suffix] += suffix in UNREAD
            elif is_kind(entry.is_file):
                names.append(path)
            else:
                left_out["pipes, devices or broken links"] += 1
        folders += reversed(inside)
    tell_left_out(root, left_out)
    return sorted(names)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden files and folders."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        warn_once(f"{folder} cannot be read: {error.strerror}")
        return []


def is_kind(test: Callable[[], bool]) -> bool:
    """What a test of a directory's entry says; False of a symbolic link that cannot be followed."""
    try:
        return test()
    except OSError:
        return False


def tell_left_out(root: Path, left_out: Counter[str]) -> None:
    counts = [f"{count} {what}" for what, count in left_out.most_common() if count]
    if counts:
        total = left_out.total()
        files = "1 file is" if total == 1 else f"{total} files are"
        warn_once(f"{root}: {files} left out: {', '.join(counts)}: expected {', '.join(SUFFIXES)}")


@cache
def warn_once(message: str) -> None:
    """Once a run, however many splits are read from the same folder."""
    logging.warning("%s", message)


# TFDS


@dataclass(frozen=True)
class TfdsSource:
    """One split of a TFDS data set in ArrayRecord files; only the feature `image` is decoded, by OpenCV."""

    examples: Any  # tfds.core.data_sources.BaseDataSource: a sequence of dicts
    image: str
    name: str
    shards: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        return self.encoded(index).decode()

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
        """The image of the example that was read at `index`."""
        return Encoded(example[self.image], self.name_of(index))

    def name_of(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_tfds(data: ConfigDict, name: str) -> TfdsSource:
    """A split of a prepared TFDS data set. TensorFlow is neither needed nor imported."""
    import tensorflow_datasets as tfds  # only this source needs it

    folder = find_builder(data.path, data.name)
    builder: Any = tfds.builder_from_directory(folder)
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    formats = builder.info.available_file_formats()
    if array_record not in formats:
        command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        found = listed(stored.value for stored in formats)
        raise InputError(
            f"{str(folder)!r} is stored as {found}, expected 'array_record': `{command}` converts it (docs/data.md)"
        )
    if name not in builder.info.splits:
        available = listed(builder.info.splits)
        raise InputError(f"{str(folder)!r} has no split {name!r}: available are {available}")
    images = features_of(builder.info.features, tfds.features.Image)
    image = named_or_only("image", images)
    if image is None:
        raise InputError(
            f"{str(folder)!r} needs an image feature, named 'image' or the only one:"
            f" its features are {listed(builder.info.features)}"
        )
    kind = np.dtype(builder.info.features[image].np_dtype).name
    if kind not in ("uint8", "uint16"):  # TFDS stores the bytes of float32 as pixels of four channels
        raise InputError(f"{str(folder)!r} has feature {image!r} of {kind}: expected an image of uint8 or uint16")
    decoders = dict.fromkeys(images, tfds.decode.SkipDecoding())
    instructions = builder.info.splits[name].file_instructions
    shards, counts = tuple(each.filename for each in instructions), tuple(each.take for each in instructions)
    count_records(shards, "prepare the data set anew, or copy it again", counts)
    examples = builder.as_data_source(name, decoders=decoders, file_format=array_record)
    return TfdsSource(examples, image, f"{builder.info.full_name} {name}", shards, counts)


def features_of(features: Any, kind: type) -> list[str]:
    """Names of those of a FeaturesDict that are of exactly this kind."""
    return [name for name, feature in features.items() if type(feature) is kind]


def named_or_only(name: str, names: list[str]) -> str | None:
    return name if name in names else names[0] if len(names) == 1 else None


def find_builder(path: str, name: str) -> Path:
    """The directory of a prepared data set: `path` itself, or the one of `name` in the data_dir `path`.

    `name` is "name", "name/config", "name:version" or "name/config:version"; where none is given, the newest
    version is taken. An empty `path` is TFDS's own default.
    """
    root = expanded(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if (root / "dataset_info.json").is_file():
        return root
    name, _, version = name.partition(":")
    folder = root / name
    infos = folder.glob(f"{version or '*'}/dataset_info.json") if name else ()
    prepared = [info.parent for info in infos if _VERSION.fullmatch(info.parent.name)]
    if not prepared:
        raise InputError(
            f"{str(folder)!r} holds no prepared TFDS data set {version or name}: expected VERSION/dataset_info.json,"
            f" found {listed(folders_in(folder)) or 'no folders'}; data.path and data.name say where, and"
            " `tfds build NAME --data_dir=PATH --file_format=array_record` prepares one (docs/data.md)"
        )
    return max(prepared, key=lambda version: [int(part) for part in version.name.split(".")])


def folders_in(root: Path) -> list[str]:
    """Names of the folders in `root`, without hidden ones."""
    entries = root.iterdir() if root.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
