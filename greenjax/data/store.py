"""Copies of remote objects in a folder of bounded size, which the processes of several runs share.

    SIZE               the bytes of all files, as text; the process that makes room holds its lock
    3f/3fa94...        an entry: the object and a digest of it, or the object alone (a shard); its time is the last use
    3f/.3fa94....      a draft or a lock of it

An entry is written under another name and renamed, so no process sees half of one. Files of other names are not ours:
they neither count nor leave, since `data.cache` may be a folder with files of the user's.
"""

import fcntl
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO

from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.runtime.cache import cache_folder
from greenjax.runtime.console import warn_once
from greenjax.runtime.files import FULL, expanded, replacing

DIGEST = 16  # bytes at the end of an entry
KEPT = 0.9  # of the limit: what stays where room is made, so that the entries are not listed for each new one
ABANDONED = 86_400  # seconds after which a draft is that of a killed process
OURS = re.compile(r"[0-9a-f]{40}|\.[0-9a-f]{40}\..+")  # names of an entry, and of its drafts and lock


@dataclass(frozen=True)
class Store:
    """A folder of at most `limit` bytes, of which the least recently used entries leave first."""

    folder: str
    limit: int

    @classmethod
    def of(cls, data: ConfigDict) -> "Store | None":
        """The folder of `data.cache`; None where `data.cache_gb` is 0. Raises InputError where it cannot be written."""
        if not data.cache_gb:
            return None
        try:
            folder = expanded(data.cache) if data.cache else cache_folder() / "objects"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # raises OSError where nothing can be written
        except OSError as error:
            remedy = "expected a folder for copies of remote objects; data.cache_gb=0 does without"
            raise InputError(f"data.cache is {data.cache!r}, and cannot be written: {error}: {remedy}") from error
        return cls(os.path.abspath(folder), int(data.cache_gb * 1e9))

    def get(self, key: str) -> bytes | None:
        """The bytes under a key; None where there are none, or where they are cut or damaged."""
        path = self._path(key)
        try:
            entry = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # an entry of another user
            os.utime(path)
        data = entry[:-DIGEST]
        return data if entry[-DIGEST:] == _digest(data) else None

    def put(self, key: str, data: bytes) -> None:
        """Keeps bytes under a key. A disk that is full, or that cannot be written any more, costs one warning."""
        path, size = self._path(key), len(data) + DIGEST
        if size > self.limit:
            return
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.draft")
        try:
            path.parent.mkdir(exist_ok=True)
            with draft.open("wb") as file:
                file.write(data)
                file.write(_digest(data))
            self._count(draft, size)
            os.replace(draft, path)  # without fsync: an entry that a power failure cuts lacks its digest
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            warn_once(f"{self.folder} keeps no more objects: {error.strerror}")

    def copy(self, key: str, size: int, write: Callable[[IO[bytes]], None]) -> Path:
        """A file of `size` bytes under a key, which `write` writes where it is missing; one process does, others wait.

        Raises InputError where it cannot be written.
        """
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            with path.with_name(f".{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if path.exists() and path.stat().st_size == size:
                    os.utime(path)
                    return path
                with replacing(path, f".{os.getpid()}") as draft, draft.open("wb") as file:
                    file.truncate(size)
                    self._count(draft, size)
                    write(file)
        except OSError as error:
            hint = "; data.cache names another folder" if error.errno in FULL else ""
            raise InputError(f"data.cache: {str(path)!r} cannot be written: {error.strerror}{hint}") from error
        return path

    def _path(self, key: str) -> Path:
        name = blake2b(os.fsencode(key), digest_size=20).hexdigest()
        return Path(self.folder, name[:2], name)

    def _count(self, draft: Path, size: int) -> None:
        """Adds a draft of `size` bytes to what is there, and removes entries where this is too much then."""
        with Path(self.folder, "SIZE").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            total = size + (int(text) if text.isdecimal() else self._shrink(draft, self.limit))
            if total > self.limit:
                total = size + self._shrink(draft, self.limit - size)
            file.truncate(0)
            file.write(str(total))

    def _shrink(self, draft: Path, most: int) -> int:
        """The bytes of all files but `draft`, once the least recently used entries above `most` bytes are removed."""
        found, total, now = [], 0, time.time()
        for entry in self._files():
            with suppress(FileNotFoundError):  # other processes write and read
                stat = entry.stat()
                if not entry.name.startswith("."):
                    found.append((stat.st_mtime, stat.st_size, entry.path))
                elif entry.name.endswith(".draft") and now - stat.st_mtime > ABANDONED:
                    os.unlink(entry.path)
                    continue
                total += stat.st_size if entry.path != str(draft) else 0
        for _, size, path in sorted(found) if total > most else ():
            Path(path).unlink(missing_ok=True)
            total -= size
            if total <= KEPT * most:
                break
        return total

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """The entries, with their drafts and locks."""
        for folder in os.scandir(self.folder):
            if re.fullmatch("[0-9a-f]{2}", folder.name) and folder.is_dir():
                for entry in os.scandir(folder):
                    if OURS.fullmatch(entry.name) and entry.name.lstrip(".").startswith(folder.name):
                        yield entry


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST).digest()
