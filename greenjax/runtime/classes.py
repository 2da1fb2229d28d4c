"""The names of a classifier's classes, in the order of its outputs. A run keeps them in DIR/classes.json."""

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from greenjax.errors import InputError, listed
from greenjax.runtime.files import read_json, replace_text

Classes = tuple[str, ...]

FILE = "classes.json"


def plain(name: str) -> str:
    """The name in one Unicode form: macOS writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str], whose: str, key: Callable[[str], Any] = plain) -> Classes:
    """Different names in the order of `key`. Raises InputError where two of them are one by it."""
    found = sorted(names, key=key)
    for one, other in pairwise(found):
        if key(one) == key(other):
            raise InputError(f"{whose} has classes {one!a} and {other!a}, one name: expected one spelling")
    return tuple(found)


def same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists have the same names in the same order."""
    return list(map(plain, one)) == list(map(plain, other))


def output_names(names: Sequence[str], count: int) -> Classes:
    """A name for each of `count` outputs of a classifier: `names`, then numbers."""
    return (*names[:count], *(str(index) for index in range(len(names), count)))


def write_classes(workdir: Path, names: Sequence[str]) -> None:
    replace_text(workdir / FILE, json.dumps(list(names), indent=2) + "\n")


def read_classes(workdir: Path) -> Classes:
    """The names in the file of a run; none without a file. Raises InputError where the file is damaged."""
    path, remedy = workdir / FILE, 'expected a JSON list of class names, such as ["cat", "dog"]'
    if not path.is_file():
        return ()
    found = read_json(path, list, remedy)
    if not all(isinstance(name, str) for name in found):
        raise InputError(f"{str(path)!r} holds other things than names: {remedy}")
    return tuple(found)


def from_json(text: str) -> Classes:
    """The names in a JSON list. Raises ValueError for any other text."""
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError("no list of names")
    return tuple(found)


def refuse_other_classes(workdir: Path, names: Sequence[str]) -> None:
    """Raises InputError where the run in `workdir` was begun with other classes."""
    before = read_classes(workdir)
    if not before or same(before, names):
        return
    new, gone = differences(names, before), differences(before, names)
    found = [f"new are {listed(new)}"] if new else []
    found += [f"gone are {listed(gone)}"] if gone else []
    what = "; ".join(found) or "their order is another"
    raise InputError(f"{workdir} was begun with other classes: {what}: expected the same, or another --workdir")


def differences(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names that are missing among `others`."""
    known = set(map(plain, others))
    return [name for name in names if plain(name) not in known]
