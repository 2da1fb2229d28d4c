"""The processes of a run: usually one, or one a machine. All compute; process 0 alone writes files and prints.

Three environment variables make a process one of several, the same way under every scheduler:

    JAX_COORDINATOR_ADDRESS=HOST:PORT    where process 0 listens: any free port of its machine
    JAX_NUM_PROCESSES=N
    JAX_PROCESS_ID=0 ... N - 1

Each process takes all devices of its machine, or the devices that JAX_LOCAL_DEVICE_IDS=0,1,... names.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from greenjax.errors import InputError
from greenjax.runtime.compile import compiling
from greenjax.runtime.console import complain, first_speaks

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
T = TypeVar("T")
HEARTBEAT = 30  # seconds after which a silent process counts as dead, and the others end


def connect() -> None:
    """Joins the other processes of the run, if there are any, and lets JAX find its devices.

    Raises InputError where only a part of the environment is set, no process can be reached, or there are no devices.
    """
    if jax.config.values["jax_disable_jit"]:
        raise InputError("JAX_DISABLE_JIT is set: expected 0, as greenjax compiles what it computes")
    _join()
    find_devices()


def find_devices() -> list[Any]:
    """The devices of all processes. Raises InputError where JAX finds none of the kind in JAX_PLATFORMS."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX knows the kind, and no device has it
        reason = str(error).partition(" (")[0].partition("\n")[0]
    asked = jax.config.values["jax_platforms"]
    try:
        jax.config.update("jax_platforms", None)
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
    except (RuntimeError, AssertionError):
        raise InputError(f"JAX finds no devices: {reason}") from None
    finally:
        jax.config.update("jax_platforms", asked)
    raise InputError(f"JAX_PLATFORMS is {asked!r}: expected what JAX finds here, {found}{reason and f'; {reason}'}")


def _join() -> None:
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if not given:
        return
    for name in (ADDRESS, COUNT, INDEX):
        if name not in given:
            raise InputError(f"{name} is not set: expected it beside {', '.join(given)}")
    count, index = (_number(name, given[name]) for name in (COUNT, INDEX))
    if not given[ADDRESS].rpartition(":")[2].isdigit():
        raise InputError(f"{ADDRESS} is {given[ADDRESS]!r}: expected HOST:PORT of process 0")
    if not 0 <= index < count:
        raise InputError(f"{INDEX} is {index}: expected 0 to {count - 1}, as {COUNT} is {count}")
    first_speaks()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from training/interrupt.py
    if not index and count > 1:
        complain(f"waiting at {given[ADDRESS]} for the other {count - 1} of {count} processes")
    try:
        jax.distributed.initialize(
            given[ADDRESS],
            count,
            index,
            cluster_detection_method="deactivate",  # by a scheduler's variables each process would take one device
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"process {index} of {count} cannot reach {ADDRESS} {given[ADDRESS]!r}: {reason}") from error


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise InputError(f"{name} is {text!r}: expected a whole number")
    return int(text)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def leads() -> bool:
    """Whether this is process 0, which writes for all."""
    return jax.process_index() == 0


def gathered(tree: Any) -> Any:
    """Each leaf as one whole array on the host: a device array, or the rows of all processes one after another."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(tree, tiled=True)


def on_first(action: Callable[[], T]) -> T | None:
    """Runs `action` on process 0 and returns its result there, None elsewhere. Its InputError is raised on all."""
    if jax.process_count() == 1:
        return action()
    found, error_text = None, ""
    if leads():
        try:
            found = action()
        except InputError as error:
            error_text = str(error)
    if refused := _texts(error_text)[0]:
        raise InputError(refused)
    return found


def agree(values: Mapping[str, Any]) -> None:
    """Raises InputError on every process where a value of `values` is not the same on all, naming the first.

    A key is the phrase that names a value in the error; "{}" in it stands for the value, which else follows the phrase.
    Values are of JSON's types.
    """
    if jax.process_count() == 1:
        return
    first, *others = (json.loads(text) for text in _texts(json.dumps(values)))
    for index, other in enumerate(others, 1):
        for key in first | other:
            if first.get(key) != other.get(key):
                phrase = (key if "{}" in key else key + " {}").replace("{}", str(other.get(key)))
                raise InputError(f"process {index} has {phrase}, process 0 has {first.get(key)}: expected the same")


def _texts(mine: str) -> list[str]:
    """The texts of all processes, in their order."""
    data = np.frombuffer(mine.encode(), np.uint8)
    with jax.transfer_guard("allow"):
        lengths = multihost_utils.process_allgather(np.array([data.size], np.int32)).ravel().tolist()
        padded = np.pad(data, (0, max(*lengths, 1) - data.size))
        rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(np.asarray(rows), lengths)]


def end(message: str) -> NoReturn:
    """Ends this process with the message and exit code 1.

    At once where an ordinary exit would wait: for the other processes, which wait for this one, or for a compilation.
    """
    if not (jax.distributed.is_initialized() or compiling()):
        sys.exit(message)
    complain(message)
    _end_now()


def end_if_several(error: Exception) -> None:
    """Prints the traceback of a defect and ends one of several processes; returns in a process that is alone."""
    if jax.distributed.is_initialized():
        traceback.print_exception(error)
        _end_now()


def _end_now() -> NoReturn:
    sys.stderr.flush()
    os._exit(1)
