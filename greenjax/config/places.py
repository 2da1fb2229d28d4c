"""Where a config lies: a path, or the name of one of the configs that come with greenjax, such as swin_b."""

import difflib
from pathlib import Path

from greenjax.errors import InputError

KINDS = (".py", ".json", ".yaml", ".yml")
_INSTALLED = Path(__file__).parents[1] / "configs"  # the build puts the checkout's folder there: setup.py
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"


def shipped() -> list[str]:
    """The names of all configs that come with greenjax."""
    return sorted(file.stem for file in SHIPPED.glob("*.py"))


def is_name(config: str | Path) -> bool:
    """Whether a config is given by its name: a word without an ending."""
    return str(config) == Path(config).name and Path(config).suffix not in KINDS


def locate(config: str | Path) -> Path:
    """The file of a config. Raises InputError with the nearest names where there is none."""
    path = SHIPPED / f"{config}.py" if is_name(config) else Path(config)
    if not path.is_file():
        raise InputError(f"config {str(config)!r}: no such {'name' if is_name(config) else 'file'}; {_near(config)}")
    return path


def _near(config: str | Path) -> str:
    """Names of configs, and config files beside the path, that are named alike."""
    path = Path(config)
    named = {} if path.suffix in KINDS[1:] else {name: name for name in shipped()}
    if not is_name(config):
        folders = {folder.resolve(): folder for folder in (Path("configs"), path.parent)}
        files = [file for folder in folders.values() for kind in KINDS for file in folder.glob(f"*{kind}")]
        named |= {file.stem: str(file) for file in files}
    near = [named[name] for name in difflib.get_close_matches(path.stem, named, 3)]
    return f"nearest are {', '.join(near)}" if near else "expected a file (*.py, *.json, *.yaml), or a name"
