"""What a run leaves to read: metrics.jsonl, TensorBoard's events; config.json and versions.json."""

import importlib.metadata
import json
import math
import platform
import shlex
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.config import KEYS, flatten, read_recorded
from greenjax.errors import InputError
from greenjax.runtime.files import expanded, read_json, read_metrics, replace_text
from greenjax.runtime.processes import leads
from greenjax.training.growing import Board, GrowingFile
from greenjax.training.progress import Values, make_display

# These may change between the parts of a run: weights, masks, sample order and schedule do not hang on them.
HARMLESS = ("log.", "mesh.", "knn.", "monitor", "data.workers", "data.path", "data.eval", "data.monitor")
HARMLESS += ("model.attention", "model.remat", "optim.max_skipped", "guard.")

# What to do about a damaged config.json or data.json.
ANEW = "it cannot be compared with this command; remove it, and the run goes on as this command says"

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "torch",
)


def record_config(
    workdir: str | Path, config: ConfigDict, images: int, resuming: bool, listing: str | None = None
) -> None:
    """Writes config.json, versions.json and data.json, or refuses to resume under other settings.

    `images` is the length of the training split and `listing` its digest: with other images a step would be another.
    Raises InputError, one line, naming what differs from the files; a run begun anew overwrites them.
    """
    workdir = Path(workdir)
    path, data = workdir / "config.json", workdir / "data.json"
    if resuming and path.exists():
        _refuse_other(path, config)
    before = read_json(data, dict, ANEW) if resuming and data.exists() else {}
    if before.get("images", images) != images:
        raise InputError(
            f"{workdir} was begun with {before['images']} training images, now there are {images}: expected the same"
        )
    if listing and before.get("listing") not in (None, listing):
        raise InputError(
            f"{workdir} was begun with other training images, as many, but of other names or in another order: expected"
            f" the same; {_init(workdir)} with a new --workdir starts from its weights"
        )
    if not leads():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir {str(workdir)!r} cannot be made: {error.strerror}") from error
    replace_text(path, json.dumps(config.to_dict(), indent=2) + "\n")
    replace_text(data, json.dumps({"images": images, "listing": listing}) + "\n")
    replace_text(workdir / "versions.json", json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """The libraries and the machine that made the results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = jax.devices()
    return found | {"greenjax": __version__, "devices": f"{len(devices)} x {devices[0].device_kind}"}


class MetricsWriter:
    """Metrics of one run from step `start` (0: from its beginning) to step `total`; a context manager.

    What was written after step `start` belongs to a part that is going to be repeated, and is dropped. Process 0 alone
    writes and shows anything; the methods of the others do nothing.
    """

    def __init__(self, workdir: str | Path, total: int, start: int = 0):
        self._writes, self._start = leads(), start
        if not self._writes:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_after(workdir, start)
        self._lines = GrowingFile(workdir / "metrics.jsonl")
        self._board = Board(workdir / "tensorboard", purge_step=start + 1 if start else 0)
        self._display = make_display(total, start)

    def phase(self, text: str) -> None:
        """What the run does now, for the reader; until the next step."""
        if self._writes:
            self._display.phase(text)

    def moved(self, step: int, values: Callable[[], Values]) -> None:
        """A step is done: moves the progress bar. `values`: its loss and speed, asked for where they are shown."""
        if self._writes and step > self._start:
            self._display.moved(step, values)

    def write(self, step: int, values: Values) -> None:
        """One line of numbers; those with `images_per_second` move the progress bar."""
        if not self._writes:
            return
        numbers = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
        # JSON knows no NaN.
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._lines.add(json.dumps({"step": step} | finite).encode() + b"\n")
        self._board.scalars(step, numbers)
        self._display.line(step, numbers)

    def image(self, step: int, picture: Path) -> None:
        """A picture for TensorBoard, by the path of a PNG."""
        if self._writes:
            self._board.image(step, "reconstructions", picture)

    def close(self) -> None:
        if self._writes:
            self._display.close()
            self._board.close()
            self._lines.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hours_so_far(workdir: Path) -> float:
    """Hours of all devices that the lines of a run tell of, those of steps that are going to be done again too."""
    return max((line.get("device_hours", 0.0) for line in read_metrics(workdir)), default=0.0)


def _drop_after(workdir: Path, start: int) -> None:
    """Drops lines of steps after `start` (0: all lines) and a last line that was cut short."""
    path = workdir / "metrics.jsonl"
    if path.exists():
        kept = [line for line in read_metrics(workdir) if start and line["step"] <= start]
        replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def _init(workdir: Path) -> str:
    """The flag that starts from the weights of a run, as a shell takes it."""
    return shlex.quote(f"--config.init={workdir}")


def _refuse_other(path: Path, config: ConfigDict) -> None:
    here = _as_json(flatten(config))
    defaults = _as_json({key: entry.default for key, entry in KEYS.items()})
    there = defaults | read_recorded(path, ANEW)  # defaults: keys that are younger than the run
    keys = [key for key in there if not key.startswith(HARMLESS) and there[key] != here.get(key)]
    differing = [f"{key} is {there[key]!r} there, {here.get(key)!r} here" for key in keys]
    if keys and config.init != "none" and there["init"] == config.init and not expanded(config.init).exists():
        typed = shlex.join(f"--config.{key}={there[key]}" for key in keys)
        raise InputError(
            f"init {config.init!r} is not there, and {path.parent} has settings from it: expected it where it was, or"
            f" the same command with {typed}"
        )
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(
            f"{path.parent} holds a run with other settings: {'; '.join(differing[:5])}{more}:"
            f" use another --workdir, with {_init(path.parent)} to start from these weights,"
            " or these settings as they are there"
        )
