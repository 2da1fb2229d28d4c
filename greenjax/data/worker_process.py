"""A worker process: makes batches ahead of the run and sends them."""

import ctypes
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, BinaryIO

import cv2
from absl import logging

from greenjax.data.remote import RemoteError
from greenjax.errors import InputError

AHEAD = 2  # batches that a worker makes before one is taken
ALIGNED = 64  # bytes: on a CPU, JAX copies arrays that begin at no multiple of it
MESSAGE = struct.Struct("<Q?")  # where in the file the pickle begins, and whether it is an error
LEFT_TO_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a terminal signals all processes of a run at once
OF_USER = (InputError, RemoteError)  # errors that the run raises as they are
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def spawn_main(link: int, source: int, begin: int, first: int, every: int) -> None:
    """Makes batches `first`, `first` + `every`, ... until the run ends the process.

    `link` and `source` are descriptors: the worker's end of the socket, and the file with the function that makes
    them, written by `write_apart`, which returned `begin`.
    """
    for number in LEFT_TO_THE_RUN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_RUN)
    run, credits = socket.socket(fileno=link), threading.Semaphore(AHEAD)
    sys.excepthook = lambda kind, error, trace: fail(run, kind, error, trace)
    threading.Thread(target=take_credits, args=(run, credits), daemon=True).start()
    cv2.setNumThreads(0)  # the workers are the parallelism
    keep_freed_memory()
    import_grain_alone()
    make = read_apart(mmap.mmap(source, 0, access=mmap.ACCESS_COPY), begin)  # all workers share pages they only read
    os.close(source)
    for step in count(first, every):
        credits.acquire()
        send(run, make(step))


def take_credits(run: socket.socket, credits: threading.Semaphore) -> None:
    try:
        while run.recv(1):
            credits.release()
    finally:
        os._exit(1)  # the run has ended; the main thread may be in the middle of a batch


def send(run: socket.socket, value: Any, failed: bool = False) -> None:
    with anonymous_file() as file:
        begin = write_apart(value, file)
        socket.send_fds(run, [MESSAGE.pack(begin, failed)], [file.fileno()])


def write_apart(value: Any, file: BinaryIO, dumps: Callable[..., bytes] = pickle.dumps) -> int:
    """Writes the arrays of a value as they are, then their places and the pickle of the rest; returns where that is."""
    buffers: list[pickle.PickleBuffer] = []
    pickled, places, end = dumps(value, protocol=5, buffer_callback=buffers.append), [], 0
    for buffer in buffers:
        with buffer.raw() as content:
            begin = -(-end // ALIGNED) * ALIGNED
            end = begin + content.nbytes
            file.seek(begin)
            file.write(content)
        places.append((begin, end))
    file.seek(end)
    file.write(pickle.dumps((places, pickled)))
    file.flush()
    return end


def read_apart(memory: mmap.mmap, begin: int) -> Any:
    """The value that `write_apart` wrote; its arrays stay in `memory`."""
    content = memoryview(memory)
    places, pickled = pickle.loads(content[begin:])
    return pickle.loads(pickled, buffers=[content[start:stop] for start, stop in places])


def fail(run: socket.socket, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Sends an error to the run; nothing is printed here."""
    of_user = next((known for known in OF_USER if isinstance(error, known)), None)
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip() if of_user is None else str(error)
    send(run, (of_user, text), failed=True)


def import_grain_alone() -> None:
    """Imports Grain, for the order of images, without JAX and Orbax, which the order does not need.

    On two busy cores this takes 0.2 s in place of 1.5 to 2 s, and 75 MB a worker in place of 211 MB.
    """
    alone, verbosity = ("jax", "orbax"), logging.get_verbosity()
    sys.modules.update(dict.fromkeys(alone))  # type: ignore[arg-type]  # an import of None raises ImportError
    logging.set_verbosity(logging.ERROR)
    import grain.experimental  # noqa: F401

    logging.set_verbosity(verbosity)
    for name in alone:
        del sys.modules[name]


def keep_freed_memory() -> None:
    """Makes glibc keep up to 64 MB of freed memory for the next image. Other C libraries are left as they are.

    Otherwise glibc returns an image's memory to the system at once, which clears it page by page for the next image: a
    quarter of the time of decoding.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 64 << 20)


def anonymous_file() -> BinaryIO:
    """A file in memory where the system has them: they do not count to /dev/shm, which containers keep small."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("greenjax"), "w+b")
    return tempfile.TemporaryFile()
