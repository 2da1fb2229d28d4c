"""The errors that are meant for the user: a command prints their message, one line, and ends with exit code 1.

Any other error is a defect, of greenjax or of a library, and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, NoReturn


class InputError(ValueError):
    """Something given to greenjax is wrong; the message names it, its value and what is expected."""


class NoLabels(InputError):
    """A data set has no label at all: none is wrong, and none is lost without them."""


class NotFinite(InputError):
    """A model gave features or logits that are NaN or infinite."""


class RunError(RuntimeError):
    """A run cannot go on although its input is right: it diverged, its disk is full, or a data worker died."""

    resumable = False  # True: the same command goes on from the last checkpoint


class InterruptedRun(Exception):
    """A signal asked the run to stop; it did so after a step that it saved."""

    exit_code = 75  # EX_TEMPFAIL, "try again": launch/slurm.sbatch requeues on it


def refuse(values: Mapping[str, Any], key: str, expected: str) -> NoReturn:
    """Raises the InputError that names the setting `key` and its value in `values`."""
    raise InputError(f"{key} is {values[key]!r}: expected {expected}")


def installed(module: str, package: str, what: str) -> Any:
    """A module of an optional package. Raises InputError that says `what` is missing, and what pip installs for it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{what}: `pip install '{package}'` installs it") from error


def in_a_line(error: BaseException) -> str:
    """The message of an error of a library on one line, or the error's class where there is none."""
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: Iterable[str]) -> str:
    """The names as an error shows them: the first ten, and the number of the others."""
    names = list(names)
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
