"""The run's side of the worker processes that make batches: starts, feeds, watches and ends them.

Workers share the arrays of `make`, which they only read. Each has a socket to the run: batches come out, and a credit
goes in for each batch taken. When either side dies, the other reads an end-of-file at once. A batch is written to an
anonymous file, and a small message with the file's descriptor goes through the socket, so that neither side waits for
the rest of a large message.
"""

import contextlib
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import cloudpickle
from absl import logging

from greenjax.data.worker_process import LEFT_TO_THE_RUN, MESSAGE, anonymous_file, read_apart, write_apart
from greenjax.errors import InputError, RunError

LOOK_EVERY = 1.0  # seconds between two looks for a death that closes no socket
SAY_AFTER = 60.0  # seconds of waiting for one batch
GONE_WITHIN = 5.0  # seconds that a killed process may take to end


class WorkerDied(RunError):
    """A worker process ended unasked; the message is one line that says which one and how."""

    resumable = True


class WorkerError(RuntimeError):
    """A worker raised an error; the message has its traceback."""


@dataclass
class _Worker:
    """A worker as the run sees it."""

    name: str
    process: subprocess.Popen
    link: socket.socket
    made: deque["_Message"] = field(default_factory=deque)
    failed: bool = False


class WorkerPool(Iterator[Any]):
    """make(first), make(first + 1), ... in order. `workers` processes, numbered 1 to `workers`, make them in turn.

    `make` must be picklable, and its result depend on its argument alone; a class or function of the running script is
    sent by value, its arrays are in memory once for all workers. The arrays of a batch are not copied: each batch has
    memory of its own, which lives as long as one of its arrays and takes one file descriptor of the process.

    `next` raises the error of a worker in place of its batch: InputError and RemoteError as they were, others as
    WorkerError; and WorkerDied as soon as any worker is dead. The processes end with `close()`, with the pool, or with
    the run, however it ends.
    """

    def __init__(self, make: Callable[[int], Any], first: int, workers: int):
        self._workers: list[_Worker] = []
        self._next = 0  # the worker whose batch comes next
        self._selector = selectors.DefaultSelector()
        self._end = weakref.finalize(self, _end_all, self._workers)  # at exit too
        _POOLS.add(self)
        with anonymous_file() as source:
            begin = write_apart(make, source, cloudpickle.dumps)
            for number in range(workers):
                worker = _start(number, workers, first, source.fileno(), begin)
                self._workers.append(worker)
                self._selector.register(worker.link, selectors.EVENT_READ, worker)

    def __next__(self) -> Any:
        if not self._workers:
            raise StopIteration
        self.look()
        worker, since = self._workers[self._next], time.monotonic()
        while not worker.made:
            self._receive(LOOK_EVERY)
            if time.monotonic() - since > SAY_AFTER:
                logging.warning("waiting for a batch of %s", worker.name)
                since = time.monotonic()
        made = worker.made.popleft()
        self._next = (self._next + 1) % len(self._workers)
        if made.failed:
            self.close()
        else:
            with contextlib.suppress(OSError):  # the worker may be dead: its last messages are still received
                worker.link.send(b"+")
        return made.opened(worker.name)

    def look(self) -> None:
        """Raises WorkerDied where one of the processes is dead."""
        self._receive(0)

    def close(self) -> None:
        """Ends the processes at once; the arrays of batches stay as they are."""
        self._end()
        self._selector.close()

    def _receive(self, seconds: float | int) -> None:
        """Takes the messages that have come, or waits up to `seconds` for one. Ends with WorkerDied at a death."""
        ready = self._selector.select(seconds) if self._workers else []
        for key, _ in ready:
            worker: _Worker = key.data
            message = _received(worker)
            if message is None:
                self._end_by(worker)
            worker.made.append(message)
            if message.failed:  # the process ends now; its error is raised when its turn comes
                worker.failed = True
                self._selector.unregister(worker.link)
        if not ready:  # a process that a worker started may hold its socket open
            dead = [each for each in self._workers if not each.failed and each.process.poll() is not None]
            if dead and not self._selector.select(0):  # no message came since the first select
                self._end_by(dead[0])

    def _end_by(self, worker: _Worker) -> NoReturn:
        """Closes the pool because of the death of a worker."""
        error = _death(worker)
        self.close()
        raise error


_POOLS: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


def look_after_workers() -> None:
    """Raises WorkerDied where a worker of any pool is dead: for long work between two batches, such as evaluation."""
    for pool in tuple(_POOLS):
        pool.look()


def _start(number: int, workers: int, first: int, source: int, place: int) -> _Worker:
    """Starts a process without the main module and the standard input of the running script."""
    ours, theirs = socket.socketpair()
    with theirs:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        begin = f"spawn_main({theirs.fileno()}, {source}, {place}, {first + number}, {workers})"
        command = f"import sys; sys.path[:] = {path!r}; from greenjax.data.worker_process import spawn_main; {begin}"
        # The child inherits blocked signals, so that none ends it before it ignores them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_RUN)
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", command], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), source)
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return _Worker(f"data worker {number + 1} of {workers} (process {process.pid})", process, ours)


def _end_all(workers: list[_Worker]) -> None:
    """Kills the processes: they hold nothing that would be lost."""
    for worker in workers:
        worker.process.kill()
        worker.link.close()
    for worker in workers:
        try:
            worker.process.wait(GONE_WITHIN)
        except subprocess.TimeoutExpired:  # it waits in the kernel, for a disk or a network
            logging.warning("%s does not end: leaving it behind", worker.name)
    workers.clear()


def _received(worker: _Worker) -> "_Message | None":
    """The message in the socket of a worker; None at its end-of-file."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    try:
        message, descriptors, received, _ = socket.recv_fds(worker.link, MESSAGE.size, 1, flags)
    except OSError:
        message, descriptors, received = b"", [], 0
    if received & socket.MSG_CTRUNC:
        raise InputError("too many open files: every batch that is kept takes one; `ulimit -n` says how many may be")
    if len(message) < MESSAGE.size or not descriptors:
        return None
    begin, failed = MESSAGE.unpack(message)
    try:
        return _Message(mmap.mmap(descriptors[0], 0), begin, failed)
    finally:
        os.close(descriptors[0])


def _death(worker: _Worker) -> WorkerDied:
    try:
        code = worker.process.wait(GONE_WITHIN)  # its socket closes a moment before
    except subprocess.TimeoutExpired:
        return WorkerDied(f"{worker.name} closed its connection")
    if code >= 0:
        return WorkerDied(f"{worker.name} ended with exit code {code}")
    names = {each.value: each.name for each in signal.Signals}
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return WorkerDied(f"{worker.name} was killed by {names.get(-code, f'signal {-code}')}{hint}")


@dataclass
class _Message:
    """A batch, or the error of a worker: buffers, then from `begin` on their places and the pickle that uses them."""

    memory: mmap.mmap
    begin: int
    failed: bool

    def opened(self, sender: str) -> Any:
        """The batch. Raises the error of the worker."""
        found = read_apart(self.memory, self.begin)
        if not self.failed:
            return found
        of_user, text = found
        raise WorkerError(f"{sender}:\n{text}") if of_user is None else of_user(text)
