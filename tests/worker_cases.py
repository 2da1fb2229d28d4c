"""What tests give to data workers, and `children`, which finds these. Workers import this module: it imports no JAX."""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from greenjax.data.encoded import DecodeError
from greenjax.errors import InputError


def constants(count):
    """Image i has the value i everywhere, which no crop or flip changes."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 6, 7, 1)).copy()


class Broken:
    """A source some of whose images cannot be decoded."""

    def __init__(self, images, broken):
        self.images, self.broken = images, broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise DecodeError(f"file{index}.jpg cannot be decoded as an image")
        return self.images[index]


@dataclass
class Strange:
    """A source some of whose images raise what nobody has foreseen."""

    images: np.ndarray
    strange: frozenset[int]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return [][1] if index in self.strange else self.images[index]

    def name_of(self, index):
        return f"file{index}.jpg"


@dataclass(frozen=True)
class Big:
    """Batches of some megabytes that tell their step; what else a worker does at some step."""

    strange: dict[int, str] = field(default_factory=dict)
    size: int = 1 << 22
    padding: str = ""
    on_disk: bool = False  # as where the system has no files in memory

    def __call__(self, step):
        if self.on_disk:
            vars(os).pop("memfd_create", None)
        match self.strange.get(step):
            case "exit":
                os._exit(3)
            case "input":
                raise InputError(f"data.path is 'x' at step {step}")
            case "error":
                raise KeyError(step)
            case "hold":  # a process of the worker's own keeps the socket open beyond the worker's death
                if not os.fork():
                    time.sleep(60)
                    os._exit(0)
                os._exit(4)
        return {"images": np.full(self.size, step % 251, np.uint8), "none": None, "odd": np.arange(step % 7)}


def children(pid=None):
    """The data workers of a process, found as a script from outside would find them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == (pid or os.getpid()) and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


@dataclass(frozen=True)
class Anonymous:
    """Reads a whole array, counts in its first place, and tells by how many bytes the worker's own memory grew."""

    array: np.ndarray

    def __call__(self, step):
        before, total = own_memory(), int(self.array[1:].sum()) + 1
        found = own_memory() - before, total, int(self.array[0])
        self.array[0] += 1
        return found


def own_memory():
    """The bytes of this process's memory that are in no file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])
