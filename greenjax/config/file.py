"""Reading a config file: a Python file with get_config(), which may import modules beside it."""

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax.errors import InputError


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


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.window": 7, ...} of a nested config."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict | Mapping)
        flat.update(flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return flat


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
