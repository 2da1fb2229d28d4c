"""The progress of a run: a bar that moves with every step on a terminal, lines of text in files and pipes."""

import math
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from greenjax.runtime.console import rich_console, say

SILENCE = 60  # seconds after which `Lines` says a line, whatever log.every is
REDRAW = 0.1  # seconds between two moves of the bar

Values = Mapping[str, Any]


class Lines:
    """A line of text for each line of metrics, for the first step, and after SILENCE."""

    def __init__(self, total: int, start: int):
        self._total, self._start, self._told = total, start, start
        self._clock, self._since = Clock(total), 0.0

    def phase(self, text: str) -> None:
        """Says what the run does now that is not a step."""
        if self._told in (self._start, self._total):  # others are short, or end with a line of their own
            say(f"{text} ...")

    def moved(self, step: int, values: Callable[[], Values]) -> None:
        """A step is done; `values()` gives its loss and speed where they are shown."""
        left = self._clock.left(step)
        silent = self._told == self._start or monotonic() - self._since >= SILENCE
        if step > self._told and silent:
            self._say(step, values(), left)

    def line(self, step: int, values: Values) -> None:
        """Shows the numbers of a line of metrics.jsonl."""
        self._say(step, values, self._clock.left(step) if trained(values) else "")

    def close(self) -> None:
        pass

    def _say(self, step: int, values: Values, left: str) -> None:
        say(f"step {step}/{self._total}  {described(values)}" + (f"  {left} left" if left else ""))
        self._told, self._since = max(self._told, step), monotonic()


class Bar:
    """A bar that moves, with the methods of Lines; other lines scroll by above it."""

    def __init__(self, total: int, start: int):
        self._total, self._clock = total, Clock(total)
        self._drawn, self._shown, self._text = -math.inf, start, ""  # when, which step and what it says
        columns = ("step {task.completed}/{task.total}", "{task.fields[text]}", "{task.fields[left]}")
        first, *others = (TextColumn(each, markup=False, table_column=Column(no_wrap=True)) for each in columns)
        # Where standard error is a file, its lines stay there.
        redirect = rich_console(stderr=True).is_terminal
        self._bar = Progress(first, BarColumn(bar_width=20), *others, console=rich_console(), redirect_stderr=redirect)
        self._task = self._bar.add_task("", total=total, completed=start, text="", left="")
        self._bar.start()

    def phase(self, text: str) -> None:
        self._bar.update(self._task, text=text, left="")

    def moved(self, step: int, values: Callable[[], Values]) -> None:
        left, now = self._clock.left(step), monotonic()
        if step > self._shown and now - self._drawn >= REDRAW:
            self._drawn = now
            self._move(step, values(), left)

    def line(self, step: int, values: Values) -> None:
        if trained(values):
            self._move(step, values, self._clock.left(step))
        else:
            say(f"step {step}/{self._total}  {described(values)}")

    def close(self) -> None:
        self.phase(self._text)  # what stays on the terminal
        self._bar.stop()

    def _move(self, step: int, values: Values, left: str) -> None:
        self._shown, self._text = step, described(values)
        self._bar.update(self._task, completed=step, text=self._text, left=f"{left} left" if left else "")


def make_display(total: int, start: int) -> Lines | Bar:
    """The display of a run of `total` steps that goes on after step `start`: a bar where it can move, else lines."""
    console = rich_console()
    moves = console.is_terminal and not console.is_dumb_terminal
    return Bar(total, start) if moves else Lines(total, start)


class Clock:
    """Estimates the time left by the pace since the first step of this process."""

    def __init__(self, total: int):
        self._total, self._first, self._since = total, 0, 0.0

    def left(self, step: int) -> str:
        """The time left after a step; nothing at the first step, as the time before it is mostly compilation."""
        now = monotonic()
        if not self._first:
            self._first, self._since = step, now
        if step <= self._first:
            return ""
        return duration((now - self._since) / (step - self._first) * (self._total - step))


def duration(seconds: float | int) -> str:
    """`45 s`, `3 min 12 s`, `7 h 05 min`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute:02} min"
    return f"{minute} min {second:02} s" if minute else f"{second} s"


def trained(values: Values) -> bool:
    """Are these numbers of training, rather than of a hook?"""
    return "images_per_second" in values


def described(values: Values) -> str:
    """The loss, the speed and the faults of training; all numbers of a hook."""
    if trained(values):
        wrong = {key: values[key] for key in ("skipped", "undecodable", "rollbacks") if values.get(key)}
        values = {"loss": values.get("loss", math.nan), "images/s": values["images_per_second"]} | wrong
    return "  ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: float | int) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
