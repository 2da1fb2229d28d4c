"""Data sets of Hugging Face's library `datasets`: saved folders, Parquet and Arrow files, folders of images, the hub.

The library opens a data set once, at the start: it downloads and converts what is no Arrow file yet, and names the
Arrow files that hold the rows. pyarrow maps these into memory, here and again in every worker, and gives one row at a
time: nothing is copied to a worker, and none of them imports the library.
"""

import glob
import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.labels import Listed, by_name
from greenjax.data.sources.base import Source
from greenjax.data.sources.list import read_listed
from greenjax.data.sources.patterns import files_of
from greenjax.errors import InputError, NoLabels, in_a_line, installed, listed, refuse
from greenjax.runtime.files import expanded

KINDS = {".arrow": "arrow", ".parquet": "parquet"}  # the library's names of files, by suffix
HUB = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # NAME or OWNER/NAME
SAVED = ("dataset_dict.json", "state.json")  # one of them lies in a folder of save_to_disk
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream that is whole
SCALAR = re.compile(r"(u?int\d+|bool|(large_)?string|string_view)")  # types of columns that may hold classes
PATTERN = "a pattern of files such as /data/{split}-*.parquet"
EXPECTED = f"a folder of save_to_disk or of files, {PATTERN}, or OWNER/NAME on the hub"


