"""The image files below a folder, in the order of a hash of their names.

    a/1.png, a/2.png, b/1.png   ->   b/1.png, a/2.png, a/1.png

A listing that takes long is kept in the user's cache folder (kept_listing.py).
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greenjax.data.remote import Remote, refusing
from greenjax.data.sources import kept_listing
from greenjax.data.sources.names import Names, hashed_order
from greenjax.runtime.console import warn_once

SUFFIXES = (".avif", ".bmp", ".btf", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".npz")
SUFFIXES += (".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tf8", ".tif", ".tiff", ".webp")
# Image formats that are not read; a warning counts such files. Files with other suffixes are left out silently.
UNREAD = (".apng", ".arw", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico")
UNREAD += (".jxl", ".jxr", ".nef", ".orf", ".pcx", ".pfm", ".psd", ".raf", ".rw2", ".sgi", ".svg", ".tga", ".xcf")
NO_FILES = "pipes, devices or broken links"
LEFT_OUT = (*UNREAD, NO_FILES)
WORTH_KEEPING = 1.0  # seconds that a listing takes


def names_below(root: Path) -> Names:
    """The names of all images below `root`, in the order of a source. Warns as `find_images`."""
    kept = kept_listing.read(root, SUFFIXES + UNREAD)
    if kept is None:
        started, clock = time.time(), time.monotonic()
        found = look_below(root)
        order = hashed_order(found.names)
        kept = kept_listing.Listing(Names.of([found.names[i] for i in order]), found.left_out)
        if found.lasting and time.monotonic() - clock >= WORTH_KEEPING:
            kept_listing.write(root, SUFFIXES + UNREAD, kept, found.folders, started)
    warn_of_left_out(root, kept.left_out)
    return kept.names


def names_at(root: str, remote: Remote) -> Names:
    """As `names_below`, of a folder at a URL. Raises InputError where it may not be listed."""
    with refusing():
        found = remote.names(root)
    suffixes = [os.path.splitext(name)[1].lower() for name in found]
    warn_of_left_out(root, Counter(suffix for suffix in suffixes if suffix in UNREAD))
    images = [name for name, suffix in zip(found, suffixes) if suffix in SUFFIXES]
    return Names.of([images[i] for i in hashed_order(images)])


def find_images(root: Path) -> list[str]:
    """Paths of all images below `root`, relative to it, sorted; hidden files and folders are left out.

    An image is a regular file: opening a pipe would block. One warning counts the files that look like images and are
    left out.
    """
    found = look_below(root)
    warn_of_left_out(root, found.left_out)
    return found.names


@dataclass
class Found:
    """What is below a folder."""

    names: list[str] = field(default_factory=list)  # of images, sorted
    left_out: Counter[str] = field(default_factory=Counter)  # files that look like images, by kind
    folders: dict[str, kept_listing.Stamp] = field(default_factory=dict)  # all that were read, as they were before
    lasting: bool = True  # the same files would be found as long as the stamps of the folders are the same


def look_below(root: Path) -> Found:
    """Reads the folders below `root`."""
    found, seen, folders = Found(), set(), [""]
    while folders:
        folder = folders.pop()
        try:
            found.folders[folder] = kept_listing.stamp(root / folder)
            real = os.path.realpath(root / folder)
            entries = scan(root / folder) if real not in seen else []  # seen: a symbolic link back up
        except OSError as error:
            warn_once(f"{root / folder} cannot be read: {error.strerror}")
            found.lasting = False
            continue
        seen.add(real)
        folders += reversed(look_at(entries, folder, found))
    found.names.sort()
    return found


def look_at(entries: list[os.DirEntry[str]], folder: str, found: Found) -> list[str]:
    """Adds the images among the entries of a folder; returns the folders among them."""
    inside = []
    for entry in entries:
        path = os.path.join(folder, entry.name)
        suffix = os.path.splitext(entry.name)[1].lower()
        if holds(entry.is_dir):
            inside.append(path)
        elif suffix in SUFFIXES and holds(entry.is_file):
            found.names.append(path)
        else:
            found.lasting &= not leads_nowhere(entry)  # it may lead to a file or a folder later
            kind = NO_FILES if suffix in SUFFIXES else suffix
            found.left_out.update([kind] if kind in LEFT_OUT else ())
    return inside


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden files and folders. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def holds(test: Callable[[], bool]) -> bool:
    """The result of a test of a directory entry; False for a symbolic link that cannot be followed."""
    try:
        return test()
    except OSError:
        return False


def leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def warn_of_left_out(root: Path | str, left_out: Counter[str]) -> None:
    counts = [f"{count} {kind}" for kind, count in left_out.most_common()]
    if counts:
        total = left_out.total()
        files = "1 file is" if total == 1 else f"{total} files are"
        warn_once(f"{root}: {files} left out: {', '.join(counts)}: expected {', '.join(SUFFIXES)}")
