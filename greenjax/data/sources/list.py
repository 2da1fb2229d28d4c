"""Image files that a table names: a text file with a path a line, or CSV, TSV or Parquet with labels and splits."""

import csv
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.labels import Listed, by_name
from greenjax.data.remote import Remote, is_url, joined, refusing
from greenjax.data.sources.folder import FolderSource, paths_at, read_file
from greenjax.data.sources.names import Names, hashed_order
from greenjax.errors import InputError, NoLabels, installed, listed, refuse
from greenjax.runtime.files import expanded

COLUMNS = {  # what a column holds, and the names it may have: the first that is there counts
    "path": ("path", "file", "filename", "file_name", "image"),
    "label": ("class_name", "class", "label"),
    "split": ("split",),
}
KINDS = (".txt", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class ListSource(FolderSource):
    """The images of a list, in the order of a hash of their paths, as in a folder.

    Paths are absolute, or relative to the folder of the list. Split "all" is the whole list; other splits are the
    values of its column `split`.
    """

    labels: Names | None = None  # of each image, None where the list has no column of labels

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        if not values["data.path"]:
            refuse(values, "data.path", f"a file of paths, *{', *'.join(KINDS)}, for data.source 'list'")

    @classmethod
    def open(cls, data: ConfigDict, split: str) -> "ListSource":
        root, table = read_list(data)
        chosen = rows_of(data.path, table, split)
        names = [table["path"][row] for row in chosen]
        urls = [url for url in (joined(root, name) for name in names) if is_url(url)]
        remote = Remote.of(data, urls) if urls else None
        if remote is not None:
            remote.check_rights(urls)
        labels = [table["label"][row] for row in chosen] if "label" in table else None
        order = hashed_order(names)
        in_order = None if labels is None else Names.of([labels[row] for row in order])
        return cls(root, Names.of([names[row] for row in order]), in_order, remote=remote)

    def encoded(self, index: int) -> Encoded:
        path = self.name_of(index)
        return super().encoded(index) if is_url(path) else read_listed(path)

    def labelled(self, training: bool) -> Listed:
        """Each image with its label in the list."""
        if self.labels is None:
            columns = " or ".join(COLUMNS["label"])
            raise NoLabels(f"the list in {self.root!r} has no labels: expected a column {columns}")
        labels = list(self.labels)
        if not all(labels):
            image, kind = self.names[labels.index("")], InputError if any(labels) else NoLabels
            raise kind(f"image {image!r} of the list in {self.root!r} has no label: expected the name of a class")
        return by_name(self, labels)

    def parts(self) -> Iterator[bytes]:
        yield from super().parts()
        yield b"" if self.labels is None else self.labels.text.tobytes()

    def in_both(self, rows: Int[np.ndarray, " n"], other: Any, others: Int[np.ndarray, " m"]) -> int:
        return len(paths_at(self, rows) & paths_at(other, others))


def read_listed(path: str) -> Encoded:
    """The image in a file that a table names. Raises DecodeError."""
    if not os.path.isfile(path):  # reading a pipe would wait for ever
        raise DecodeError(f"{path} cannot be read: there is no such file")
    return read_file(path)


Table = dict[str, Sequence[str]]  # the columns "path", "label" and "split", as far as the file has them


def read_list(data: ConfigDict) -> tuple[str, Table]:
    """The folder that paths are relative to, and the columns of the list. Raises InputError where it cannot be read."""
    path = data.path if is_url(data.path) else str(expanded(data.path))
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in KINDS or not (is_url(path) or os.path.isfile(path)):
        raise InputError(f"data.path is {path!r}: expected a file of paths, *{', *'.join(KINDS)}")
    if is_url(path):
        with refusing():
            content = Remote.of(data, [path]).fetch(path)
        return path.rpartition("/")[0], read_table(path, content)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"list {path!r} cannot be read: {error}") from error
    return os.path.dirname(os.path.abspath(path)), read_table(path, content)


def read_table(path: str, content: bytes) -> Table:
    """The columns of a list. Raises InputError where it is damaged, or has no column of paths."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        columns, places = read_parquet(path, content) if suffix == ".parquet" else read_text(path, content)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"list {path!r} cannot be read: {error}") from error
    table = {what: columns[name] for what, name in chosen(columns).items()}
    if not columns:
        raise InputError(f"list {path!r} has no line: expected a path in each, or the names of columns in the first")
    if "path" not in table:
        raise InputError(f"list {path!r} has columns {listed(columns)}: expected one of {listed(COLUMNS['path'])}")
    for place, name in zip(places, table["path"]):
        if not name:
            what = "row" if suffix == ".parquet" else "line"
            raise InputError(f"list {path!r} has no path in {what} {place}: expected the path of an image")
    return table


def chosen(columns: Collection[str]) -> dict[str, str]:
    """The column that holds each thing: the first of its names that is there."""
    return {what: name for what, names in COLUMNS.items() for name in reversed(names) if name in columns}


def read_text(path: str, content: bytes) -> tuple[Table, Sequence[int]]:
    """The columns of a text file, of CSV and TSV those that its first line names, else paths alone; and their lines."""
    suffix = os.path.splitext(path)[1].lower()
    with TextIOWrapper(BytesIO(content), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if suffix == ".txt":
            lines = file.read().replace("\r\n", "\n").split("\n")  # names of files may have other line breaks
            return {"path": [line for line in lines if line]}, ()  # none is empty
        lines = csv.reader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
        header = [name.strip().lower() for name in next(lines, [])]
        rows = [(lines.line_num, row) for row in lines if row]
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"list {path!r} has {len(row)} values in line {number}: expected {len(header)}, {listed(header)}"
            )
    return dict(zip(header, map(list, zip(*(row for _, row in rows))))), [number for number, _ in rows]


def read_parquet(path: str, content: bytes) -> tuple[Table, Sequence[int]]:
    """The columns of a Parquet file as texts, empty those that are not read; and the numbers of its rows."""
    installed("pyarrow.parquet", "greenjax[parquet]", f"list {path!r} needs the package pyarrow")
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        names = file.schema_arrow.names
        read = chosen([name.lower() for name in names]).values()
        columns = file.read([name for name in names if name.lower() in read]).to_pydict()
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"list {path!r} cannot be read: {error}") from error
    texts = {name: ["" if value is None else str(value) for value in values] for name, values in columns.items()}
    return {name.lower(): texts.get(name, []) for name in names}, range(1, file.metadata.num_rows + 1)


def rows_of(path: str, table: Table, split: str) -> Sequence[int]:
    """The rows of a split. Raises InputError where it has none."""
    splits = table.get("split", ())
    rows = range(len(table["path"])) if split == "all" else [row for row, name in enumerate(splits) if name == split]
    if not rows:
        available = listed(["all", *sorted(set(splits))])
        raise InputError(f"list {path!r} has no images of split {split!r}: available are {available}")
    return rows