@dataclass(frozen=True, eq=False)
class HuggingFaceSource(Source):
    """The rows of one split, or of all splits ("all"), in their order; each has an image, as bytes or as a path."""

    place = ("data.image_column", "data.label_column", "data.name", "data.path")

    root: str  # data.path
    split: str
    files: tuple[str, ...]  # Arrow files
    counts: tuple[int, ...]  # rows in each file
    column: str  # of the images
    label: str  # data.label_column
    classes: Mapping[str, tuple[str, ...] | None]  # columns that may hold classes, with the names that they declare

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", f"{EXPECTED}, for data.source 'huggingface'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "HuggingFaceSource":
        found = splits_of(data, split)
        if split != "all" and split not in found:
            available = listed(dict.fromkeys(["all", *found]))
            raise InputError(f"{data.path!r} has no split {split!r}: available are {available}")
        parts = [found[split]] if split in found else list(found.values())
        features = parts[0].features
        if any(part.features != features for part in parts):
            raise InputError(f"{data.path!r} has splits with other columns: expected one of them, not split 'all'")
        column = image_column(data, features)
        files = tuple(os.path.abspath(each["filename"]) for part in parts for each in part.cache_files)
        counts = tuple(mapped(file).num_rows for file in files)
        if sum(counts) != sum(map(len, parts)):
            what = f"{sum(map(len, parts)):,} rows of the {sum(counts):,} of its files"
            raise InputError(f"{data.path!r} has {what}: expected all of them; save_to_disk writes those that are left")
        if not sum(counts):
            raise InputError(f"split {split!r} of {data.path!r} has no images: expected some")
        classes = {name: tuple(names) for name, names in declared(features).items()}
        scalars = {name: None for name, each in features.items() if SCALAR.fullmatch(getattr(each, "dtype", ""))}
        source = cls(data.path, split, files, counts, column, data.label_column, scalars | classes)
        assert len(source) == source._images[1][-1]
        return source

    def __len__(self) -> int:
        return sum(self.counts)

    def encoded(self, index: int) -> Encoded:
        import pyarrow  # comes with the library

        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        chunks, ends = self._images
        number = int(np.searchsorted(ends, index, side="right"))
        cell = chunks[number].slice(index - int(ends[number]) + len(chunks[number]), 1)
        try:
            cell.validate(full=True)  # damaged offsets lead outside of the file
            stored = cell[0].as_py()
        except (pyarrow.ArrowException, ValueError) as error:
            raise DecodeError(f"{self.name_of(index)} cannot be read: {in_a_line(error)}") from error
        stored = stored if isinstance(stored, dict) else {"bytes": stored}
        if stored["bytes"] is not None:
            return Encoded(stored["bytes"], self.name_of(index))
        if not stored.get("path"):
            raise DecodeError(f"{self.name_of(index)} has no image: its column {self.column!r} is empty")
        return read_listed(stored["path"])

    def name_of(self, index: int) -> str:
        return f"{self.root} {self.split}[{index}]"

    def labelled(self, training: bool) -> Listed:
        """The label is the column data.label_column, `label`, or the only ClassLabel."""
        of_classes = [name for name, names in self.classes.items() if names is not None]
        name = self.label or ("label" if "label" in self.classes or len(of_classes) != 1 else of_classes[0])
        if name not in self.classes:
            columns = f"a column of classes of {self.root!r}, which has {listed(self.classes) or 'none'}"
            kind = InputError if self.label or of_classes else NoLabels
            raise kind(f"data.label_column is {self.label!r}: expected {columns}")
        values = [value for chunk in self._chunks(name) for value in chunk.to_pylist()]
        names = self.classes[name]
        for index, value in enumerate(values):
            fine = isinstance(value, int) and 0 <= value < len(names) if names else value not in (None, "", -1)
            if not fine:
                allowed = f"0 or more, below {len(names)}, its classes" if names else "the name or number of a class"
                kind = NoLabels if set(values) <= {None, "", -1} else InputError
                raise kind(f"{self.name_of(index)} has label {value!r} in column {name!r}: expected {allowed}")
        return Listed(self, np.array(values, np.int32), names) if names else by_name(self, list(map(str, values)))

    def parts(self) -> Iterator[bytes]:
        """The sizes of the images in bytes, and the names of those that are files."""
        compute: Any = importlib.import_module("pyarrow.compute")  # its functions are made when it is imported
        yield repr((self.split, self.column, len(self))).encode()
        sizes, names = [], []
        for chunk in self._images[0]:
            data = chunk.field("bytes") if hasattr(chunk, "field") else chunk
            sizes.append(compute.fill_null(compute.binary_length(data), -1).to_numpy(zero_copy_only=False))
            if data.null_count and data is not chunk:
                names += [os.path.basename(path or "") for path in chunk.field("path").to_pylist()]
        yield np.concatenate(sizes).astype(np.int64).tobytes()
        yield os.fsencode("\0".join(names))

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        """Compares files and rows in them."""
        return len(self.places(rows) & other.places(others))

    def places(self, rows: Int[np.ndarray, " n"]) -> set[tuple[str, int]]:
        """The file of each row, and its number there."""
        ends = np.cumsum(self.counts)
        files = np.searchsorted(ends, rows, side="right")
        numbers = rows - (ends - self.counts)[files]
        return {(self.files[file], number) for file, number in zip(files.tolist(), numbers.tolist())}

    @cached_property
    def _images(self) -> tuple[list[Any], Int[np.ndarray, " chunks"]]:
        """The column of images by chunks of rows, and the first row after each; each worker maps the files anew."""
        chunks = self._chunks(self.column)
        return chunks, np.cumsum([len(chunk) for chunk in chunks])

    def _chunks(self, column: str) -> list[Any]:
        tables = {file: mapped(file) for file in self.files}
        for file, table in tables.items():
            if column not in table.column_names or (column == self.column and not holds_images(table[column].type)):
                columns = listed(f"{field.name}: {field.type}" for field in table.schema)
                raise InputError(f"{file!r} has columns {columns}: expected {column!r}, as {self.root!r} describes it")
        return [chunk for table in tables.values() for chunk in table[column].chunks if len(chunk)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_images"}


def mapped(file: str) -> Any:
    """The rows of an Arrow file, mapped into memory. Raises InputError for one that is missing, cut or damaged."""
    import pyarrow

    try:
        with pyarrow.memory_map(file) as found:
            table = pyarrow.ipc.open_stream(found).read_all()
            found.seek(max(0, found.size() - len(END)))
            if found.read() != END:
                raise pyarrow.ArrowInvalid("its end is missing")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file!r} cannot be read: {in_a_line(error)}; copy or make it anew") from error
    return table


