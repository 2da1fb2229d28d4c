"""Values of settings: read from the text of a command line, YAML or JSON, and compared."""

import ast
import os
from typing import Any, get_origin

from greenjax.config.kinds import NAMES, PATHS, VALUE
from greenjax.config.settings import KEYS

TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def read(key: str, text: str) -> Any:
    """The text converted to the key's type; unchanged where it cannot be, for the check of the value to name it."""
    kind, default = KEYS[key][:2]
    if text == "None" and default is None:
        return None
    if kind in (str, VALUE) or (kind == NAMES and "," not in text):
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


def same_value(one: Any, other: Any) -> bool:
    """JSON has lists for tuples; an image_size may be one side or two, a ratio one or one a stage."""
    one, other = (tuple(value) if isinstance(value, list | tuple) else value for value in (one, other))
    if isinstance(one, tuple) != isinstance(other, tuple) and None not in (one, other):
        many, single = (one, other) if isinstance(one, tuple) else (other, one)
        return all(item == single for item in many)
    return one == other
