"""The files that a pattern in data.path names: {000..099} stands for numbers, * for anything, {split} for a split.

Without `{split}` the only split is "all".
"""

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial

from greenjax.data.remote import Remote, joined, refusing
from greenjax.errors import InputError, listed
from greenjax.runtime.files import expanded

SPLIT = "{split}"  # in data.path: the name of the split


def files_of(pattern: str, split: str, kind: str, remote: Remote | None = None) -> list[str]:
    """The files of a split, sorted; errors call them `kind`. `remote`: the pattern is a URL, of files that may not be.

    Raises InputError where there are none, or one of a range is missing.
    """
    if SPLIT not in pattern and split != "all":
        what = f"data.path is {pattern!r}, without {SPLIT}"
        raise InputError(f"{what}: the only split is 'all', not {split!r}")
    of_split = pattern.replace(SPLIT, split)
    paths = in_ranges(str(expanded(of_split)) if remote is None else of_split)
    if missing := [path for path in paths if remote is None and "*" not in path and not os.path.isfile(path)]:
        raise InputError(f"data.path is {pattern!r}: there is no {listed(missing)}")
    like = (lambda path: glob.glob(starred(path))) if remote is None else partial(urls_like, remote)
    found = sorted({file for path in paths for file in (like(path) if "*" in path else [path])})
    if not found:
        raise InputError(f"data.path is {pattern!r}: expected {kind}, found none of split {split!r}")
    return found


def starred(path: str) -> str:
    """The path as a pattern of `glob` and `fnmatch` in which * alone has a meaning."""
    return "*".join(map(glob.escape, path.split("*")))


def urls_like(remote: Remote, pattern: str) -> Iterator[str]:
    """The URLs that a URL with * stands for: as in paths, * is no slash."""
    root = pattern[: pattern.index("*")].rpartition("/")[0]
    wanted = starred(pattern[len(root) + 1 :]).split("/")
    with refusing():
        names = remote.names(root)
    for name in names:
        parts = name.split("/")
        if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
            yield joined(root, name)


def in_ranges(pattern: str) -> list[str]:
    """The paths that a pattern with ranges such as {000..099} stands for."""
    before, brace, rest = pattern.partition("{")
    inside, end, after = rest.partition("}")
    first, dots, last = inside.partition("..")
    if not brace:
        return [pattern]
    if not (end and dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise InputError(f"data.path has {{{inside}}}: expected a range of numbers such as {{000..099}}, or {SPLIT}")
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [f"{before}{number}{tail}" for number in numbers for tail in in_ranges(after)]
