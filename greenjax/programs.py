"""Programs compiled in a thread from the shapes of what they take, and kept: a later run loads them without tracing.

JAX's own cache finds what XLA compiled by a program's text, for which the program has to be traced and lowered. Here a
link leads to it from what the text follows from: the code of this package, its libraries, configuration and devices.
"""

import hashlib
import os
import pickle
import platform
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.stages import Compiled, Lowered, Wrapped
from ml_collections import ConfigDict

from greenjax.cache import programs_folder
from greenjax.config import flatten
from greenjax.cost import calls_back, matmul_flops

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "einops", "ml-dtypes")  # they trace and compile
HARMLESS = "cache|transfer_guard"  # in names of JAX's settings that no program follows from
LARGEST = 2 << 30  # bytes of all kept programs; those that were not used for longest go first


class Ready(NamedTuple):
    """A program that can run."""

    compiled: Compiled
    flops: int  # of all matrix products, on all devices
    takes: str  # what it was compiled for: `Program.start`


class Program:
    """A jitted function for arguments of one kind: it can take no others.

    Once started, XLA compiles it in a thread, or loads what an earlier run kept, while the caller goes on. A call waits
    for that, and starts it where nobody has.
    """

    def __init__(self, jitted: Wrapped, name: str, config: ConfigDict, *others: Any):
        """`name`: which one of the configuration's programs it is; `others`: what it follows from beside that."""
        self._jitted, self._name, self._config, self._others = jitted, name, config, others
        self._ready: Future[Ready | None] | None = None

    def start(self, *shapes: Any) -> None:
        """`shapes`: those of the arguments, with shardings. Returns when the program is traced, or found."""
        leaves, tree = jax.tree.flatten(shapes)
        arguments = [(leaf.shape, leaf.dtype, leaf.sharding, _devices(leaf.sharding)) for leaf in leaves]
        self._shapes = shapes
        self._takes = _hash(tree, arguments, jax.sharding.get_abstract_mesh(), self._others)
        self._link = _link(self._name, self._config)
        if self._link in _foreseen:
            self._ready = _foreseen.pop(self._link)
        elif self._link and self._link.exists():
            self._ready = _in_a_thread(_load, self._link)
        else:
            self._compile()

    def wait(self) -> Ready:
        """Returns when it can run."""
        assert self._ready is not None
        ready = self._ready.result()
        if ready is None or ready.takes != self._takes:  # it cannot be loaded; it is for other arguments
            self._compile()
            ready = self._ready.result()
            assert ready is not None
        return ready

    def __call__(self, *arguments: Any) -> Any:
        if self._ready is None:
            self.start(*jax.tree.map(_shape, arguments))
        return self.wait().compiled(*arguments)

    @property
    def flops(self) -> int:
        """Those of all matrix products, on all devices."""
        return self.wait().flops

    def _compile(self) -> None:
        traced = self._jitted.trace(*self._shapes)
        lowered, flops = traced.lower(), matmul_flops(traced.jaxpr)
        if self._link is None or calls_back(traced.jaxpr):  # a function of Python's is in this process only
            self._ready = _in_a_thread(lambda: Ready(lowered.compile(), flops, self._takes))
        else:
            about = (flops, self._takes, _devices(jax.tree.leaves(self._shapes)[0].sharding))
            self._ready = _in_a_thread(_compile, lowered, about, self._link)


def foresee(config: ConfigDict) -> None:
    """Begins to load what earlier runs of a resolved configuration kept, the smallest first.

    Worth it before imports, data and weights, without which no program can start. One that does goes on from there.
    """
    link = _link("*", config)
    if link is not None:
        links = sorted(link.parent.glob(link.name), key=lambda link: link.stat().st_size)
        with _Thread() as thread:
            _foreseen.update((link, thread.submit(_load, link)) for link in links)


_foreseen: dict[Path | None, Future[Ready | None]] = {}


class _Thread(ThreadPoolExecutor):
    """Does one thing after the other, and ends with the last; `with` does not wait for it."""

    def __init__(self):
        super().__init__(max_workers=1)

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False)


def _in_a_thread(work: Any, *arguments: Any) -> Future:
    with _Thread() as thread:
        return thread.submit(work, *arguments)


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _devices(sharding: Sharding) -> list[int]:
    """Ids, in the order of the mesh."""
    mesh = isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh
    return [device.id for device in (mesh.devices.flat if mesh else sharding.device_set)]