def holds_images(kind: Any) -> bool:
    """Whether an Arrow type is that of images: bytes, or a struct of bytes and a path."""
    from pyarrow import types

    if types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    return types.is_binary(kind) or types.is_large_binary(kind)


# The library


def splits_of(data: ConfigDict, split: str) -> dict[str, Any]:
    """The library's data sets by split, of a pattern only `split`. Raises InputError for what it cannot open."""
    datasets, path = library(), data.path
    kind, folder = KINDS.get(os.path.splitext(path)[1].lower()), expanded(path)
    hub = not kind and not folder.is_dir() and HUB.fullmatch(path)
    if not (kind or hub or folder.is_dir()):
        raise InputError(f"data.path is {path!r}: expected {EXPECTED}")
    saved = any((folder / file).is_file() for file in SAVED)
    if data.name and (kind or saved):
        raise InputError(f"data.name is {data.name!r}: expected '', as {path!r} has no configurations")
    if not (kind or hub or saved) and (name := str(folder.absolute())) != glob.escape(name):
        expected = f"no *, ? or [ in the path of a folder, which datasets takes as a pattern; or {PATTERN}"
        raise InputError(f"data.path is {path!r}: expected {expected}")
    files = files_of(path, split, "Parquet or Arrow files") if kind else []
    try:
        if kind:
            names = [glob.escape(os.path.abspath(file)) for file in files]  # the library takes them as patterns
            return {split: datasets.load_dataset(kind, data_files=names, split="train", keep_in_memory=False)}
        if saved:
            found = datasets.load_from_disk(folder, keep_in_memory=False)
        else:
            found = datasets.load_dataset(path if hub else str(folder.absolute()), data.name or None)
    except Exception as error:  # the library raises errors of many classes
        name_damage(map(Path, files) if kind or hub else sorted(folder.rglob("*")))
        where = ", a name on the hub, which needs a network or a copy in the library's cache" if hub else ""
        why = in_a_line(error.__cause__ or error)
        raise InputError(f"data.path is {path!r}{where}: datasets cannot open it: {why}") from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def library() -> Any:
    """The module `datasets`, which prints no errors of its own. Raises InputError with the line that installs it."""
    datasets = installed("datasets", "greenjax[huggingface]", "data.source 'huggingface' needs the package datasets")
    for name in ("datasets", "huggingface_hub"):  # one line of ours says what is wrong
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return datasets


def name_damage(paths: Iterable[Path]) -> None:
    """Raises InputError for the first Arrow or Parquet file that cannot be read."""
    import pyarrow.parquet

    for path in paths:
        if path.suffix == ".arrow" and (path.parent / "state.json").is_file():
            mapped(str(path))
        if path.suffix == ".parquet":
            try:
                for _ in pyarrow.parquet.ParquetFile(path).iter_batches(64):
                    pass
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{str(path)!r} cannot be read: {in_a_line(error)}; copy it again") from error


def image_column(data: ConfigDict, features: Any) -> str:
    """The column of images: data.image_column, `image`, or the only one. Raises InputError where there is none."""
    kind = library().Image
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    found = found or [field.name for field in features.arrow_schema if holds_images(field.type)]  # of other programs
    name = data.image_column or ("image" if "image" in found or len(found) != 1 else found[0])
    if name in found:
        return name
    has = f"has columns {listed(features)}, of which {listed(found) or 'none'} hold images"
    raise InputError(f"{data.path!r} {has}: expected one, or one that data.image_column names")


def declared(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes of each column that declares them."""
    kind = library().ClassLabel
    return {name: feature.names for name, feature in features.items() if isinstance(feature, kind)}
