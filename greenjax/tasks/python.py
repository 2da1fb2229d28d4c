"""Tasks as Python functions, with images of the caller's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax import tasks
from greenjax.config import flatten, resolve
from greenjax.data.sources import unread
from greenjax.data.sources.python import given
from greenjax.errors import InputError
from greenjax.training.state import State


def pretrain(config: ConfigDict, workdir: str | Path, *, source: Any = None, held_out: Any = None) -> State:
    """Pre-trains as `python -m greenjax.main` does, on the images of `config.data` or of the sequence `source`.

    An item of a sequence is pixels [h, w] or [h, w, c], a PIL image, or the bytes of an image file. Images for the
    held-out loss come from `held_out`; without it there is none. Raises InputError as the command ends.
    """
    return _done(("pretrain",), config, workdir, source, held_out)


def finetune(config: ConfigDict, workdir: str | Path, *, source: Any = None, held_out: Any = None) -> State:
    """Trains a classifier, task "finetune" or "linear"; otherwise as `pretrain`.

    The sequences have attributes `labels`, a whole number an image, and `classes`, the names of the classes.
    """
    return _done(("finetune", "linear"), config, workdir, source, held_out)


def _done(expected: tuple[str, ...], config: ConfigDict, workdir: str | Path, source: Any, held_out: Any) -> State:
    settings: Mapping[str, Any] = flatten(config)
    if settings["task"] not in expected:
        raise InputError(f"task is {settings['task']!r}: expected {' or '.join(map(repr, expected))}")
    if source is None and held_out is not None:
        raise InputError("held_out is given without source: expected both, or data.eval_split in the config")
    if source is None:
        return tasks.run(resolve(settings), Path(workdir))
    own = {"data.source": "python", "data.name": "", "data.split": "source", "data.eval_split": ""}
    images = {"source": source}
    if held_out is not None:
        own["data.eval_split"], images["held_out"] = "held_out", held_out
    config = resolve(settings | unread("python") | own)
    with given(**images):
        return tasks.run(config, Path(workdir))
