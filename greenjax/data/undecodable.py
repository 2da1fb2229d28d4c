"""Images that cannot be used: a run names each of them once, whichever workers meet it."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from absl import logging

FILE = "undecodable.txt"  # in the workdir: one line an image, with its name, a tab and the reason
MOST_WARNINGS = 100  # of a run that writes the file


class Fault(NamedTuple):
    """The name of an image that cannot be used, and the reason."""

    name: str
    reason: str


class Remark(NamedTuple):
    """Something about an image that holds for many: a run says it once, of the first such image."""

    name: str
    what: str


class Undecodable:
    """The images of a run that cannot be used. A warning names each when it is first met."""

    def __init__(self, workdir: Path | None = None, *, resuming: bool = False, writes: bool = True):
        """With a workdir the images are listed in FILE there, and a resumed run knows the images in it.

        `writes`: this process writes for all.
        """
        self._path, self._writes, self._names = workdir and workdir / FILE, writes, set()
        self._remarks: set[str] = set()
        if self._path is None:
            return
        if resuming and self._path.exists():
            data = self._path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]  # a killed run may leave half a line
            if writes and len(whole) < len(data):
                os.truncate(self._path, len(whole))
            lines = whole.decode("utf-8", "replace").split("\n")[:-1]
            self._names = {line.partition("\t")[0] for line in lines}
        elif writes:
            self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._names)

    def add(self, faults: Iterable[Fault | Remark], remedy: str) -> None:
        """Warns of the images that are new; `remedy` says what happens in their place. Makes each remark once."""
        for fault in faults:
            name, reason = map(on_one_line, fault)
            if isinstance(fault, Remark):
                if reason not in self._remarks:
                    self._remarks.add(reason)
                    logging.warning("%s %s", name, reason)
                continue
            if name in self._names:
                continue
            self._names.add(name)
            if self._path is None or len(self) <= MOST_WARNINGS:
                logging.warning("%s; %s", f"{name}: {reason}" if reason else name, remedy)
            if self._path is not None:
                if len(self) == MOST_WARNINGS:
                    logging.warning("%d images cannot be used; %s alone names more", len(self), self._path)
                self._list(name, reason)

    def _list(self, name: str, reason: str) -> None:
        assert self._path is not None
        if not self._writes:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{name}\t{reason}\n")
        except OSError as error:
            logging.warning("%s cannot be written: %s", self._path, error.strerror)


def on_one_line(text: str) -> str:
    """The text with line breaks, control characters and bytes that are no UTF-8 escaped: file names may have them."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]", lambda found: repr(found[0])[1:-1], text)
