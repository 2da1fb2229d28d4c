"""The files that say how a run is made: config.json, data.json, versions.json. A run resumes only under the same."""

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.config import KEYS, flatten, read_recorded
from greenjax.config.inherit import filled
from greenjax.errors import InputError
from greenjax.runtime.files import expanded, read_json, replace_text
from greenjax.runtime.processes import leads

# Keys that may change when a run resumes: weights, masks, the order of samples and the schedule do not depend on them.
HARMLESS = ("log.", "mesh.", "knn.", "monitor", "data.workers", "data.path", "data.eval", "data.monitor")
HARMLESS += ("data.cache", "data.fetch", "model.attention", "model.remat", "optim.max_skipped", "guard.")

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless", "pillow")
LIBRARIES += ("torch",)

REMEDY = "it cannot be compared with this command; remove it, and the run goes on as this command says"  # if damaged


def record_config(workdir: Path, config: ConfigDict, images: int, resuming: bool, listing: str | None = None) -> None:
    """Writes config.json, data.json and versions.json, or refuses to resume under other settings or with other images.

    `images` is the length of the training split and `listing` its digest: other images make other batches. A run that
    begins anew overwrites the files. Raises InputError, which names what differs.
    """
    data = workdir / "data.json"
    if resuming:
        refuse_other(workdir, config)
    before = read_json(data, dict, REMEDY) if resuming and data.exists() else {}
    if before.get("images", images) != images:
        raise InputError(
            f"{workdir} was begun with {before['images']} training images, now there are {images}: expected the same"
        )
    if listing and before.get("listing") not in (None, listing):
        raise InputError(
            f"{workdir} was begun with other training images, as many, but of other names or in another order: expected"
            f" the same; {_init_flag(workdir)} with a new --workdir starts from its weights"
        )
    if leads():
        replace_text(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        replace_text(data, json.dumps({"images": images, "listing": listing}) + "\n")
        replace_text(workdir / "versions.json", json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """The libraries and the machine that make the results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = jax.devices()
    return found | {"greenjax": __version__, "devices": f"{len(devices)} x {devices[0].device_kind}"}


def refuse_other(workdir: Path, config: ConfigDict, among: Collection[str] = KEYS) -> None:
    """Raises InputError where config.json is there and has other settings `among` these, except HARMLESS ones."""
    path = workdir / "config.json"
    if not path.exists():
        return
    here = _as_json(flatten(config))
    defaults = {key: entry.default for key, entry in KEYS.items()}
    there = defaults | read_recorded(path, REMEDY)  # the run may be older than a key, or than a published setting
    there = _as_json({key: filled(there, key) for key in there})
    keys = [key for key in among if not key.startswith(HARMLESS) and there[key] != here.get(key)]
    if not keys:
        return
    if config.init != "none" and there["init"] == config.init and not expanded(config.init).exists():
        typed = shlex.join(f"--config.{key}={there[key]}" for key in keys)
        raise InputError(
            f"init {config.init!r} is not there, and {path.parent} has settings from it: expected it where it was, or"
            f" the same command with {typed}"
        )
    differing = "; ".join(f"{key} is {there[key]!r} there, {here.get(key)!r} here" for key in keys[:5])
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    raise InputError(
        f"{path.parent} holds a run with other settings: {differing}{more}: use another --workdir, with"
        f" {_init_flag(path.parent)} to start from these weights, or these settings as they are there"
    )


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def _init_flag(workdir: Path) -> str:
    """The flag that starts from the weights of a run, as a shell takes it."""
    return shlex.quote(f"--config.init={workdir}")
