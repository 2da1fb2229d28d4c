"""Standard output and error of a command: lines for the reader, warnings in one form, above any progress bar.

A run outlives its output. A line that cannot be written, to a closed pipe, a full disk or a terminal that is gone, is
dropped: results are in files. Nothing here imports JAX, so that a command can print before JAX is imported.
"""

import atexit
import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from absl import logging as absl_logging

if TYPE_CHECKING:
    from rich.console import Console

GONE = (errno.EPIPE, errno.EIO)


_silent = False


def first_speaks() -> None:
    """From here on `say` is silent in all processes of a run but the first, which the environment names."""
    global _silent
    _silent = bool(os.environ.get("JAX_PROCESS_ID", "").strip("0"))


def say(*lines: str) -> None:
    """Lines on standard output."""
    for line in () if _silent else lines:
        _line("stdout", line)


def warn(text: str) -> None:
    """A line on standard error: `warning: text`."""
    _line("stderr", f"warning: {text}")


@cache
def warn_once(text: str) -> None:
    """Logs a warning once a process, however often it is due, such as once a split of one folder."""
    absl_logging.warning("%s", text)


def complain(text: str) -> None:
    """A line on standard error that says why a command ends."""
    _line("stderr", text)


def rich_console(stderr: bool = False) -> "Console":
    """rich's console, on outputs that may be lost like any other."""
    from rich.console import Console  # 50 ms, and not every command draws

    return Console(file=_OUTPUTS["stderr" if stderr else "stdout"])  # type: ignore[arg-type]


@contextmanager
def progress_bar(name: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, `done` of `total` long; yields a function that makes it longer, from any thread."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=rich_console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def set_up() -> None:
    """Gives the warnings of this package, its libraries and Python one form. For commands, not for libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax and Grain log every file they touch
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, absl_logging.ABSLHandler | _Handler):
            root.removeHandler(handler)
    root.addHandler(_Handler(logging.WARNING))
    warnings.showwarning = _show_warning


class _Output(io.TextIOBase):
    """Standard output or error, whichever stream has that name now. Writing never raises."""

    def __init__(self, name: str):
        self._name, self._lost = name, False

    def write(self, text: str) -> int:
        stream = self._stream()
        if stream is None or stream.closed:
            return len(text)
        try:
            stream.write(text)
            stream.flush()
        except UnicodeEncodeError:  # a file's name, say, on a terminal that has ASCII only
            self.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        except OSError as error:
            self._lose(stream, error)
        return len(text)

    def isatty(self) -> bool:
        stream = self._stream()
        return stream is not None and not stream.closed and stream.isatty()

    def fileno(self) -> int:
        stream = self._stream()
        if stream is None:
            raise io.UnsupportedOperation("fileno")
        return stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def _stream(self) -> Any:
        """The stream; None in a process started without it. A progress bar puts a proxy there, which writes here."""
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def _lose(self, stream: Any, error: OSError) -> None:
        """Warns once. A full disk may have room again later; a closed pipe or terminal does not come back."""
        if error.errno in GONE:
            _to_nowhere(stream)
        if not self._lost:
            self._lost = True
            atexit.register(_to_nowhere, stream)  # the interpreter's last flush would change the exit code
            name = {"stdout": "standard output", "stderr": "standard error"}[self._name]
            warn(f"{name} cannot be written ({error.strerror}): the command goes on without it")


_OUTPUTS = {name: _Output(name) for name in ("stdout", "stderr")}


def _line(name: str, text: str) -> None:
    stream = getattr(sys, name)
    output = stream if hasattr(stream, "rich_proxied_file") else _OUTPUTS[name]
    output.write(text + "\n")


def _to_nowhere(stream: Any) -> None:
    """Sends the stream's descriptor to /dev/null, for C libraries, too: later writes are lost without an error."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # closed, or a stream without a descriptor
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Handler(logging.Handler):
    """Log records as lines."""

    def emit(self, record: logging.LogRecord) -> None:
        _line("stderr", f"{record.levelname.lower()}: {self.format(record)}")


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """Takes the place of warnings.showwarning."""
    del category
    warn(f"{message} ({filename.rpartition('site-packages/')[2]}:{lineno})")
