"""Listings of folders in the user's cache folder: read in place of the folders while none of these has changed.

A folder's times change when a name in it comes or goes. A change within the granule of its times, which is two seconds
on some file systems, does not show: a folder that has just changed is not kept.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from greenjax.data.sources.names import Names
from greenjax.runtime.cache import cache_folder
from greenjax.runtime.files import replacing

SETTLED = 2.5  # seconds since the last change of a folder, from which on another one changes its times
DIGEST = 16  # bytes at the begin of a file
THREADS = 16  # that ask a network file system for times

Stamp = tuple[int, int, int]  # of a folder: times of its last change and of its last change of attributes, its inode


@dataclass(frozen=True)
class Listing:
    """The names of the images below a folder, and the numbers of files that were left out, by kind."""

    names: Names
    left_out: Counter[str]


def stamp(folder: str | Path) -> Stamp:
    """Raises OSError."""
    found = os.stat(folder)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino & 2**63 - 1  # an int64


def read(root: Path, kinds: Sequence[str]) -> Listing | None:
    """The listing of `root` that was kept; None where there is none, where it is damaged, or a folder has changed."""
    try:
        content = path_of(root, kinds).read_bytes()
    except OSError:
        return None
    if content[:DIGEST] != digest(content[DIGEST:]):
        return None
    import safetensors.numpy  # most folders are small, and not kept

    kept = safetensors.numpy.load(content[DIGEST:])
    folders = [os.path.join(root, folder) for folder in Names(kept["folders"], kept["folder_ends"])]
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            now = list(pool.map(stamp, folders))
    except OSError:
        return None
    if not np.array_equal(now, kept["stamps"]):
        return None
    return Listing(Names(kept["names"], kept["name_ends"]), Counter(json.loads(kept["left_out"].tobytes())))


def write(root: Path, kinds: Sequence[str], listing: Listing, folders: Mapping[str, Stamp], started: float) -> None:
    """Keeps a listing that was begun at the time `started`, unless the times of its folders would not tell a change.

    `folders` are all that were read, with their stamps from before. Nothing is kept where the cache cannot be written.
    """
    times = {stamps[:2] for stamps in folders.values()}
    invented = len(folders) > 1 and len(times) == 1  # mounts of object stores have one time for all folders
    if invented or min(map(min, times)) <= 0 or max(map(max, times)) > (started - SETTLED) * 1e9:
        return
    import safetensors.numpy

    names, below = listing.names, Names.of(folders)
    left_out = np.frombuffer(json.dumps(listing.left_out).encode(), np.uint8)
    arrays = {"names": names.text, "name_ends": names.ends, "folders": below.text, "folder_ends": below.ends}
    arrays |= {"stamps": np.array(list(folders.values()), np.int64), "left_out": left_out}
    content = safetensors.numpy.save(arrays)
    # Processes of several machines may write one file at once.
    with suppress(OSError), replacing(path_of(root, kinds), f".{os.urandom(8).hex()}") as draft:
        draft.write_bytes(digest(content) + content)


def path_of(root: Path, kinds: Sequence[str]) -> Path:
    """Where the listing of the files of `kinds` below `root` is kept. Raises FileNotFoundError without a home."""
    return cache_folder() / "listings" / digest(os.fsencode("\0".join((os.path.abspath(root), *kinds)))).hex()


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST).digest()
