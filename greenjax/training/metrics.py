"""Metrics of a run: lines of metrics.jsonl, trackers, and the display."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from greenjax.runtime.files import read_metrics, replace_text
from greenjax.runtime.processes import leads
from greenjax.training.growing import GrowingFile
from greenjax.training.progress import Values, make_display
from greenjax.training.trackers import Tracked, open_trackers


class MetricsWriter(AbstractContextManager):
    """Writes and shows the metrics of a run from step `start` (0: from its beginning) to step `total`.

    Lines of steps after `start` are dropped: these steps are repeated. Process 0 alone writes and shows anything.
    With `again` only the line of training of `start` is kept: the others are written again.
    `to` names the trackers, which are also told the flat `settings`.
    """

    def __init__(
        self,
        workdir: Path,
        total: int,
        start: int = 0,
        to: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] = MappingProxyType({}),
        again: bool = False,
    ):
        self.hours_before = 0.0  # of all devices, spent on this run before; repeated steps included
        self._writes, self._start = leads(), start
        if not self._writes:
            return
        path, lines = workdir / "metrics.jsonl", read_metrics(workdir)
        if start:
            self.hours_before = max((line.get("device_hours", 0.0) for line in lines), default=0.0)
        if path.exists():  # also drops a last line that was cut short
            kept = [
                line for line in lines if start and line["step"] < start + (not again or "images_per_second" in line)
            ]
            replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = GrowingFile(path)
        self._trackers = open_trackers(to, Tracked(workdir, start, settings))
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
        for tracker in self._trackers:
            tracker.scalars(step, numbers)
        self._display.line(step, numbers)

    def image(self, step: int, picture: Path) -> None:
        """Gives a PNG to the trackers, under the name of its folder."""
        for tracker in self._trackers if self._writes else ():
            tracker.image(step, picture.parent.name, picture)

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if self._writes:
            self._display.close()
            for tracker in self._trackers:
                tracker.close(done=error is None)
            self._lines.close()
