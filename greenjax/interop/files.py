"""Files of weights: safetensors, PyTorch's own, and the folders of transformers. Nothing that is read runs code."""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Shaped

from greenjax.atomic import expanded
from greenjax.errors import InputError

SAFETENSORS, PICKLES = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt", ".tar")

Tensors = dict[str, Shaped[np.ndarray, "..."]]

_TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_}
_TYPES |= {f"{sign}{bits}": np.dtype(f"{sign.lower()}{bits // 8}") for sign in "IU" for bits in (8, 16, 32, 64)}

# Where training scripts put the weights inside what they save.
_CONTAINERS = ("model", "state_dict", "module")


def read_tensors(path: str | Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors in a file or a folder of transformers, and what a safetensors file says of them.

    Floats come as float32 or float64. Raises InputError for what is not there, cut short, not finite, or wants to run
    code.
    """
    path = expanded(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise InputError(f"weights {str(path)!r}: no such file")
    if path.suffix in SAFETENSORS:
        tensors, metadata = _read_safetensors(path)
    elif path.suffix in PICKLES:
        tensors, metadata = _read_pickle(path), {}
    else:
        raise InputError(f"weights {str(path)!r}: expected a file named *{', *'.join(SAFETENSORS + PICKLES)}")
    bad = [name for name, value in tensors.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if bad:
        raise InputError(
            f"weights {str(path)!r}: {len(bad)} of {len(tensors)} tensors are not finite: {_listed(sorted(bad))}"
        )
    return tensors, metadata


def _in_folder(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"weights {str(folder)!r}: expected model.safetensors in the folder")


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            metadata = opened.metadata() or {}
        found = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise InputError(f"weights {str(path)!r} cannot be read, the file is damaged or cut short: {error}") from error
    return {
        name: _wide(np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"]))
        for name, entry in found
    }, metadata


def _read_pickle(path: Path) -> Tensors:
    torch = _torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {str(path)!r} hold more than tensors ({_what(error)}), and reading that could run any code, so"
            f" nothing was read. If you trust the file, take the tensors out once:"
            f" python -c \"import torch; f = torch.load({str(path)!r}, weights_only=False, map_location='cpu');"
            f" torch.save(f.get('model', f), 'tensors.pth')\""
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"weights {str(path)!r} cannot be read, the file is damaged or cut short: {_first_line(error)}"
        ) from error
    for name in _CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"weights {str(path)!r}: expected tensors by name, found {type(found).__name__}")
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    # NumPy knows no bfloat16 of PyTorch's.
    halves = (torch.bfloat16, torch.float16)
    return {
        str(name): (value.float() if value.dtype in halves else value).contiguous().numpy()
        for name, value in tensors.items()
    }


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{str(path)!r} needs PyTorch, which is not installed; *.safetensors does not") from error
    return torch


def _what(error: pickle.UnpicklingError) -> str:
    """What a pickle wants to call, which PyTorch names in the midst of advice."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else "not understood"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _wide(value: np.ndarray) -> np.ndarray:
    """Half precision as float32."""
    return value if value.dtype.kind in "iub" or value.dtype.itemsize > 2 else value.astype(np.float32)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_output(path: str | Path, folder: bool = False) -> Path:
    """The path to write to, or InputError, before anything expensive. `folder`: without a suffix it is a folder."""
    path = expanded(path)
    if not path.suffix and not folder:
        raise InputError(f"output {str(path)!r}: expected a file named *.safetensors or *.pth")
    if path.suffix and path.suffix not in (*SAFETENSORS, ".pth"):
        also = ", or a folder" if folder else ""
        raise InputError(f"output {str(path)!r}: expected a file named *.safetensors or *.pth{also}")
    if path.suffix == ".pth":
        _torch(path)
    try:
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {str(path)!r} cannot be written: {error.strerror}") from error
    if path.suffix and path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder: expected a file")
    return path


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file as a whole or not at all; *.pth holds a plain state_dict, without metadata."""
    draft = path.with_name(f".{path.name}.draft")
    # safetensors writes the memory of an array as it lies there.
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        if path.suffix == ".pth":
            torch = _torch(path)
            torch.save({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, draft)
        else:
            # Not save_file: it makes files that nobody else may read.
            draft.write_bytes(safetensors.numpy.save(tensors, {"format": "pt", **metadata}))
        os.replace(draft, path)
    except (OSError, safetensors.SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"output {str(path)!r} cannot be written: {error}") from error
