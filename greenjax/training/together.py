"""What the processes of a run share: a workdir that nobody else writes, one configuration, one code, the same data."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

import greenjax
from greenjax.config import flatten
from greenjax.data.listing import listing
from greenjax.lock import held
from greenjax.processes import agree, led

OWN = ("data.path", "data.workers")  # a process may have its own: where its machine has the data, how many cores it has

T = TypeVar("T")


def holding_workdir(task: Callable[[ConfigDict, Path], T]) -> Callable[[ConfigDict, Path], T]:
    """The task, which holds its workdir from its start to its end and has the same configuration on every process."""

    @wraps(task)
    def alone(config: ConfigDict, workdir: Path) -> T:
        settings = json.loads(json.dumps(flatten(config)))
        agree(
            {"greenjax": greenjax.__version__, "sources of greenjax with the digest": code_digest()}
            | {key: value for key, value in settings.items() if key not in OWN}
        )
        with ExitStack() as stack:
            led(lambda: stack.enter_context(held(Path(workdir), "--workdir")))
            return task(config, workdir)

    return alone


def same_data(step: int, batch: int, sources: Mapping[str, Any]) -> None:
    """Raises InputError, on every process, unless all go on from the same step with the same data.

    `batch`: the position in the stream, which rollbacks move. `sources`: by name; None where there is none.
    """
    given = {name: source for name, source in sources.items() if source is not None}
    agree(
        {"its last checkpoint at step": step, "its next batch at": batch}
        | {f"{{}} {name}": len(source) for name, source in given.items()}
        | {f"{name} with the digest {{}} of names and order": listing(source) for name, source in given.items()}
    )


def code_digest() -> str:
    """Of all Python files of the package."""
    root, digest = Path(greenjax.__file__).parent, hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
