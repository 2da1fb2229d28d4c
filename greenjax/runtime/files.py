"""Files: paths, writing as a whole or not at all, reading of JSON that may be damaged, disks that fail."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from absl import logging

from greenjax.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, an exhausted quota, a limit of the file size
# Of a disk that became read-only, failed, or is gone, and of a folder that was moved or taken away.
GONE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV, errno.ENOENT, errno.ENOTDIR)
GONE += (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)  # of a file server

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # s3://bucket, and s3:/bucket, which Path makes of it


def expanded(path: str | Path) -> Path:
    """The path with its ~ replaced. Raises InputError for a URL, an unknown home, or a path that may not be read."""
    if URL.match(str(path)):
        why = "locks, renames and memory maps do not exist on object stores"
        raise InputError(f"{str(path)!r} is a URL: expected a path of this machine, as {why}")
    found = os.path.expanduser(path)  # Path.expanduser raises RuntimeError
    if found.startswith("~"):
        raise InputError(f"{str(path)!r} begins with ~, and there is no such home: expected a whole path, or ./{path}")
    try:
        os.stat(os.path.join(found, "."))
    except (FileNotFoundError, NotADirectoryError):
        pass  # a file, or a path that is still to be made
    except OSError as error:  # Path.exists and is_file would raise it
        raise InputError(f"{str(path)!r} cannot be opened: {error.strerror}") from error
    return Path(found)


def folders_in(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones; none where `root` is no folder."""
    entries = root.iterdir() if root.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def is_run(folder: Path) -> bool:
    """Whether a folder holds checkpoints of greenjax, whatever files lie beside them, an export of it included."""
    return any(path.name.isdigit() for path in (folder / "checkpoints").glob("[0-9]*"))


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """Yields a draft beside `path` to write: it replaces the file where the block ends well, so a file is never cut.

    Else the draft is removed, with the folders that were made for it. Processes that may write the file at once give
    each a `mark` of its own, for the draft's name. Raises OSError.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    draft = path.with_name(f".{path.name}{mark}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())  # else a power failure leaves the new name with an empty file
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        remove_empty(made)
        raise


def replace_text(path: Path, text: str) -> None:
    """Writes a text file as a whole; bytes that are no UTF-8, which names of files and classes may hold, are escaped.

    Raises InputError where it cannot be written.
    """
    try:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the innermost first, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def read_json(path: Path, kind: type, remedy: str) -> Any:
    """The content of a JSON file, a dict or a list by `kind`. Raises InputError with `remedy` where it is damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return parse_json(str(path), content, kind, remedy)


def parse_json(name: str, content: bytes, kind: type, remedy: str) -> Any:
    """As `read_json`, of the bytes of a file."""
    try:
        found = json.loads(content.decode("utf-8-sig"))  # editors of Windows write a byte order mark
    except ValueError as error:
        what = "is cut short or damaged" if content else "is empty"
        raise InputError(f"{name!r} {what}: {remedy}") from error
    if not isinstance(found, kind):
        raise InputError(f"{name!r} holds no JSON {'object' if kind is dict else 'array'}: {remedy}")
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file of greenjax; {} of another file: its keys have other meanings."""
    import safetensors  # few commands need it

    try:
        with safetensors.safe_open(path, "numpy") as opened:
            found = opened.metadata() or {}
    except safetensors.SafetensorError:
        return {}  # the reader of its tensors says what is wrong
    return found if "greenjax_version" in found else {}


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of DIR/metrics.jsonl, one dict a line; a line that was cut short is left out."""
    path, found = workdir / "metrics.jsonl", []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            found.append(line)
    return found


@contextmanager
def unless_unwritable(what: str) -> Iterator[None]:
    """Warns where the disk is full, read-only or gone when `what` is due, and goes on without it: the run matters more.

    Other errors are raised.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + GONE:
            raise
        logging.warning("%s: %s; the run goes on without it", what, error)
