"""Files of outputs, an image a row: vectors as .npy, safetensors or Parquet, classes as CSV or Parquet.

A format is chosen by the suffix of a file. Each finishes a draft (runtime/draft.py), whose rows are there by then.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from greenjax.data.undecodable import on_one_line
from greenjax.errors import InputError, installed
from greenjax.runtime.classes import Classes
from greenjax.runtime.draft import Draft, folder_of
from greenjax.runtime.files import expanded, replacing

AT_ONCE, MOST_BYTES = 4096, 1 << 28  # most rows, and bytes, taken from a draft at a time: a row group of Parquet
SAFETENSORS_HEAD = 256  # bytes
VECTORS = "vectors"  # the tensor of a safetensors file, and the column of a Parquet file
SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16"}

Shape = tuple[int, ...]


class Format(NamedTuple):
    """How a file begins, by its type, rows and shape of a row; and whether names go into a file beside it."""

    head: Callable[[np.dtype, int, Shape], bytes]
    names_beside: bool


def npy_head(dtype: np.dtype, rows: int, shape: Shape) -> bytes:
    """NumPy pads it, so that it is as long for any number of rows."""
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def safetensors_head(dtype: np.dtype, rows: int, shape: Shape) -> bytes:
    size = rows * int(np.prod(shape)) * dtype.itemsize
    entry = {"dtype": SAFETENSORS_TYPES[dtype.name], "shape": [rows, *shape], "data_offsets": [0, size]}
    text = json.dumps({VECTORS: entry}).encode().ljust(SAFETENSORS_HEAD)
    return len(text).to_bytes(8, "little") + text


def no_head(*_: Any) -> bytes:
    return b""


VECTOR_FORMATS = {
    ".npy": Format(npy_head, names_beside=True),
    ".safetensors": Format(safetensors_head, names_beside=True),
    ".parquet": Format(no_head, names_beside=False),
}
CLASS_FORMATS = {".csv": Format(no_head, names_beside=False), ".parquet": Format(no_head, names_beside=False)}


class Outputs(NamedTuple):
    """The files of a command: outputs, the names of images, and the images that cannot be used."""

    path: Path
    format: Format

    @property
    def names(self) -> Path:
        return self.path.with_suffix(".names.txt")

    @property
    def left_out(self) -> Path:
        return self.path.with_name(f"{self.path.name}.left_out.txt")  # embed and predict may share a stem


def check_out(out: str | Path, formats: Mapping[str, Format], overwrite: bool) -> Outputs:
    """The files to write, checked before anything expensive.

    Raises InputError for a suffix without a format, a file that is there, and one that cannot be written.
    """
    path = expanded(out)
    suffix = path.suffix.lower()
    if suffix not in formats:
        raise InputError(f"out is {str(path)!r}: expected a file named *{' or *'.join(formats)}")
    if suffix == ".parquet":
        pyarrow()
    files = Outputs(path, formats[suffix])
    beside = [files.names] if files.format.names_beside and not folder_of(path).exists() else []
    for there in (path, *beside):
        if there.is_dir() or (there.exists() and not overwrite):
            raise InputError(f"out {str(there)!r} is there: expected a new file, or --overwrite")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"out {str(path)!r} cannot be written: {str(parent)!r} is no folder to write in")
    return files


def pyarrow() -> Any:
    """The library. Raises InputError where it is missing."""
    installed("pyarrow.parquet", "greenjax[parquet]", "out is a Parquet file, which needs the package pyarrow")
    import pyarrow

    return pyarrow


def finish_vectors(draft: Draft, files: Outputs, dtype: np.dtype, shape: Shape) -> None:
    """Makes the file of vectors [rows, *shape]. Raises OSError."""
    if files.format.names_beside:
        draft.become(files.path, files.format.head(dtype, draft.rows, shape), files.names)
        return
    pa, length = pyarrow(), int(np.prod(shape))
    kind = pa.from_numpy_dtype(dtype)
    schema = pa.schema([("file", pa.string()), (VECTORS, pa.list_(kind, length))], {"shape": ",".join(map(str, shape))})

    def columns(rows: np.ndarray, names: list[str]) -> list[Any]:
        flat = pa.array(rows[VECTORS].reshape(-1), kind)
        return [pa.array(names, pa.string()), pa.FixedSizeListArray.from_arrays(flat, length)]

    write_parquet(draft, files.path, schema, columns)


def finish_classes(draft: Draft, files: Outputs, names: Classes) -> None:
    """Makes the table of classes: file, class, probability, class_2, probability_2, ... Raises OSError."""
    ranks = range(draft.dtype["class"].shape[0])
    titles = [title if rank == 0 else f"{title}_{rank + 1}" for rank in ranks for title in ("class", "probability")]
    known = np.array([on_one_line(name) for name in names], object)
    if files.path.suffix.lower() == ".csv":
        write_csv(draft, files.path, ("file", *titles), known)
        return
    pa = pyarrow()
    kinds = (pa.string(), pa.float64()) * len(ranks)
    schema = pa.schema([("file", pa.string()), *zip(titles, kinds)])

    def columns(rows: np.ndarray, names: list[str]) -> list[Any]:
        pairs = ((known[rows["class"][:, rank]], rows["probability"][:, rank]) for rank in ranks)
        return [pa.array(values, kind) for values, kind in zip((names, *chain(*pairs)), schema.types)]

    write_parquet(draft, files.path, schema, columns)


def parts_of(draft: Draft) -> Iterator[tuple[np.ndarray, list[str]]]:
    """The rows, as many at a time as fit into memory, with their names."""
    draft.record()
    rows, names = draft.array(), draft.names()
    count = max(1, min(AT_ONCE, MOST_BYTES // draft.dtype.itemsize))
    for first in range(0, len(rows), count):
        part = np.array(rows[first : first + count])
        yield part, list(islice(names, len(part)))


def write_parquet(draft: Draft, path: Path, schema: Any, columns: Callable[[np.ndarray, list[str]], list[Any]]) -> None:
    pa = pyarrow()
    with replacing(path) as copy, pa.parquet.ParquetWriter(copy, schema) as writer:
        for rows, names in parts_of(draft):
            writer.write_table(pa.table(columns(rows, names), schema))


def write_csv(draft: Draft, path: Path, titles: Sequence[str], classes: np.ndarray) -> None:
    with replacing(path) as copy, copy.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(titles)
        for rows, names in parts_of(draft):
            for name, row in zip(names, rows):
                pairs = zip(classes[row["class"]], row["probability"])
                lines.writerow([name, *(text for label, p in pairs for text in (label, f"{p:.6f}"))])