About = tuple[int, str, Sequence[int]]  # FLOPs; what it takes; ids of its devices, in the order of their mesh


def _compile(lowered: Lowered, about: About, link: Path) -> Ready:
    """From the file of a program of the same text, to which other links lead, or by XLA; writes file and link."""
    text = lowered.as_text()
    path = link.with_name(_hash(text, lowered.in_tree, lowered.out_tree, about, _surroundings()))
    if path.exists() and (kept := _load(path)):
        _write_link(link, path)
        return kept
    began, found = time.time(), _found_by_jax()
    compiled = lowered.compile()
    # What JAX found cannot be written: on a CPU XLA leaves out parts of what it has loaded.
    if _found_by_jax() == found:
        _write(path, compiled, about)
        _write_link(link, path)
    _forget(text, began)
    return Ready(compiled, *about[:2])


def _forget(text: str, since: float) -> None:
    """Takes a program out of JAX's own cache: what is found there is not written here."""
    name = text[: text.index(" ", len("module @"))].removeprefix("module @")
    for path in Path(jax.config.values["jax_compilation_cache_dir"]).glob(f"{name}-*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                for suffix in ("cache", "atime"):
                    path.with_name(f"{path.name.rpartition('-')[0]}-{suffix}").unlink(missing_ok=True)


def _load(path: Path) -> Ready | None:
    """None where that fails: the folder may hold anything."""
    try:
        program, trees, (flops, takes, devices) = pickle.loads(path.read_bytes())
        by_id = {device.id: device for device in jax.devices()}
        compiled = deserialize_and_load(program, *trees, execution_devices=[by_id[each] for each in devices])
        os.utime(path)
    except Exception as error:
        logging.warning("the program kept in %s cannot be loaded, and is compiled again: %s", path, error)
        with suppress(OSError):
            path.resolve().unlink(missing_ok=True)
        return None
    return Ready(compiled, flops, takes)


def _write(path: Path, compiled: Compiled, about: About) -> None:
    try:
        program, *trees = serialize(compiled)  # before it runs: XLA's CPU backend cannot write a sort that ran
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(pickle.dumps((program, trees, about)))
        draft.replace(path)
        _drop_oldest(path.parent)
    except Exception as error:  # a full disk; a device whose programs cannot be written
        logging.warning("a compiled program is not kept: %s", error)


def _write_link(link: Path, path: Path) -> None:
    draft = link.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        draft.symlink_to(path.name)
        draft.replace(link)


def _drop_oldest(folder: Path) -> None:
    found = [(path.lstat(), path) for path in folder.iterdir()]
    total = 0
    for stat, path in sorted(found, key=lambda each: each[0].st_mtime, reverse=True):
        total += stat.st_size
        if total > LARGEST or not path.exists():  # a link that leads nowhere
            path.unlink(missing_ok=True)


def _link(name: str, config: ConfigDict) -> Path | None:
    """What leads to a program; None where none are kept."""
    folder = programs_folder()
    if folder is None or jax.process_count() > 1:  # those agree on what to compile by JAX's cache
        return None
    return folder / f"{_hash(_code(), sorted(flatten(config).items()), _surroundings())}-{name}"


def _surroundings() -> tuple:
    """What decides how a program is traced and compiled, beside what it is made of."""
    settings = [(name, value) for name, value in sorted(jax.config.values.items()) if not re.search(HARMLESS, name)]
    machine = (platform.python_version(), platform.machine(), _instructions(), os.cpu_count())
    devices = [(device.id, device.device_kind, device.client.platform_version) for device in jax.devices()]
    return [version(name) for name in LIBRARIES], machine, devices, settings, os.environ.get("XLA_FLAGS")


@cache
def _code() -> str:
    """Of this package."""
    package = Path(__file__).parent
    return _hash([(path.relative_to(package), path.read_bytes()) for path in sorted(package.rglob("*.py"))])


@cache
def _instructions() -> str:
    """What the processor can do: programs for a CPU use it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


_count = threading.local()


def _found_by_jax() -> int:
    """How many programs JAX's own cache had for this thread."""
    return getattr(_count, "found", 0)


def _listen(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _count.found = _found_by_jax() + 1


jax.monitoring.register_event_listener(_listen)
