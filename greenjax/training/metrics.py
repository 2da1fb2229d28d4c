"""What a person sees of a run: metrics.jsonl, TensorBoard, a progress line; config.json and versions.json."""

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn

from greenjax import __version__
from greenjax.atomic import replace_text
from greenjax.config import KEYS, flatten
from greenjax.errors import InputError
from greenjax.evaluation import read_metrics
from greenjax.processes import leads

# These may change between the parts of a run: weights, masks, sample order and schedule do not hang on them.
HARMLESS = ("log.", "mesh.", "knn.", "monitor", "data.workers", "data.path", "data.eval")
HARMLESS += ("model.attention", "model.remat", "optim.max_skipped", "guard.")

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


def record_config(workdir: str | Path, config: ConfigDict, images: int, resuming: bool) -> None:
    """Writes config.json, versions.json and data.json, or refuses to resume under other settings.

    `images` is the length of the training split: of another length, order and schedule would be others. Raises
    InputError, one line, naming what differs from the files; a run begun anew overwrites them.
    """
    workdir = Path(workdir)
    path, data = workdir / "config.json", workdir / "data.json"
    if resuming and path.exists():
        _refuse_other(path, config)
    if resuming and data.exists() and (before := json.loads(data.read_text())["images"]) != images:
        raise InputError(
            f"{workdir} was begun with {before} training images, now there are {images}: expected the same"
        )
    if not leads():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir {str(workdir)!r} cannot be made: {error.strerror}") from error
    replace_text(path, json.dumps(config.to_dict(), indent=2) + "\n")
    replace_text(data, json.dumps({"images": images}) + "\n")
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

    What was written after step `start` belongs to a part that is going to be repeated, and is dropped.
    """

    def __init__(self, workdir: str | Path, total: int, start: int = 0):
        workdir = Path(workdir)
        self._writes = leads()
        self._clock = _Clock(total, start)
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_after(workdir, start)
        self._lines = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = _summary_writer()(str(workdir / "tensorboard"), purge_step=start + 1 if start else 0)
        self._progress: _Display = _Bar(total, start) if sys.stdout.isatty() else _Plain(total)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of numbers; those with `images_per_second` move the progress line."""
        if not self._writes:
            return
        numbers = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
        # JSON knows no NaN.
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        try:
            self._lines.write(json.dumps({"step": step} | finite) + "\n")
            self._lines.flush()
        except OSError as error:  # what was not written is tried again with the next line
            logging.warning("step %d: metrics cannot be written: %s", step, error)
        for key, value in numbers.items():
            self._board.add_scalar(key, value, step)
        self._board.flush()
        self._progress.show(step, numbers, self._clock.left(step))

    def image(self, step: int, picture: str | Path | UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture for TensorBoard: the path of a PNG, or an array."""
        if not self._writes:
            return
        if not isinstance(picture, np.ndarray):
            with Image.open(picture) as opened:
                picture = np.asarray(opened.convert("RGB"))
        self._board.add_image("reconstructions", picture, step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        if self._writes:
            self._progress.close()
            self._board.close()
            self._lines.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _summary_writer() -> type:
    """tensorboardX's writer, without PyTorch, which it imports where it can: a second, and no number here needs it."""
    if "torch" in sys.modules:
        from tensorboardX import SummaryWriter
    else:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it raises ImportError
        try:
            from tensorboardX import SummaryWriter
        finally:
            del sys.modules["torch"]
    return SummaryWriter


class _Clock:
    """Time left, by the pace since the first line: what comes before it is mostly compilation."""

    def __init__(self, total: int, start: int):
        self._total, self._first, self._since = total, start, monotonic()
        self._warm = False

    def left(self, step: int) -> str:
        now, steps = monotonic(), step - self._first
        if steps <= 0:
            self._since = now  # what stands before the first step, such as a held-out loss
            return ""
        seconds = (now - self._since) / steps * (self._total - step)
        if not self._warm:
            self._first, self._since, self._warm = step, now, True
        return duration(seconds)


class _Display(Protocol):
    def show(self, step: int, values: Mapping[str, Any], left: str) -> None: ...
    def close(self) -> None: ...


class _Plain:
    """A line of text for each line of metrics: for files and pipes."""

    def __init__(self, total: int):
        self._total = total

    def show(self, step: int, values: Mapping[str, Any], left: str) -> None:
        rest = f"  {left} left" if left and "images_per_second" in values else ""
        print(f"step {step}/{self._total}  {_text(values)}{rest}", flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """One line that moves, for terminals; what is not about training scrolls by above it."""

    def __init__(self, total: int, start: int):
        columns = ("step {task.completed}/{task.total}", "{task.fields[text]}", "{task.fields[left]}")
        first, *others = (TextColumn(column) for column in columns)
        self._bar = Progress(first, BarColumn(bar_width=20), *others)
        self._task = self._bar.add_task("", total=total, completed=start, text="compiling", left="")
        self._bar.start()

    def show(self, step: int, values: Mapping[str, Any], left: str) -> None:
        if "images_per_second" in values:
            left = f"{left} left" if left else ""
            self._bar.update(self._task, completed=step, text=_text(values), left=left)
        else:
            self._bar.console.print(f"step {step}  {_text(values)}", highlight=False)

    def close(self) -> None:
        self._bar.stop()


def duration(seconds: float | int) -> str:
    """`45 s`, `3 min 12 s`, `7 h 05 min`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute:02} min"
    return f"{minute} min {second:02} s" if minute else f"{second} s"


def _text(values: Mapping[str, Any]) -> str:
    """The loss, the speed and what went wrong; of a line without a speed, everything."""
    if "images_per_second" in values:
        wrong = {key: values[key] for key in ("skipped", "undecodable", "rollbacks") if values.get(key)}
        values = {"loss": values.get("loss", math.nan), "images/s": values["images_per_second"]} | wrong
    return "  ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: float | int) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


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


def _refuse_other(path: Path, config: ConfigDict) -> None:
    here = _as_json(flatten(config))
    defaults = _as_json({key: entry.default for key, entry in KEYS.items()})
    there = defaults | flatten(json.loads(path.read_text()))  # defaults: keys that are younger than the run
    differing = [
        f"{key} is {there[key]!r} there, {here.get(key)!r} here"
        for key in there
        if not key.startswith(HARMLESS) and there[key] != here.get(key)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(
            f"{path.parent} holds a run with other settings: {'; '.join(differing[:5])}{more}:"
            " use another --workdir, or these settings as they are there"
        )
