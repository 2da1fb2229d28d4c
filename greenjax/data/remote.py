"""Objects at URLs (s3://, http://, ...): listings of folders, and the bytes of objects; with retries, kept locally.

Connections belong to a process and are opened at its first request, so sources stay picklable. Every request ends:
within data.fetch_seconds it gives bytes or an error that names the object.
"""

import html
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from ml_collections import ConfigDict

from greenjax.data.filesystems import Forbidden, Refused, check_scheme, filesystem, judged
from greenjax.data.store import Store
from greenjax.errors import InputError, RunError

TRIES = 3  # at least, where a server does not answer: the share of the time that one of them may take
SHORTEST = 0.1  # seconds of a try
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between two tries; each wait is twice the one before
PART = 1 << 24  # bytes of one request for a large file
# Of what fsspec knows of an object.
VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified", "md5Hash", "last_commit")

T = TypeVar("T")


class RemoteError(RunError):
    """An object cannot be fetched now, however often it is tried; the message is one line that names it."""

    resumable = True


class Stat(NamedTuple):
    """What identifies an object's content."""

    size: int  # in bytes
    version: str  # as far as the server tells it


def is_url(path: str) -> bool:
    return "://" in path


def joined(root: str, name: str) -> str:
    """The place of `name`, a path or URL by itself or relative to the folder `root`."""
    if is_url(name) or not is_url(root):
        return name if is_url(name) else os.path.join(root, name)
    if os.path.isabs(name):
        return name
    scheme, _, folder = root.partition("://")
    if scheme in ("http", "https"):
        name = quote(name)
    return f"{scheme}://{normpath(f'{folder}/{name}')}" if "./" in name else f"{root}/{name}"


def place_of(url: str) -> str:
    """A URL of HTTP in one spelling: pages link to the folder /a/b as ./b/, ../a/b/ or b/?sort=name, too."""
    scheme, host, path, *_ = urlsplit(url)
    return f"{scheme}://{host}{normpath(path).rstrip('/')}{'/' * path.endswith('/')}"


