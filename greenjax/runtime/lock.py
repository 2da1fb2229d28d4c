"""One writer a folder: a run, an evaluation or a conversion holds its folder from its start to its end.

The lock is an flock on FOLDER/.lock, which the kernel gives up when the process ends, however it ends. Two processes of
one machine never hold the same folder. Nor do processes of two machines, where their shared file system passes flock on
(NFS 4, NFS 3 with its lock service, Lustre mounted with flock, GPFS, CephFS). The file names the process that holds it.
Readers need no lock.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from absl import logging

from greenjax.errors import InputError
from greenjax.runtime.files import remove_empty

LOCK = ".lock"


@contextmanager
def held(folder: Path, flag: str) -> Iterator[None]:
    """Holds `folder`, which is made where it is missing. `flag` is the flag that names it.

    Raises InputError where another process holds the folder, or where it cannot be written.
    """
    made: list[Path] = []
    try:
        made += [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder, flag)
    except OSError as error:
        remove_empty(made)
        raise InputError(f"{flag} {str(folder)!r} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is locked: a process that waits for it looks again
        os.close(file)
        remove_empty(made)


def _locked(folder: Path, flag: str) -> int:
    """The descriptor of the lock file, locked and with a note of this process."""
    path = folder / LOCK
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on NFS
            os.close(file)
            raise InputError(f"{folder} is in use by {_holder(path)}: stop it, or use another {flag}") from None
        except OSError as error:
            logging.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)  # its holder has just removed it
    note = _read_note(path)
    if note.get("host", socket.gethostname()) != socket.gethostname():
        logging.warning("%s was left by %s without an end: if it still runs there, stop it", folder, _described(note))
    mine = {"process": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # on a full disk the lock holds without its note
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(mine).encode(), 0)
    return file


def _holder(path: Path) -> str:
    note = _read_note(path)
    if not note:
        return "another process"
    elsewhere = note["host"] != socket.gethostname()
    return _described(note) + (f" (if that machine is gone, remove {path})" if elsewhere else "")


def _described(note: dict[str, Any]) -> str:
    return f"process {note['process']} on host {note['host']}, started {note['started']}"


def _read_note(path: Path) -> dict[str, Any]:
    """The note of the process that holds the folder; {} while it is being written."""
    try:
        note = json.loads(path.read_text())
        return note if isinstance(note, dict) and note.keys() >= {"process", "host", "started"} else {}
    except (OSError, ValueError):
        return {}
