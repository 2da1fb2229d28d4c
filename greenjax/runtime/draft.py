"""A large file of equal rows that takes hours to write: a killed process goes on where the last record was made.

The rows grow in a folder beside the file, `.NAME.unfinished`, with a name for each row and a record of the progress.
The folder is held while it is written (lock.py), and is gone when the file is whole.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from jaxtyping import Shaped

from greenjax.errors import InputError
from greenjax.runtime.files import read_json, remove_empty, replace_text, replacing
from greenjax.runtime.lock import LOCK, held

ROWS, NAMES, PROGRESS = "rows", "names.txt", "progress.json"
EVERY = 10.0  # seconds between two records: a killed process repeats the work since the last one


class Draft:
    """Rows of one type, one after another, behind `head` bytes that stay free for what a format puts first."""

    def __init__(self, folder: Path, about: Mapping[str, Any], dtype: np.dtype, head: int, anew: bool):
        """`about` is what the rows follow from, of JSON's types; `anew` drops a draft that followed from other things.

        Raises InputError for such a draft without `anew`.
        """
        self.folder, self.dtype, self._head, self._about = folder, dtype, head, dict(about)
        found = self._read(anew)
        self.resumed = bool(found)
        if not found:  # a record of other rows would be taken for that of these
            (folder / PROGRESS).unlink(missing_ok=True)
        self.batches, self.rows, names = (found.get(key, 0) for key in ("batches", "rows", "names"))
        self._files = [(folder / name).open("r+b" if found else "w+b") for name in (ROWS, NAMES)]
        for file, size in zip(self._files, (head + self.rows * dtype.itemsize, names)):
            file.truncate(size)  # cuts off what no record counts
            file.seek(size)
        self._recorded = monotonic()

    def append(self, rows: Shaped[np.ndarray, "n ..."], names: Sequence[str]) -> None:
        """Adds the rows of the next batch, and a line for each."""
        self._files[0].write(np.ascontiguousarray(rows).tobytes())
        self._files[1].write("".join(f"{name}\n" for name in names).encode())
        self.batches, self.rows = self.batches + 1, self.rows + len(rows)
        if monotonic() - self._recorded >= EVERY:
            self.record()

    def record(self) -> None:
        """Writes everything to the disk, and then how far it reaches."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        reached = {"batches": self.batches, "rows": self.rows, "names": self._files[1].tell()}
        replace_text(self.folder / PROGRESS, json.dumps({"about": self._about} | reached))
        self._recorded = monotonic()

    def array(self) -> Shaped[np.ndarray, " n"]:
        """All rows, as the file holds them. Call `record` before."""
        return np.memmap(self.folder / ROWS, self.dtype, "r", self._head, (self.rows,))

    def names(self) -> Iterator[str]:
        with (self.folder / NAMES).open(encoding="utf-8", newline="\n") as file:
            yield from (line[:-1] for line in file)

    def become(self, path: Path, head: bytes, names: Path) -> None:
        """The rows, behind `head`, become the file `path`, and the names the file `names`. Raises OSError."""
        assert len(head) == self._head
        self.record()
        self._files[0].seek(0)
        self._files[0].write(head)
        self._files[0].flush()
        os.fsync(self._files[0].fileno())
        with replacing(names) as copy:  # a copy: a process that is killed now does this again
            copy.write_bytes((self.folder / NAMES).read_bytes())
        os.replace(self.folder / ROWS, path)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def remove(self) -> None:
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink()

    def _read(self, anew: bool) -> dict[str, Any]:
        """The record of a draft to go on with; {} where there is none."""
        path = self.folder / PROGRESS
        if not path.exists() or not (self.folder / ROWS).exists():
            return {}
        found = read_json(path, dict, f"remove the folder {self.folder}")
        before, now = found["about"], json.loads(json.dumps(self._about))
        if before == now:
            return found
        if anew:
            return {}
        key = next(key for key in before | now if before.get(key) != now.get(key))
        what = f"was begun with {key} {before.get(key)!r}"
        raise InputError(f"{self.folder} {what}: expected that, not {now.get(key)!r}; --overwrite begins anew")


@contextmanager
def drafting(path: Path, about: Mapping[str, Any], dtype: np.dtype, head: int, anew: bool) -> Iterator[Draft]:
    """The draft of the file `path`, held by this process; arguments as of `Draft`.

    Where the block ends well the draft is removed: it has become a file. Else it stays, if it is worth going on with.
    """
    folder = folder_of(path)
    with held(folder, "--out"):
        draft = Draft(folder, about, dtype, head, anew)
        try:
            yield draft
        except BaseException:
            draft.close()
            if not (folder / PROGRESS).exists():
                draft.remove()
            raise
        draft.close()
        draft.remove()
    remove_empty([folder])


def folder_of(path: Path) -> Path:
    """The folder of a file's draft."""
    return path.with_name(f".{path.name}.unfinished")
