"""Files of weights: safetensors, PyTorch's own, and folders of transformers. Reading runs no code of a file."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Shaped

from greenjax.errors import InputError, listed
from greenjax.interop.pickles import first_line, read_pickle, require_torch, write_pickle
from greenjax.runtime.files import expanded, is_run, read_metadata, replacing

SAFETENSORS, PICKLES, SHARD_INDEX = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl"), ".index.json"
WRITTEN = (".safetensors", ".pth")
# The names that transformers and timm give the weights in a folder; the first that is there is read.
IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_}
_TYPES |= {f"{sign}{bits}": np.dtype(f"{sign.lower()}{bits // 8}") for sign in "IU" for bits in (8, 16, 32, 64)}
_TYPES |= {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "C64": np.complex64}

# Files that are named as weights and are something else, by their first bytes.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: `git lfs pull` fetches them"),
    (b"<", "a web page, not weights: download the file itself"),
    (b"\x1f\x8b", "a gzip archive: expected the file in it"),
    (b"BZh", "a bzip2 archive: expected the file in it"),
    (b"\xfd7zXZ", "an xz archive: expected the file in it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: expected the file in it"),
    (b"7z\xbc\xaf", "a 7z archive: expected the file in it"),
    (b"Rar!", "a RAR archive: expected the file in it"),
    (b"\x89HDF", "an HDF5 file: expected weights of PyTorch"),
    (b"\x93NUMPY", "a NumPy array: expected tensors by name"),
    (b"GGUF", "a GGUF file: expected weights of PyTorch"),
)


class Contents(NamedTuple):
    """The tensors and metadata of a file."""

    containers: dict[str, dict[str, Any]]  # arrays of NumPy or tensors of PyTorch, by the key of their dictionary or ""
    metadata: dict[str, str]  # that greenjax wrote; {} in files of other programs


def read_weights(path: str | Path, *, trust: bool = False) -> Contents:
    """The tensors of a file, of an index and its shards, or of a folder of transformers.

    `trust` lets a pickle run code. Raises InputError for a file that is missing, damaged, or holds no weights, and
    without `trust` for a pickle that calls code.
    """
    path = expanded(path)
    try:
        return _read_any(path, trust)
    except OSError as error:
        raise InputError(f"weights {str(path)!r} cannot be read: {error.strerror}") from error


def _read_any(path: Path, trust: bool) -> Contents:
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise InputError(f"weights {str(path)!r}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.name.endswith(SHARD_INDEX):
        return _read_shards(path, trust)
    if path.suffix not in SAFETENSORS + PICKLES:
        raise InputError(
            f"weights {str(path)!r}: expected a file named *{', *'.join(SAFETENSORS + PICKLES)} or *{SHARD_INDEX}, or a"
            " folder of transformers"
        )
    shard = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    if shard and (index := path.with_name(f"{shard[1]}{shard[3]}{SHARD_INDEX}")).is_file():
        raise InputError(f"weights {str(path)!r} are one of {int(shard[2])} shards: expected {str(index)!r}")
    return _read(path, trust)


def to_array(name: str, value: Any) -> Shaped[np.ndarray, "..."]:
    """A tensor of a file as an array; floats below 32 bits become float32. Raises InputError where it has no values."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype.kind in "fV" and value.dtype.itemsize < 4 else value
    if value.is_meta:
        raise InputError(f"{name} is a meta tensor: the file holds its shape, but no values")
    try:
        value = value.detach().cpu()
        value = value.dequantize() if value.is_quantized else value
        value = value.to_dense().resolve_conj().resolve_neg()
        return (value.float() if value.is_floating_point() and value.itemsize < 4 else value).contiguous().numpy()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{name} is a tensor of {value.dtype}, which cannot be read: {first_line(error)}") from error


def weights_of(folder: Path) -> Path | None:
    """The file of weights in a folder of transformers; None where there is none, and for the workdir of a run."""
    files = (folder / name for name in IN_FOLDER if (folder / name).is_file())
    return None if is_run(folder) else next(files, None)


def _in_folder(folder: Path) -> Path:
    if found := weights_of(folder):
        return found
    if is_run(folder):
        raise InputError(f"weights {str(folder)!r}: a run of greenjax, which --config.init and to-torch take")
    files = sorted(path.name for path in folder.iterdir() if path.suffix in SAFETENSORS + PICKLES)
    also = f", or one of its files: {listed(files)}" if files else ""
    raise InputError(
        f"weights {str(folder)!r}: expected model.safetensors in the folder, or pytorch_model.bin, whole or in shards"
        f" with an index{also}"
    )


