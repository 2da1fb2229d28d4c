"""What is kept from run to run in a folder of the user's: layouts of the planner, programs that XLA compiled."""

import os
import tempfile
from pathlib import Path

from absl import logging

# Of JAX, where the environment does not say otherwise (its names in capitals).
SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # the start of a run is many small programs
    "jax_compilation_cache_max_size": 4 << 30,  # bytes; what was not used for longest goes first
}


_programs: Path | None = None  # where this process keeps programs of its own: programs.py


def cache_folder() -> Path:
    """XDG_CACHE_HOME/greenjax, or ~/.cache/greenjax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greenjax"


def keep_compiled(folder: Path | None = None) -> None:
    """Has JAX keep the programs that it compiles from here on, and take those that it finds.

    `folder`: by default `compiled` in the user's. The processes of a run need the same one: if some of them found a
    program and others compiled it, those would wait in vain for what GPUs tune together. A folder that the user gave
    JAX (JAX_COMPILATION_CACHE_DIR) is taken instead, its settings are left alone, and JAX_ENABLE_COMPILATION_CACHE=0
    keeps nothing. Programs are known by their text, JAX's version, XLA's flags and the kind of device, with what
    instructions a CPU has; those that greenjax.programs keeps, in a folder there, by what it says.
    """
    import jax  # planning uses this module without it

    global _programs
    now = jax.config.values
    if not now["jax_enable_compilation_cache"]:
        return
    if told := now["jax_compilation_cache_dir"]:
        _programs = None if "://" in told else Path(told) / "programs"
        return
    folder = folder or cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written
        _drop_unfinished(folder)
    except OSError as error:
        logging.warning("compiled programs are not kept: %s", error)
        return
    _programs = folder / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def programs_folder() -> Path | None:
    """Where greenjax.programs keeps its own; None: nowhere, as before `keep_compiled`."""
    return _programs


def _drop_unfinished(folder: Path) -> None:
    """JAX writes a program, then its time of use. One without, left by a process that was killed, stops all writing."""
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
            program.unlink(missing_ok=True)
