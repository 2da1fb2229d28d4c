"""Programs compiled in a thread from the shapes of what they take, and kept: a later run loads them without tracing.

JAX's own cache finds what XLA compiled by a program's text, for which the program has to be traced and lowered. Here a
link leads to it from what the text follows from: the code of this package, its libraries, configuration and devices.
"""

import os
import pickle
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from filelock import FileLock
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.stages import Compiled, Lowered, Wrapped
from ml_collections import ConfigDict

from greenjax import fingerprint
from greenjax.cache import programs_folder
from greenjax.config import flatten
from greenjax.cost import calls_back, matmul_flops

LARGEST = 2 << 30  # bytes of all kept programs; those that were not used for longest go first


class Ready(NamedTuple):
    """A program that can run."""

    call: Callable[..., Any]
    flops: int  # of all matrix products, on all devices


class Loaded(NamedTuple):
    """A program as it was kept.

    It takes and returns leaves only. To unpickle their trees imports the modules of what is in them: nothing for a
    thread beside the imports of the main one.
    """

    call: Callable[..., list[Any]]
    trees: bytes  # of the arguments and of what it returns
    flops: int


class Program:
    """A jitted function for arguments of one kind: it can take no others.

    Once started, XLA compiles it in a thread, or loads what an earlier run kept, while the caller goes on. A call waits
    for that, and starts it where nobody has.
    """

    def __init__(self, jitted: Wrapped, name: str, config: ConfigDict, *others: Any):
        """`name`: which one of the configuration's programs it is; `others`: what it follows from beside that."""
        self._jitted, self._name, self._config, self._others = jitted, name, config, others
        self._coming: Future[Ready | Loaded | None] | None = None
        self._ready: Ready | None = None

    def start(self, *shapes: Any) -> None:
        """`shapes`: those of the arguments, all on the same devices. Returns when the program is traced, or found."""
        leaves, tree = jax.tree.flatten(shapes)
        arguments = [(leaf.shape, leaf.dtype, leaf.sharding, _devices(leaf.sharding)) for leaf in leaves]
        takes = fingerprint.of(tree, arguments, jax.sharding.get_abstract_mesh(), self._others)
        self._shapes, self._link = shapes, _link(self._config, f"{self._name}-{takes}")
        if self._link in _foreseen:
            self._coming = _foreseen.pop(self._link)
        elif self._link and self._link.exists():
            (self._coming,) = _in_a_thread(partial(_load, self._link))
        else:
            self._compile()

    def wait(self) -> Ready:
        """Returns when it can run."""
        if self._ready is None:
            assert self._coming is not None
            if self._coming.result() is None:  # it could not be loaded
                self._compile()
            found = self._coming.result()
            assert found is not None
            self._ready = _restored(found) if isinstance(found, Loaded) else found
        return self._ready

    def __call__(self, *arguments: Any) -> Any:
        if self._coming is None:
            self.start(*jax.tree.map(_shape, arguments))
        return self.wait().call(*arguments)

    @property
    def flops(self) -> int:
        """Those of all matrix products, on all devices."""
        return self.wait().flops

    def _compile(self) -> None:
        traced = self._jitted.trace(*self._shapes)
        link = None if calls_back(traced.jaxpr) else self._link  # a function of Python's is in this process only
        devices = _devices(jax.tree.leaves(self._shapes)[0].sharding)
        (self._coming,) = _in_a_thread(
            partial(_compile, traced.lower(), matmul_flops(traced.jaxpr), devices, link),
        )


def foresee(config: ConfigDict) -> None:
    """Begins to load what earlier runs of a resolved configuration kept, the smallest first.

    Worth it before imports, data and weights, without which no program can start; one that starts takes over.
    """
    every = _link(config, "*")
    if every is not None:
        with suppress(FileNotFoundError):  # another run just dropped one
            links = sorted(filter(Path.exists, every.parent.glob(every.name)), key=os.path.getsize)
            _foreseen.update(zip(links, _in_a_thread(*(partial(_load, link) for link in links)), strict=True))


_foreseen: dict[Path | None, Future[Ready | Loaded | None]] = {}  # by their links


def _in_a_thread(*works: Callable[[], Any]) -> list[Future]:
    """The results of one work after the other."""
    pool = ThreadPoolExecutor(max_workers=1)
    results = [pool.submit(work) for work in works]
    pool.shutdown(wait=False)  # it ends with the last
    return results


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _devices(sharding: Sharding) -> list[int]:
    """Ids, in the order of the mesh."""
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return [device.id for device in sharding.mesh.devices.flat]
    (device,) = sharding.device_set
    return [device.id]


