"""What a compiled program follows from, beside what it computes: code, libraries, settings, devices; and hashes."""

import hashlib
import os
import platform
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax

from greenjax.processes import cores

LIBRARIES = ("jax", "nvidia", "flax", "optax", "numpy", "einops", "ml_dtypes")  # whose names begin so: they compile
HARMLESS = "cache|transfer_guard"  # in names of JAX's settings that no program follows from


def surroundings() -> tuple:
    """What decides how a program is traced and compiled, beside what it is made of."""
    settings = [(name, value) for name, value in sorted(jax.config.values.items()) if not re.search(HARMLESS, name)]
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC")]
    machine = (platform.python_version(), platform.machine(), _instructions(), cores())
    devices = [(device.id, device.device_kind, device.client.platform_version) for device in jax.devices()]
    return _libraries(), machine, devices, settings, flags


@cache
def _libraries() -> list[str]:
    """With their versions."""
    installed = (path.name for folder in sys.path for path in Path(folder).glob("*.dist-info"))
    return sorted(name for name in installed if name.startswith(LIBRARIES))


@cache
def _instructions() -> str:
    """What the processor can do: programs for a CPU use it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def of(*parts: Any) -> str:
    """A hash of what the parts print."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def code() -> str:
    """Of this package, as it stands on the disk."""
    package = Path(__file__).parent
    return of([(path.relative_to(package), path.read_bytes()) for path in sorted(package.rglob("*.py"))])


CODE = code()  # before most of it is imported
