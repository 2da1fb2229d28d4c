"""The user's cache folder: layouts of the planner, and JAX's persistent cache of compiled programs."""

import errno
import os
import tempfile
from pathlib import Path

from absl import logging

LARGEST = 4 << 30  # bytes of compiled programs; a start removes the least recently used programs above it
MIN_COMPILE_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def cache_folder() -> Path:
    """XDG_CACHE_HOME/greenjax, or ~/.cache/greenjax. Raises FileNotFoundError for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        raise FileNotFoundError(errno.ENOENT, "this user has no home; XDG_CACHE_HOME names another folder", folder)
    return Path(folder) / "greenjax"


def keep_compiled(folder: Path | None = None) -> None:
    """Turns JAX's persistent cache on, in `folder`; by default in `compiled` of the user's cache folder.

    The processes of a run need the same folder: GPUs tune a program together, so a process that compiles would wait in
    vain for processes that found the program in a cache. JAX_COMPILATION_CACHE_DIR (another folder) and
    JAX_ENABLE_COMPILATION_CACHE=0 keep their meaning. A folder that cannot be written costs one warning.
    """
    import jax  # planning uses this module without it

    if not jax.config.values["jax_enable_compilation_cache"] or jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = folder or cache_folder() / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # raises OSError where nothing can be written
        _shrink(folder)
    except OSError as error:
        logging.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if MIN_COMPILE_SECONDS.upper() not in os.environ:
        jax.config.update(MIN_COMPILE_SECONDS, 0.0)  # a start compiles many small programs


def _shrink(folder: Path) -> None:
    """Removes the least recently used files, down to LARGEST bytes.

    JAX can do this itself, at the price of a lock around every look-up, and of a cache that takes nothing more once a
    process was killed while it wrote.
    """
    found = []
    for path in folder.iterdir():
        try:
            if path.is_file():  # on GPUs XLA keeps a folder of its own there
                found.append((path.stat(), path))
        except FileNotFoundError:  # another run shrinks the folder, too
            continue
    total = 0
    for stat, path in sorted(found, key=lambda file: max(file[0].st_atime, file[0].st_mtime), reverse=True):
        total += stat.st_size
        if total > LARGEST:
            path.unlink(missing_ok=True)
