"""Texts of a command line, or of a YAML or JSON file, as values of settings."""

import ast
import os
from typing import Any, get_origin

from greenjax.config.kinds import NAMES, PATHS
from greenjax.config.settings import KEYS

TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def read(key: str, text: str) -> Any:
    """The text converted to the key's type; unchanged where it cannot be, for the check of the value to name it."""
    kind, default = KEYS[key][:2]
    if text == "None" and default is None:
        return None
    if kind is str or (kind == NAMES and "," not in text):
        return text
    if kind == NAMES:
        return tuple(name.strip(" '\"") for name in text.strip("()").split(","))
    if kind == PATHS and ("," not in text or os.path.exists(os.path.expanduser(text))):
        return text
    if kind == PATHS and not text.startswith("("):
        return tuple(path.strip() for path in text.split(","))
    if kind is bool:
        return TRUTHS.get(text.lower(), text)
    try:
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return (value,) if get_origin(kind) is tuple and not isinstance(value, tuple | list) else value
