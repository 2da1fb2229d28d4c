"""Checkpoints of PyTorch: the tensors in a pickle, by the dictionary that holds them.

Reading runs no code of a pickle, unless `trust` lets it; only the command `extract --trust` does.
"""

import pickle
import re
import shlex
import warnings
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from greenjax.errors import InputError

# The errors of missing classes, other versions and damage. A pickle that runs code may raise any other.
_FAILURES = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, ImportError)


def read_pickle(path: Path, *, trust: bool = False, whole: Path | None = None) -> dict[str, dict[str, Any]]:
    """The tensors of a checkpoint, PyTorch's or NumPy's, by the key of their dictionary: "", "model", "a.b".

    `whole` is the index of a shard. Raises InputError for a file that is damaged or holds no tensors, and without
    `trust` for one that calls code.
    """
    torch = require_torch(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to programmers, such as on protocols and TorchScript
        found = _load_trusted(torch, path) if trust else _load_safely(torch, path, whole or path)
    containers = _containers(torch, found)
    if not containers:
        raise InputError(f"weights {str(path)!r}: expected tensors by name, found {_described(found)}")
    return containers


def write_pickle(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a plain state_dict. Raises OSError where the disk is full."""
    torch = require_torch(path)
    with path.open("wb") as file:
        try:
            torch.save({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, file)
        except RuntimeError as error:
            # PyTorch says only that its file has a wrong length; the write's own error is the one before.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def require_torch(path: Path) -> Any:
    """PyTorch, or InputError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{str(path)!r} needs PyTorch, which is not installed; *.safetensors does not") from error
    return torch


def _load_safely(torch: Any, path: Path, whole: Path) -> Any:
    try:
        with path.open("rb") as file:  # not the path: newer PyTorch goes by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if called := _called(str(error)):
            raise InputError(
                f"weights {str(path)!r} hold more than tensors ({called}), and reading that could run any code, so"
                f" nothing was read. {_advice(whole)}"
            ) from error
        raise _damaged(path, "not a pickle of PyTorch's") from error
    except _FAILURES as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"weights {str(path)!r} are a TorchScript archive, a program, so nothing was read. {_advice(whole)}"
            ) from error
        raise _damaged(path, first_line(error)) from error


def _load_trusted(torch: Any, path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"weights {str(path)!r} need a class that cannot be imported here ({first_line(error)}): expected to be"
            " read in the folder of the code that saved them, or saved there anew as model.state_dict()"
        ) from error
    except (pickle.UnpicklingError, *_FAILURES) as error:
        if "magic number" in str(error):  # pickled without torch.save
            return _unpickled(path)
        raise _damaged(path, first_line(error)) from error


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")  # as NumPy's arrays of Python 2 want it
    except (pickle.UnpicklingError, *_FAILURES) as error:
        raise _damaged(path, first_line(error)) from error


def _called(message: str) -> str:
    """The function that a pickle calls, from PyTorch's refusal; "" where the pickle is damaged."""
    if found := re.search(r"GLOBAL (\S+)", message):
        return found[1]
    return "a pickle of protocol 4 or later" if "Unsupported operand 149" in message else ""


def _advice(path: Path) -> str:
    """The advice to take the tensors out of a file, or an index and its shards, into a new file."""
    stem = Path(path.name.removesuffix(".index.json")).stem
    names = (f"{stem}{ending}.safetensors" for ending in chain(["", "_tensors"], (f"_tensors_{n}" for n in count(2))))
    output = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    arguments = ["--input", str(path), "--output", str(output)]
    return (
        "If you trust the file, take its tensors out once, by torch.load with weights_only=False:"
        f" python -m greenjax.convert extract --trust {shlex.join(arguments)}"
    )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"weights {str(path)!r} cannot be read, the file is damaged or cut short: {why}")


def _containers(torch: Any, found: Any) -> dict[str, dict[str, Any]]:
    """Every dictionary and module with tensors in an unpickled object, outer ones first."""
    containers, seen, waiting = {}, {}, [("", found)]
    while waiting:
        key, value = waiting.pop(0)
        if isinstance(value, torch.nn.Module):
            value = value.state_dict()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen[id(value)] = value
        tensors = {str(name): item for name, item in value.items() if isinstance(item, torch.Tensor | np.ndarray)}
        if tensors:
            containers[key] = tensors
        waiting += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
    return containers


def _described(found: Any) -> str:
    if not isinstance(found, Mapping) or not found:
        return type(found).__name__
    return f"{type(found).__name__} of {', '.join(map(repr, list(found)[:5]))}{', ...' if len(found) > 5 else ''}"


def first_line(error: BaseException) -> str:
    """The first sentence of an error, without the place in PyTorch's C++ that found it."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[enforce fail at [^]]+\]\s*\.?\s*", "", line).split(". ")[0].rstrip(".")
