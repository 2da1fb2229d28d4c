"""What the processes of a run share: a workdir that nobody else writes, one configuration, one code, the same data."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.config import flatten
from greenjax.data.listing import listing
from greenjax.ops.group_attention import check_attention
from greenjax.runtime.files import expanded
from greenjax.runtime.lock import held
from greenjax.runtime.processes import agree, on_first

# A process may have its own: where its machine has the data and keeps copies of it, how many cores it has.
OWN = ("data.path", "data.workers", "data.cache", "data.cache_gb")

T = TypeVar("T")


def holding_workdir(task: Callable[[ConfigDict, Path], T]) -> Callable[[ConfigDict, Path], T]:
    """Wraps a task: it checks what every task needs, and holds the workdir from the start of the task to its end.

    Raises InputError where the attention cannot run on the devices, where the processes have other settings or other
    code, or where another process holds the workdir.
    """

    @wraps(task)
    def alone(config: ConfigDict, workdir: Path) -> T:
        workdir = expanded(workdir)
        check_attention(config.model.attention)
        if jax.process_count() > 1:
            settings = json.loads(json.dumps(flatten(config)))
            shared = {key: value for key, value in settings.items() if key not in OWN}
            agree({"greenjax": __version__, "sources of greenjax with the digest": code_digest()} | shared)
        with ExitStack() as stack:
            on_first(lambda: stack.enter_context(held(workdir, "--workdir")))
            return task(config, workdir)

    return alone


def same_start(step: int | None, batch: int, sources: Mapping[str, Any]) -> None:
    """Raises InputError, on every process, unless all go on from the same step with the same data.

    `step` is that of the last checkpoint (None: there is none), `batch` the position in the stream, which rollbacks
    move, and `sources` as in `same_data`.
    """
    agree({"its last checkpoint at step": step, "its next batch at": batch})
    same_data(sources)


def same_data(sources: Mapping[str, Any]) -> None:
    """Raises InputError, on every process, unless all have the same images. `sources`: by name; None for none."""
    if jax.process_count() == 1:
        return
    given = {name: source for name, source in sources.items() if source is not None}
    agree(
        {f"{{}} {name}": len(source) for name, source in given.items()}
        | {f"{name} with the digest {{}} of names and order": listing(source) for name, source in given.items()}
    )


def same_weights(name: str, params: Any) -> None:
    """Raises InputError, on every process, unless all have read the same arrays."""
    if jax.process_count() == 1:
        return
    agree({f"weights of {name} with the digest": weights_digest(params)})


def weights_digest(params: Any) -> str:
    """A digest of a tree of arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def code_digest() -> str:
    """A digest of all Python files of the package."""
    root, digest = Path(__file__).parents[1], hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
