"""From a config file to the settings of a run.

A config file is a Python file with get_config(), which starts from `default_config()` and changes what differs, and may
import modules beside it; or JSON or YAML with some of the settings, such as config.json of a run. `load_config` puts
overrides on top, takes the model from the weights that `init` names, and resolves the result.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from greenjax.backbones.registry import ARCHITECTURES
from greenjax.config import values
from greenjax.config.inherit import inherit
from greenjax.config.places import KINDS, is_name, locate
from greenjax.config.resolve import check_key, checked, flatten, resolve
from greenjax.errors import InputError
from greenjax.runtime.files import read_json


def load_config(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    task: str | None = None,
) -> ConfigDict:
    """The config of a file under overrides such as {"model.window": 14}, resolved and locked.

    `path` may be a name, such as "swin_b", for a config that comes with greenjax. The weights that `init` names bring
    their model, whatever the file says; `tell` is called with a line about it. A config without a task gets `task`.
    Raises InputError where it has another one.
    """
    given, found = flatten(overrides or {}), flatten(read_config(path))
    for key, value in (found | given).items():  # `override` and `inherit` compute with values
        check_key(key)
        if value is not None or key in given or key == "init":  # None in a file: what `init` brings
            checked(key, value)
    settings = override(found, given)
    if task is not None and settings.setdefault("task", task) != task:
        raise InputError(_other_task(path, settings["task"], task, "task" in given))
    settings, line = inherit(settings, given)
    config = resolve(settings)
    if line and tell is not None:
        tell(line)
    return config


def override(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with `changes` on top.

    A length in the other unit, such as steps for a file's epochs, unsets the file's length, and the warm-up keeps its
    share of the run unless `changes` has one. In the same unit a warm-up is scaled only where it is too long. Another
    model.name brings its published sizes to a file of all sizes, such as config.json of a run, except for those that
    the file has changed from its own model's.
    """
    settings = dict(settings)
    name = settings.get("model.name")
    published = {f"model.{part}": size for part, size in ARCHITECTURES.get(name or "", {}).items()}
    whole = all(settings.get(key) is not None or size is None for key, size in published.items())
    if whole and changes.get("model.name", name) != name:
        changed = {key for key, size in published.items() if not values.same_value(settings.get(key), size)}
        settings = {key: value for key, value in settings.items() if key not in published or key in changed}
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
    """The settings of a file, or of a name: what its get_config() returns, or what JSON or YAML says.

    Raises InputError, one line with the place in the file, where it cannot be read or there is no get_config().
    """
    path = locate(path)
    if path.suffix == ".json":
        return _typed(read_json(path, dict, "expected the settings of a run"))
    if path.suffix in (".yaml", ".yml"):
        return _typed(_read_yaml(path))
    spec = importlib.util.spec_from_file_location("greenjax_config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"config {str(path)!r}: expected a file named {' or '.join(f'*{kind}' for kind in KINDS)}")
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


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r}: {' '.join(str(error).split())}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"config {str(path)!r}: expected settings, such as `steps: 100`")
    return found


def _typed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings by dotted key. Texts become numbers where numbers belong: 1e-3 is a text in YAML."""
    found = flatten(settings)
    for key, value in found.items():
        check_key(key)
        if isinstance(value, str):
            found[key] = values.read(key, value)
    return found


def _other_task(path: str | Path, found: str, expected: str, given: bool) -> str:
    """The line about a config of another task, or a task that is `given` beside it."""
    if given:
        return f"task is {found!r}: expected none beside greenjax {expected}"
    config = locate(path)
    recipe = config.with_name(f"{expected}_{config.stem}.py")
    name = recipe.stem if is_name(path) else recipe
    hint = f", such as {name}" if recipe.is_file() else f"; --set task={expected} changes it"
    return f"task is {found!r} in config {str(path)!r}: expected {expected!r}{hint}; greenjax {found} takes this one"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules of a folder importable, and forgets them after: another folder may have the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        # Known before: greenjax, where the config is in the folder of its checkout.
        new = {name: sys.modules[name] for name in set(sys.modules) - before if name.partition(".")[0] not in before}
        for name in [name for name, module in new.items() if _is_own(folder, name, _file_of(module))]:
            del sys.modules[name]
        sys.path.remove(str(folder))


def _file_of(module: Any) -> str | None:
    """The file of a module; the folder of a package without __init__.py."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)


def _is_own(folder: Path, name: str, file: str | None) -> bool:
    """Whether a module is imported from the folder: packages of a virtual environment below it are not."""
    top = folder / name.partition(".")[0]
    return file is not None and (Path(file) == top.with_name(f"{top.name}.py") or Path(file).is_relative_to(top))


def _place(path: Path, error: Exception) -> str:
    """The line that failed, in the config file or a module beside it, and the error."""
    folder, places = path.resolve().parent, []
    for frame, number in traceback.walk_tb(error.__traceback__):
        name, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        if file == os.path.abspath(path) or _is_own(folder, name, file):
            places.append((file, number))
    reason = " ".join(str(error).replace("\\n", " ").split())  # ml_collections quotes line breaks
    if isinstance(error, SyntaxError) and error.filename:
        reason = error.msg
        places += [(error.filename, error.lineno)] if Path(error.filename).is_file() else []  # a text has no file
    where = repr(str(path))
    if places:
        file, line = places[-1]
        where = f"{path}:{line}" if Path(file).samefile(path) else f"{where}: {file}:{line}"
    return f"config {where}: {type(error).__name__}: {reason}"
