"""A trained model by its place alone: the place says which model it is, and how that sees images."""

import re
from pathlib import Path
from typing import Any

from absl import logging

from greenjax.backbones.registry import family_of
from greenjax.backbones.rules import Layout
from greenjax.config import resolve
from greenjax.config.checks import acceptable
from greenjax.config.inherit import DECODER, MASKS, inherit, recorded
from greenjax.config.transformers import LAYOUT, PROCESSOR, described, families
from greenjax.errors import InputError, in_a_line, installed
from greenjax.interop.files import IN_FOLDER, Contents, read_weights, weights_of
from greenjax.interop.heads import head_size
from greenjax.interop.loading import load, load_run, read_torch
from greenjax.runtime.classes import FILE
from greenjax.runtime.files import expanded, is_run, read_json

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME
FILES = ("config.json", PROCESSOR, FILE)  # beside the weights
EXPECTED = "the workdir of a run, a folder of transformers, a file that greenjax wrote, or OWNER/NAME on the hub"


def load_pretrained(name: str | Path, *, revision: str | None = None) -> Any:
    """The model of a run's workdir, of a folder of transformers, of a *.safetensors file of greenjax, or of the hub.

    A head makes it a `Classifier` with the names of its classes, or a `Detector`, a decoder a masked image model;
    without either it is a `Classifier` that has features and no logits. `model.config` has the size, the mean and the
    deviation of its images. OWNER/NAME, where no such path exists, is downloaded from the hub of Hugging Face, at a
    `revision`, or comes from the library's cache. A log line names what was left out, and what transformers computes
    otherwise. Raises InputError for a place that does not say its model, and a model that greenjax has not.
    """
    path = folder_of(name, revision)
    if path.is_dir() and not weights_of(path):
        return load(path)
    there = recorded(str(path))
    if "model.name" not in there:
        _refuse(name, path)
    settings, _ = inherit({"task": "knn", "init": str(path), "data.source": "python"}, ())
    settings |= {key: there[key] for key in there if key in (*DECODER, *MASKS.values()) or key.startswith("detect.")}
    contents = read_weights(path)
    layout = contents.metadata.get("layout", LAYOUT)
    found = family_of(settings["model.name"]).layouts[layout]
    config = resolve(acceptable(settings | {"init": str(name)} | task_of(contents, found, settings)))
    model, report = read_torch(path, config, layout, contents=contents)
    for line in (*report.lines(), *_notes(path, contents), *map(str, _differing(found, config))):
        logging.warning("%s: %s", name, line)
    return model


def load_placed(place: str, step: int | None = None) -> tuple[Any, int | None]:
    """The model of a run, and the step of its checkpoint; or as `load_pretrained`, where there are no checkpoints."""
    if is_run(expanded(place)):
        return load_run(place, step)
    if step is not None:
        raise InputError(f"step is {step}: expected none, as {place!r} is no run")
    return load_pretrained(place), None


def folder_of(name: str | Path, revision: str | None = None) -> Path:
    """The path itself, or that of the hub's files in the cache. Raises InputError where there is neither."""
    path = expanded(name)
    if path.exists() or not HUB.fullmatch(str(name)):
        if not path.exists():
            raise InputError(f"pretrained {str(name)!r}: no such file or folder: expected {EXPECTED}")
        if revision is not None:
            raise InputError(f"revision is {revision!r}: expected none, as {str(name)!r} is a path")
        return path
    missing = f"pretrained {str(name)!r}: no such file or folder, and no package that asks the hub for it"
    hub = installed("huggingface_hub", "greenjax[huggingface]", missing)
    try:
        for weights in (IN_FOLDER[:2], IN_FOLDER[2:]):  # a repository may have both kinds
            shards = f"{Path(weights[0]).stem}-*{Path(weights[0]).suffix}"
            found = Path(hub.snapshot_download(str(name), revision=revision, allow_patterns=[*FILES, *weights, shards]))
            if weights_of(found):
                return found
    except Exception as error:  # the HTTP client under the hub's library has errors of its own
        what = f"pretrained {str(name)!r}: no such file or folder, and the hub does not give it"
        raise InputError(f"{what}: {in_a_line(error)}") from error
    raise InputError(f"pretrained {str(name)!r}: the hub has no {' or '.join(IN_FOLDER)} there")


def task_of(contents: Contents, layout: Layout, settings: dict[str, Any]) -> dict[str, Any]:
    """The task, and what goes with it, whose model has all parts in a file."""
    if layout.detector and head_size(contents, [layout], detector=True):
        return {"task": "detect", "steps": 1}
    if layout.head and head_size(contents, [layout], detector=False):
        return {"task": "eval"}
    names = [f".{name}" for tensors in contents.containers.values() for name in tensors]
    for method, table in layout.decoders.items():
        known = method == "simmim" or "decoder.dim" in settings  # no tensor has the number of a decoder's heads
        if known and any(name.endswith(f".{table[0].theirs}.weight") for name in names):
            return {"task": "pretrain", "method": method, "steps": 1}
    return {"task": "knn"}


def _notes(path: Path, contents: Contents) -> list[str]:
    """How greenjax differs from transformers, for a folder that greenjax did not write."""
    if contents.metadata or not (path / "config.json").is_file():
        return []
    return described(path, read_json(path / "config.json", dict, EXPECTED)).notes


def _differing(layout: Layout, config: Any) -> list[Any]:
    return [fault for fault in layout.faults(config) if fault.kind == "differs"]


def _refuse(name: str | Path, path: Path) -> None:
    """Raises InputError for weights that do not say which model they are of."""
    config = path / "config.json"
    if path.is_dir() and config.is_file():
        kind, known = read_json(config, dict, EXPECTED).get("model_type"), " or ".join(families())
        raise InputError(f"pretrained {str(name)!r}: model_type is {kind!r} in config.json: expected {known}")
    call = "greenjax.load_torch(path, config, layout) takes files whose model a config says"
    raise InputError(f"pretrained {str(name)!r} does not say its model: expected {EXPECTED}; {call}")