def _read_shards(index: Path, trust: bool) -> Contents:
    """The tensors that an index names, from the files beside it."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        files = sorted(set(shards.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"weights {str(index)!r} cannot be read: expected JSON with a weight_map of names") from error
    if not files:
        raise InputError(f"weights {str(index)!r}: the weight_map names no tensors")
    if odd := [name for name in files if not isinstance(name, str) or Path(name).name != name]:
        raise InputError(f"weights {str(index)!r}: the weight_map names {odd[0]!r}: expected a file beside the index")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise InputError(
            f"weights {str(index)!r}: {len(missing)} of {len(files)} shards are not there: {listed(missing)}"
        )
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name in files:
        containers, said = _read(index.parent / name, trust, index)
        tensors |= containers.get("", {})
        metadata |= said
    if absent := [name for name in shards if name not in tensors]:
        raise InputError(
            f"weights {str(index)!r}: {len(absent)} of {len(shards)} tensors are not in the shards: {listed(absent)}"
        )
    return Contents({"": tensors}, metadata)


def _read(path: Path, trust: bool, whole: Path | None = None) -> Contents:
    """The tensors of one file, by its first bytes: its suffix may be wrong. `whole` is the index of a shard."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"weights {str(path)!r}: the file is empty")
    pickled = head.startswith((b"PK", b"\x80"))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        pickled = False
    elif what := _impostor(head):
        raise InputError(f"weights {str(path)!r}: {what}")
    elif not pickled and path.suffix not in SAFETENSORS:
        raise InputError(f"weights {str(path)!r}: neither safetensors nor a checkpoint of PyTorch")
    if pickled:
        return Contents(read_pickle(path, trust=trust, whole=whole), {})
    tensors, metadata = _read_safetensors(path)
    return Contents({"": tensors}, metadata)


def _impostor(head: bytes) -> str:
    """The name of a file that is no weights, by its first bytes; "" for any other."""
    if head[257:262] == b"ustar":
        return "a tar archive: expected the file in it"
    if head.startswith(b"PK") and b".npy" in head[30:160]:
        return "a NumPy archive: expected weights of PyTorch"
    return next((what for start, what in _IMPOSTORS if head.lstrip().startswith(start)), "")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        found = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise InputError(f"weights {str(path)!r} cannot be read, the file is damaged or cut short: {error}") from error
    if odd := [name for name, entry in found if entry["dtype"] not in _TYPES]:
        types = sorted({entry["dtype"] for _, entry in found} - _TYPES.keys())
        raise InputError(
            f"weights {str(path)!r}: {len(odd)} of {len(found)} tensors are {' or '.join(types)}, which cannot be read:"
            f" {listed(odd)}"
        )
    return {
        name: np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"]) for name, entry in found
    }, read_metadata(path)


def check_output(path: str | Path, folder: bool = False) -> Path:
    """The path to write to, checked before anything expensive. `folder`: a path with another suffix is a folder.

    Raises InputError for a path that cannot be written, for the workdir of a run, and for a word as the suffix of a new
    folder, such as weights.safetensor; v1.0 is taken.
    """
    path = expanded(path)
    folder = folder and path.suffix not in WRITTEN
    if path.suffix not in WRITTEN and not folder:
        raise InputError(f"output {str(path)!r}: expected a file named *.safetensors or *.pth")
    if folder and path.suffix[1:].isalpha() and not path.is_dir():
        also = "or a folder; one of this name has to be there before"
        raise InputError(f"output {str(path)!r}: expected a file named *.safetensors or *.pth, {also}")
    if path.suffix == ".pth":
        require_torch(path)
    if folder and (path / "checkpoints").is_dir():  # the export's config.json would replace the run's
        raise InputError(f"output {str(path)!r} is the workdir of a run: expected another folder")
    check_place(path, folder)
    return path


def check_place(path: Path, folder: bool = False) -> None:
    """Raises InputError where a file, or a folder, cannot be written."""
    if not folder and path.is_dir():
        raise InputError(f"output {str(path)!r} is a folder: expected a file")
    there = next(parent for parent in ((path if folder else path.parent), *path.parents) if parent.exists())
    if not there.is_dir():
        raise InputError(f"output {str(path)!r} cannot be written: {str(there)!r} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"output {str(path)!r} cannot be written: no permission to write in {str(there)!r}")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file as a whole or not at all; *.pth holds a plain state_dict, without metadata."""
    # safetensors writes the memory of an array without its strides.
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    try:
        with replacing(path) as draft:
            if path.suffix == ".pth":
                write_pickle(draft, tensors)
            else:
                # safetensors' own save_file makes files that no other user may read.
                draft.write_bytes(safetensors.numpy.save(tensors, {"format": "pt", **metadata}))
    except OSError as error:
        raise InputError(f"output {str(path)!r} cannot be written: {error.strerror}") from error
