"""The table of settings as text."""

import textwrap
from collections.abc import Iterable, Sequence

from greenjax.backbones.registry import SIZE_SETTINGS
from greenjax.config.names import nearest
from greenjax.config.settings import KEYS
from greenjax.errors import InputError

_INDENT = " " * 6


def described(keys: Iterable[str]) -> list[str]:
    """Lines about each key: its default, what it means, what is allowed."""
    lines = []
    for key in keys:
        entry = KEYS[key]
        lines.append(f"  {key:24} {default_text(key)}")
        for text in (entry.meaning, f"allowed: {entry.allowed}"):
            lines += textwrap.wrap(text, 100, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return lines


def default_text(key: str) -> str:
    """The default of a key, as a person reads it."""
    if KEYS[key].default is not None:
        return repr(KEYS[key].default)
    return "by model.name" if key.removeprefix("model.") in SIZE_SETTINGS else "not given"


def found(words: Sequence[str]) -> list[str]:
    """The keys that have every word in their name or meaning. Raises InputError with the nearest where none has."""
    keys = [key for key in KEYS if all(_plain(word) in _plain(f"{key} {KEYS[key].meaning}") for word in words)]
    if not keys:
        near = [close for word in words for close in nearest(word, KEYS)]
        hint = f"nearest are {', '.join(near)}" if near else "expected a word of a name or meaning"
        raise InputError(f"no setting has {' '.join(words)!r} in its name or meaning: {hint}")
    return keys


def _plain(text: str) -> str:
    return text.lower().replace("_", " ").replace("-", " ")