def _compile(lowered: Lowered, flops: int, devices: list[int], link: Path | None) -> Ready | Loaded:
    """By XLA, or from the file of a program of the same text, to which another link leads. None: it is not kept."""
    if link is None:
        return Ready(lowered.compile(), flops)
    text = lowered.as_text()
    about = (text, lowered.in_tree, lowered.out_tree, flops, devices)
    path = link.with_name(fingerprint.of(about, fingerprint.surroundings()))
    if path.exists() and (kept := _load(path)):
        _lead(link, path)
        return kept
    began, found = time.time(), _found_by_jax()
    compiled = lowered.compile()
    if _found_by_jax() > found:  # of that XLA would write a part only, on a CPU
        _forget(text, began)
    elif fingerprint.code() == fingerprint.CODE:  # the state of this package that the link names has traced it
        _write(path, compiled, flops, devices)
        _lead(link, path)
    return Ready(compiled, flops)


def _forget(text: str, since: float) -> None:
    """Takes a program that was found since then out of JAX's own cache, so that the next run compiles and keeps it."""
    name = text[: text.index(" ", len("module @"))].removeprefix("module @")
    folder = Path(jax.config.values["jax_compilation_cache_dir"])
    with suppress(OSError), FileLock(folder / ".lockfile", timeout=10):  # JAX's: it counts the files in other threads
        for used in folder.glob(f"{name}-*-atime"):
            if used.stat().st_mtime >= since:
                used.with_name(used.name.removesuffix("atime") + "cache").unlink(missing_ok=True)
                used.unlink()


def _load(path: Path) -> Loaded | None:
    """`path`: of a program or of a link to it. None where that fails: the folder may hold anything."""
    try:
        program, counts, trees, flops, devices = pickle.loads(path.read_bytes())
        by_id = {device.id: device for device in jax.devices()}
        takes, gives = (tuple(range(count)) for count in counts)
        flat = jax.tree.structure((takes, {})), jax.tree.structure(gives)
        call = deserialize_and_load(program, *flat, execution_devices=[by_id[each] for each in devices])
        os.utime(path)
    except Exception as error:
        logging.warning("the program kept in %s cannot be loaded, and is compiled again: %s", path, error)
        with suppress(OSError):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        return None
    return Loaded(call, trees, flops)


def _restored(loaded: Loaded) -> Ready:
    takes, gives = pickle.loads(loaded.trees)

    def call(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten((arguments, {}))
        if tree != takes:
            raise TypeError(f"the program was compiled for arguments {takes}, not {tree}")
        return gives.unflatten(loaded.call(*leaves))

    return Ready(call, loaded.flops)


def _write(path: Path, compiled: Compiled, flops: int, devices: list[int]) -> None:
    try:
        program, *trees = serialize(compiled)  # before it runs: XLA's CPU backend cannot write a sort that ran
        counts = [tree.num_leaves for tree in trees]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as draft:
            pickle.dump((program, counts, pickle.dumps(trees), flops, devices), draft)
        os.replace(draft.name, path)
    except Exception as error:  # a full disk; a device whose programs cannot be written
        logging.warning("a compiled program is not kept: %s", error)
        return
    with suppress(FileNotFoundError):  # another run drops, too
        _drop_oldest(path.parent)


def _lead(link: Path, path: Path) -> None:
    """The one link from this name of this configuration: foresee() would load what others lead to."""
    with suppress(OSError):
        for other in link.parent.glob(f"{link.name.rpartition('-')[0]}-*"):
            other.unlink(missing_ok=True)
        draft = link.with_name(f".{uuid.uuid4().hex}")
        draft.symlink_to(path.name)
        draft.replace(link)


def _drop_oldest(folder: Path) -> None:
    files = [(path.stat(), path) for path in folder.iterdir() if not path.is_symlink()]
    total = 0
    for stat, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
        total += stat.st_size
        if total > LARGEST:
            path.unlink(missing_ok=True)
    for link in folder.iterdir():
        if not link.exists():
            link.unlink(missing_ok=True)


def _link(config: ConfigDict, name: str) -> Path | None:
    """What leads to a program; None where none are kept."""
    folder = programs_folder()
    if folder is None or jax.process_count() > 1:  # those agree on what to compile by JAX's cache
        return None
    key = fingerprint.of(fingerprint.CODE, sorted(flatten(config).items()), fingerprint.surroundings())
    return folder / f"{key}-{name}"


_count = threading.local()


def _found_by_jax() -> int:
    """How many programs JAX's own cache had for this thread."""
    return getattr(_count, "found", 0)


def _listen(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _count.found = _found_by_jax() + 1


jax.monitoring.register_event_listener(_listen)
