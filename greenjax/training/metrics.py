"""Metrics of a run: lines of metrics.jsonl, events for TensorBoard, and the display."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from greenjax.runtime.files import read_metrics, replace_text
from greenjax.runtime.processes import leads
from greenjax.training.growing import Board, GrowingFile
from greenjax.training.progress import Values, make_display


class MetricsWriter(AbstractContextManager):
    """Writes and shows the metrics of a run from step `start` (0: from its beginning) to step `total`.

    Lines of steps after `start` are dropped: these steps are repeated. Process 0 alone writes and shows anything.
    """

    def __init__(self, workdir: Path, total: int, start: int = 0):
        self.hours_before = 0.0  # of all devices, spent on this run before; repeated steps included
        self._writes, self._start = leads(), start
        if not self._writes:
            return
        path, lines = workdir / "metrics.jsonl", read_metrics(workdir)
        if start:
            self.hours_before = max((line.get("device_hours", 0.0) for line in lines), default=0.0)
        if path.exists():  # also drops a last line that was cut short
            kept = [line for line in lines if start and line["step"] <= start]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = GrowingFile(path)
        self._board = Board(workdir / "tensorboard", purge_step=start + 1 if start else 0)
        self._display = make_display(total, start)

    def phase(self, text: str) -> None:
        """Shows what the run does now, until the next step."""
        if self._writes:
            self._display.phase(text)

    def moved(self, step: int, values: Callable[[], Values]) -> None:
        """Moves the display to a step that is done; `values()` gives the loss and the speed where it shows them."""
        if self._writes and step > self._start:
            self._display.moved(step, values)

    def write(self, step: int, values: Values) -> None:
        """Writes one line of numbers; a line with `images_per_second` is one of training."""
        if not self._writes:
            return
        numbers = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
        # JSON knows no NaN.
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        self._lines.add(json.dumps({"step": step} | finite).encode() + b"\n")
        self._board.scalars(step, numbers)
        self._display.line(step, numbers)

    def image(self, step: int, picture: Path) -> None:
        """Adds a PNG to TensorBoard, under the name of its folder."""
        if self._writes:
            self._board.image(step, picture.parent.name, picture)

    def __exit__(self, *_: Any) -> None:
        if self._writes:
            self._display.close()
            self._board.close()
            self._lines.close()
