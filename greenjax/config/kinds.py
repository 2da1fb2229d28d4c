"""Kinds of settings: what a value must be, in code and in words."""

import math

from greenjax.backbones.settings import Key
from greenjax.data.reading import is_number

SIZE = (int, tuple)  # the type of image_size: one side in pixels, or (height, width)
RATIO = (int, float, tuple)  # the type of model.mlp_ratio: one number, or one a stage
NAMES = (str, tuple)  # the type of model.sparse_conv and log.to: one name, or a tuple
PATHS = (tuple, str)  # the type of data.path: one path, or several
VALUE = (str, int, float)  # the type of data.no_data: a text, or a number, which becomes one
PHASES = SIZE  # the type of detect.pre_nms: one count for training and evaluation, or (training, evaluation)


def share(default: float) -> Key:
    return Key(float, default, "at least 0 and below 1", lambda value: 0 <= value < 1)


def fraction(default: float) -> Key:
    return Key(float, default, "above 0, at most 1", lambda value: 0 < value <= 1)


def probability(default: float) -> Key:
    return Key(float, default, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def amount(default: float, note: str = "") -> Key:
    return Key(float, default, f"a number, at least 0{note}", lambda value: value >= 0)


def low_high(default: tuple[float, float], most: float = math.inf) -> Key:
    allowed = "two numbers (low, high), 0 < low <= high" + (f" <= {most:g}" if most < math.inf else "")
    return Key(tuple[float, ...], default, allowed, lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= most)


def size(default: int) -> Key:
    allowed = "pixels: one side or (height, width), 1 to 65536"
    return Key(SIZE, default, allowed, lambda v: len(v) == 2 and min(v) >= 1 and max(v) <= 65536)


def phases(training: int, evaluation: int) -> Key:
    allowed = "a whole number, at least 1: one for both, or (training, evaluation)"
    return Key(PHASES, (training, evaluation), allowed, lambda v: len(v) == 2 and min(v) >= 1)


def by_channel(default: tuple[float, ...], above: float = -math.inf) -> Key:
    allowed = "numbers" + (f" above {above:g}" if above > -math.inf else "") + ", one a channel or one for all"
    return Key(tuple[float, ...], default, allowed, lambda v: v and min(v) > above)


def indices(default: tuple[int, ...], exactly: int = 0) -> Key:
    allowed = "whole numbers, at least 0" + (f", {exactly} of them" if exactly else "")
    return Key(tuple[int, ...], default, allowed, lambda v: min(v, default=0) >= 0 and len(v) == (exactly or len(v)))


def flag(default: bool) -> Key:
    return Key(bool, default, "True or False")


def text(default: str) -> Key:
    return Key(str, default, "text")


def paths() -> Key:
    return Key(PATHS, "", "a path, or several folders", lambda value: isinstance(value, str) or all(value))


def no_data() -> Key:
    return Key(VALUE, "none", "'none', 'nan' or a number", lambda value: value == "none" or is_number(value))


def ratio() -> Key:
    allowed = "a number above 0, or one a stage"
    return Key(RATIO, None, allowed, lambda v: min(v) > 0 if isinstance(v, tuple) else v > 0, by_stage=True)


def backend(*names: str) -> Key:
    allowed = f"{' or '.join(names)}, for all stages or one a stage"
    return Key(NAMES, names[0], allowed, lambda v: set(v if isinstance(v, tuple) else [v]) <= {*names}, by_stage=True)


def several(default: str, *names: str) -> Key:
    """One of these names, or a tuple of them."""
    allowed = f"{', '.join(names[:-1])} or {names[-1]}, or several of them"
    return Key(NAMES, default, allowed, lambda v: v and set(v if isinstance(v, tuple) else [v]) <= {*names})
