"""From a config file to the settings of a run.

A config file is a Python file with get_config(), which starts from `default_config()` and changes what differs. It may
import modules beside it. `load_config` puts overrides on top, takes the model from the weights that `init` names, and
resolves the result.
"""

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax.config.inherit import inherit
from greenjax.config.resolve import check_key, flatten, resolve
from greenjax.errors import InputError


def load_config(
    path: str | Path, overrides: Mapping[str, Any] | None = None, tell: Callable[[str], None] | None = None
) -> ConfigDict:
    """The config of a file under overrides such as {"model.window": 14}, resolved and locked.

    The weights that `init` names bring their model, whatever the file says; `tell` is called with a line about it.
    """
    given = flatten(overrides or {})
    for key in given:
        check_key(key)
    settings, line = inherit(override(flatten(read_config(path)), given), given)
    config = resolve(settings)
    if line and tell is not None:
        tell(line)
    return config


def override(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with `changes` on top.

    A length in the other unit, such as steps for a file's epochs, unsets the file's length, and the warm-up keeps its
    share of the run unless `changes` has one. In the same unit a warm-up is scaled only where it is too long.
    """
    settings = dict(settings)
    for unit, other in (("steps", "epochs"), ("epochs", "steps")):
        warmup, other_warmup = f"optim.warmup_{unit}", f"optim.warmup_{other}"
        length, before = changes.get(unit), settings.get(other)
        if not length or changes.get(other) or not isinstance(length, int):
            continue
        own, own_warmup = settings.get(unit) or 0, settings.get(warmup) or 0
        if length <= own_warmup < own and warmup not in changes:
            settings[warmup] = own_warmup * length // own
        if not before:
            continue
        if settings.get(other_warmup) and not {warmup, other_warmup} & changes.keys():
            settings[warmup] = settings[other_warmup] * length // before
        settings[other] = settings[other_warmup] = None
    return settings | dict(changes)


def read_config(path: str | Path) -> ConfigDict | Mapping[str, Any]:
    """Runs the get_config() of a file, which may import modules beside it, and returns the result.

    Raises InputError, one line with the place in the file, where it fails or there is no get_config().
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config {str(path)!r}: no such file; {_near_files(path)}")
    spec = importlib.util.spec_from_file_location("greenjax_config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"config {str(path)!r}: expected a Python file, named *.py")
    module = importlib.util.module_from_spec(spec)
    with _importable(path.resolve().parent):
        try:
            spec.loader.exec_module(module)
            if not callable(getattr(module, "get_config", None)):
                raise InputError(f"config {str(path)!r}: expected a function get_config()")
            found = module.get_config()
        except InputError:
            raise
        except Exception as error:
            raise InputError(_place(path, error)) from error
    if not isinstance(found, ConfigDict | Mapping):
        raise InputError(f"config {str(path)!r}: get_config() returned {found!r}, expected a ConfigDict")
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules of a folder importable, and forgets them after: another folder may have the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents:
                del sys.modules[name]


def _place(path: Path, error: Exception) -> str:
    """The line that failed, in the config file or a module beside it, and the error."""
    folder = path.resolve().parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if folder in Path(frame.filename).parents]
    places = [(frame.filename, frame.lineno) for frame in frames]
    reason = " ".join(str(error).replace("\\n", " ").split())  # ml_collections quotes line breaks
    if isinstance(error, SyntaxError) and error.filename:
        reason = error.msg
        places += [(error.filename, error.lineno)] if Path(error.filename).is_file() else []  # a text has no file
    where = repr(str(path))
    if places:
        file, line = places[-1]
        where = f"{path}:{line}" if Path(file).samefile(path) else f"{where}: {file}:{line}"
    return f"config {where}: {type(error).__name__}: {reason}"


def _near_files(path: Path) -> str:
    """Config files with a name like that of a path that is not a file."""
    folders = {folder.resolve(): folder for folder in (Path("configs"), path.parent)}
    found = [file for folder in reversed(folders.values()) for file in folder.glob("*.py")]
    names = difflib.get_close_matches(path.stem, [file.stem for file in found], 3)
    near = dict.fromkeys(str(file) for name in names for file in found if file.stem == name)
    return f"nearest are {', '.join(near)}" if near else "expected a Python file with get_config()"
