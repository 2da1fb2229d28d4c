"""`Key`: one setting of a config, its type and its allowed values; and the settings that several families have."""

from collections.abc import Callable
from typing import Any, NamedTuple

UNSET = "; 0 = not given"


def by_stage(value: Any, stages: int) -> tuple[Any, ...]:
    """A setting that is one value for all stages, or a tuple of one a stage, as the tuple."""
    return value if isinstance(value, tuple) else (value,) * stages


class Key(NamedTuple):
    """One setting. A default of None is a typed placeholder: not given, or given by `model.name`."""

    kind: Any  # int, float, bool, str, tuple[int, ...], tuple[float, ...], or one of config/kinds.py
    default: Any
    allowed: str
    ok: Callable[[Any], bool] = lambda value: True
    by_stage: bool = False  # a tuple has one entry a stage
    free: bool = False  # weights of a model fit other values, too
    own: bool = False  # as `free`, and a config's value goes before that of the weights of `init`
    meaning: str = ""  # a line for `greenjax settings`

    def means(self, meaning: str) -> "Key":
        return self._replace(meaning=meaning)


def choice(default: str | None, *names: str, note: str = "") -> Key:
    """One of the names; with the note `UNSET`, "0" is taken too."""
    return Key(str, default, " or ".join(names) + note, lambda value: value in names or (note, value) == (UNSET, "0"))


def count(default: int | None, least: int = 1, note: str = "", most: int = 0) -> Key:
    end = f"{least} to {most}" if most else f"at least {least}, below 2**31"  # the step is an int32
    return Key(int, default, f"a whole number, {end}{note}", lambda value: least <= value <= (most or 2**31 - 1))


def positive(default: float | None) -> Key:
    return Key(float, default, "a number above 0", lambda value: value > 0)


def counts(note: str = "") -> Key:
    """One a stage; with the note `UNSET`, zeros are taken too."""

    def good(values: tuple[int, ...]) -> bool:
        return min(values, default=0) >= 1 or (note == UNSET and not any(values))

    return Key(tuple[int, ...], None, f"whole numbers, at least 1, one a stage{note}", good, by_stage=True)


WINDOW = count(None, 0, UNSET)._replace(free=True).means("side of a window of attention, tokens")
EMBED_DIM = count(None, 0, UNSET).means("channels of the first stage, doubled at each later stage")
EMBED_DIMS = counts(UNSET).means("channels of every stage")
NUM_HEADS = counts(UNSET).means("attention heads of every stage")
SR_RATIOS = counts(UNSET).means("side of the block that is sub-sampled to one key, tokens")