@dataclass(frozen=True)
class Remote:
    """How objects are fetched, and where they are kept; picklable."""

    seconds: float  # for one request, with all its tries
    store: Store | None

    @classmethod
    def of(cls, data: ConfigDict, urls: Iterable[str]) -> "Remote":
        """By `data.fetch_seconds` and `data.cache`. Raises InputError for a URL that cannot be read by what is here."""
        for url in {url.partition("://")[0]: url for url in urls}.values():
            check_scheme(url)
        return cls(data.fetch_seconds, Store.of(data))

    def read(self, url: str, start: int = 0, size: int | None = None, version: str = "") -> bytes:
        """An object, or `size` bytes of it from `start` on, kept under its URL and version.

        Raises Refused, and RemoteError where the server cannot be reached or fails.
        """
        if self.store is None:
            return self.fetch(url, start, size)
        key = f"{url}\0{version}\0{start}\0{size}"
        if (found := self.store.get(key)) is None:
            found = self.fetch(url, start, size)
            self.store.put(key, found)
        return found

    def fetch(self, url: str, start: int = 0, size: int | None = None) -> bytes:
        """As `read`, from the server."""
        end = None if size is None else start + size

        def get(files: Any, limit: dict[str, float]) -> bytes:
            data = files.cat_file(url, start=start, end=end, **limit)  # without a start, s3fs asks for the size first
            if size is not None and len(data) < size:
                raise EOFError(f"{len(data)} bytes came, of {size}")
            return data

        data = self._tried(url, get) if size != 0 else b""
        if size is not None and len(data) > size:
            raise InputError(f"{url}: its server gives no parts of files (HTTP ranges): expected one that does")
        return data

    def copy(self, url: str, stat: Stat) -> Path:
        """A local copy of a large object. Raises as `read`; InputError where it cannot be written."""

        def write(file: IO[bytes]) -> None:
            for start in range(0, stat.size, PART):
                file.write(self.fetch(url, start, min(PART, stat.size - start)))

        assert self.store is not None
        return self.store.copy(f"{url}\0{stat.version}", stat.size, write)

    def stat(self, url: str) -> Stat:
        found = self._tried(url, lambda files, limit: files.info(url, **limit))
        if found.get("size") is None or found.get("type") == "directory":
            raise Refused(f"{url} cannot be read: it is a folder, or its server does not tell its size")
        return Stat(found["size"], " ".join(str(found[key]) for key in ("size", *VERSIONS) if found.get(key)))

    def names(self, root: str) -> list[str]:
        """Names of the files below a folder, relative to it, sorted; without hidden ones. Raises as `read`."""
        if root.startswith("http"):
            found = [unquote(name) for name in self._linked(f"{root}/")]
        else:
            files = self._tried(root, lambda files, _: files.find(root))  # pages, each with s3fs's own limit
            found = [name[len(root.partition("://")[2]) + 1 :] for name in files]
        return sorted({name for name in found if name and not any(part.startswith(".") for part in name.split("/"))})

    def _linked(self, root: str) -> Iterator[str]:
        """The files below `root` that the pages of an HTTP server link to, page by page; relative to `root`."""
        root = place_of(root)
        folders, seen = [root], {root}
        while folders:
            folder = folders.pop()
            for entry in self._tried(folder, lambda files, limit, page=folder: files.ls(page, **limit)):
                place = place_of(html.unescape(entry["name"]))
                if not place.startswith(root) or place in seen:
                    continue  # of a folder above, or of another server
                if place.endswith("/"):
                    folders.append(place)
                    seen.add(place)
                else:
                    yield place[len(root) :]

    def check_rights(self, urls: Iterable[str]) -> None:
        """Asks for one object of each bucket or server. Raises InputError where it may not, or cannot, be read."""
        for url in {tuple(url.split("/")[:3]): url for url in urls}.values():
            try:
                self.fetch(url)
            except (Forbidden, RemoteError) as error:
                raise InputError(str(error)) from error
            except Refused:
                pass  # a missing object is named, counted and replaced when its turn comes

    def _tried(self, url: str, call: Callable[[Any, dict[str, float]], T]) -> T:
        """The result of `call`, of a filesystem and the limit of one try; tries again after errors that may pass."""
        begin, wait, tries, said_last = time.monotonic(), FIRST_WAIT, 0, ""
        while True:
            left = min(self.seconds / TRIES, self.seconds - (time.monotonic() - begin))
            tries += 1
            try:
                files = filesystem(url.partition("://")[0], os.getpid())
                return call(files, {"timeout": max(left, SHORTEST)} if files.async_impl else {})
            except Exception as error:  # each filesystem has errors of its own
                kind, reason = judged(error)
                if kind is not None:
                    raise kind(f"{url} cannot be read: {reason}") from error
                if not (said_last and isinstance(error, TimeoutError)):  # the end of the time cuts the last try
                    said_last = reason
                passed = time.monotonic() - begin
                if passed + wait > self.seconds:
                    count = f"{tries} {'try' if tries == 1 else 'tries'} in {passed:.0f} s (data.fetch_seconds)"
                    raise RemoteError(f"{url} cannot be read: {said_last}, {count}") from error
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


@contextmanager
def refusing() -> Iterator[None]:
    """Turns errors into InputError: at the start, of an object that a run cannot do without."""
    try:
        yield
    except (Refused, RemoteError) as error:
        raise InputError(str(error)) from error


class Seekable(io.RawIOBase):
    """An object as a file; wrapped in a BufferedReader of PART bytes, it is read in requests of as many."""

    def __init__(self, remote: Remote, url: str, size: int):
        self._remote, self._url, self._size, self._place = remote, url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        buffer[:count] = self._remote.fetch(self._url, self._place, count)
        self._place += count
        return count
