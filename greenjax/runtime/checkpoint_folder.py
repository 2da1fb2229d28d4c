"""The folder of one checkpoint: is it complete, is it as it was written, and under which path can it be opened?

A checkpoint holds the files of Orbax and `sums.json`, the length and the hash of every file. Lengths are compared
whenever checkpoints are listed, hashes before anything is restored.
"""

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorstore
from absl import logging

from greenjax.errors import InputError

SUMS = "sums.json"  # {file below state/: [bytes, hash]}


def is_complete(folder: Path) -> bool:
    """Whether Orbax finished this checkpoint and every file has its length."""
    try:
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        sums = json.loads((folder / SUMS).read_text())
        right = all((folder / "state" / name).stat().st_size == size for name, (size, _) in sums.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return right and metadata.get("commit_timestamp_nsecs") is not None


def damaged_file(folder: Path) -> str:
    """The first file of a complete checkpoint that is not as it was written; "" where none does."""
    for name, (_, digest) in json.loads((folder / SUMS).read_text()).items():
        try:
            same = _digest(folder / "state" / name) == digest
        except OSError:  # the disk cannot read it
            same = False
        if not same:
            return name
    return ""


def missing_array(state: Path, arrays: Iterable[str]) -> str:
    """The first of the arrays that a reader would not find whole below `state`; "" where all are there.

    Reads the index and the header of every array, and no values.
    """
    base = {"driver": "file", "path": f"{state}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    files = Counter(key.decode().rpartition("/")[0] for key in store.list().result())
    for name in arrays:
        if not files[name]:
            return name
        header = json.loads(store[f"{name}/.zarray"])
        parts = math.prod(-(-side // chunk) for side, chunk in zip(header["shape"], header["chunks"]))
        if files[name] != 1 + parts:
            return f"a part of {name}"
    return ""


def write_sums(folder: Path) -> None:
    """Writes the length and the hash of every file."""
    files = sorted(path for path in (folder / "state").rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder / "state")): (path.stat().st_size, _digest(path)) for path in files}
    (folder / SUMS).write_text(json.dumps(sums))


def set_aside(folder: Path) -> None:
    """Renames a damaged checkpoint: it is out of the way, and not lost to somebody who can read it."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    logging.warning("the checkpoint %s is not whole: it is set aside as %s", folder, aside.name)
    folder.rename(aside)


@contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A path to `folder` that Orbax and TensorStore read alike: a symlink to it, where its own has odd characters.

    Orbax looks for the files to merge by a glob pattern that begins with the path. TensorStore takes a backslash for a
    slash, and refuses names that end in .__lock. Both take some prefixes for remote storage.
    """
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="greenjax-") as temporary:
        if not _is_plain(Path(temporary)):
            raise InputError(f"{folder} needs a link in a temporary folder, {temporary}: set TMPDIR to a plain path")
        link = Path(temporary) / folder.name
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_plain(folder: Path) -> bool:
    text = f"{folder}/"
    usual = re.fullmatch(r"[\w./ +=,@-]+", text, re.ASCII)
    return bool(usual) and not re.match("/(gs|s3|az|hf)/", text) and ".__lock/" not in text


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
