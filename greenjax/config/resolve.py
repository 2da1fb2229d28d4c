"""A full config: `default_config` is the start of every file, `resolve` fills in and checks every setting."""

import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from greenjax.backbones.registry import ARCHITECTURES, SIZE_SETTINGS
from greenjax.backbones.settings import Key
from greenjax.config.checks import acceptable, check_all
from greenjax.config.kinds import NAMES, PATHS, RATIO, SIZE, VALUE
from greenjax.config.names import WORKDIR, nearest
from greenjax.config.settings import KEYS
from greenjax.errors import InputError, listed, refuse
from greenjax.runtime.files import expanded, read_json


def default_config() -> ConfigDict:
    """The full tree of settings, unlocked: the paper's Swin-B, without data and without a length of the run."""
    return _nested({key: _field(entry) for key, entry in KEYS.items()})


def resolve(config: ConfigDict | Mapping[str, Any]) -> ConfigDict:
    """The config with every key filled in and checked, as a locked copy; resolving twice changes nothing.

    Takes a ConfigDict, or a mapping, nested or with dotted keys, such as config.json read back.
    Raises InputError: one line with the key, its value and what is expected.
    """
    given = flatten(config)
    for key in given:
        check_key(key)
    values = {key: checked(key, given.get(key, entry.default)) for key, entry in KEYS.items()}
    _fill_architecture(values)
    _take_statistics(values)
    _by_channel(values)
    if values["task"] not in ("knn", "eval"):
        _settle_length(values)
    check_all(values)
    return _nested(values).lock()


def read_recorded(path: Path, remedy: str) -> dict[str, Any]:
    """The settings in a run's config.json, by dotted key, without augmentation that only earlier versions took.

    Raises InputError with `remedy` where the file is damaged.
    """
    settings = flatten(read_json(path, dict, remedy))
    if unknown := [key for key in settings if key not in KEYS]:
        raise InputError(f"{str(path)!r} has settings of another version of greenjax: {listed(unknown)}")
    return acceptable(settings)


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.window": 7, ...} of a nested config."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, ConfigDict | Mapping)
        flat.update(flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return flat


def check_key(key: str) -> None:
    """Raises InputError with the nearest names where `key` is not a setting."""
    if key in KEYS:
        return
    near = nearest(key, KEYS)
    if any(known.startswith(f"{key}.") for known in KEYS):
        hint = f"{key!r} is a section: its keys are set one by one"
    elif near:
        hint = f"nearest are {', '.join(near)}"
    elif key.rpartition(".")[2] in WORKDIR:
        hint = "--workdir says where results go"
    else:
        hint = "--helpfull lists all keys"
    raise InputError(f"config has no key {key!r}: {hint}")


def _fill_architecture(values: dict[str, Any]) -> None:
    """Fills in the published settings of `model.name`; refuses settings that this architecture does not have."""
    architecture = ARCHITECTURES[values["model.name"]]
    for part in SIZE_SETTINGS:
        key = f"model.{part}"
        if part not in architecture and values[key] is not None:
            refuse(values, key, f"none for {values['model.name']}, which has {', '.join(architecture)}")
        if values[key] is None:
            values[key] = architecture.get(part)


def _take_statistics(values: dict[str, Any]) -> None:
    """Takes mean and deviation from the file `data.statistics`: the config then has the numbers, and no file."""
    if not values["data.statistics"]:
        return
    found = read_json(
        expanded(values["data.statistics"]), dict, "expected what `python -m greenjax.data.statistics` wrote"
    )
    for part in ("mean", "std"):
        key = f"data.{part}"
        measured = checked(key, found.get(part))
        if values[key] not in (KEYS[key].default, measured):
            refuse(values, key, f"none beside data.statistics {values['data.statistics']!r}")
        values[key] = measured
    for part in ("dtype", "scale", "channels", "no_data"):
        here = list(values[f"data.{part}"]) if part == "channels" else values[f"data.{part}"]
        if found.get(part) != here:
            refuse(values, f"data.{part}", f"{found.get(part)!r}, with which data.statistics were measured")
    values["data.statistics"] = ""


def _by_channel(values: dict[str, Any]) -> None:
    """One mean or deviation stands for all channels."""
    for key in ("data.mean", "data.std"):
        if len(values[key]) == 1:
            values[key] *= values["model.in_channels"]


def _settle_length(values: dict[str, Any]) -> None:
    """Keeps the lengths of the run and of its warm-up in one unit, epochs or steps; the other two become None."""
    pairs = (("epochs", "optim.warmup_epochs"), ("steps", "optim.warmup_steps"))
    if values["epochs"] and values["steps"]:
        refuse(values, "epochs", f"none beside steps {values['steps']}: unset one of them with 0")
    if not values["epochs"] and not values["steps"]:
        raise InputError("neither epochs nor steps is given: expected one of them, a whole number, at least 1")
    (length, warmup), (_, other) = pairs if values["epochs"] else reversed(pairs)
    if values[other]:
        refuse(values, other, f"none in a run measured in {length}: unset it with 0 and set {warmup}")
    values[warmup] = values[warmup] or 0
    if values[warmup] >= values[length]:
        refuse(values, warmup, f"less than {length}, {values[length]}")


def _field(entry: Key) -> Any:
    """The default, or a placeholder by which ml_collections checks the type of later values."""
    if entry.default is not None and entry.kind not in (NAMES, PATHS, RATIO, SIZE, VALUE):
        return entry.default
    return FieldReference(entry.default, field_type=get_origin(entry.kind) or entry.kind)


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[name] = value
    return config


def checked(key: str, value: Any) -> Any:
    """The value in its proper type, or an error that says what is expected; placeholders may stay or become None."""
    entry = KEYS[key]
    if value is None and entry.default is None:
        return None
    try:
        value = _converted(value, entry.kind)
        good = entry.ok(value)
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        refuse({key: value}, key, entry.allowed)
    some = any(value) if isinstance(value, tuple) else (value and value != "0") or value is False
    unset = entry.default is None and not some
    return None if unset else value  # 0 unsets a placeholder from the command line


def _converted(value: Any, kind: Any) -> Any:
    if kind in (str, PATHS) and isinstance(value, os.PathLike):
        return _converted(os.fspath(value), kind)
    if kind == SIZE:
        kind = tuple[int, ...]
        value = value if isinstance(value, tuple | list) else (value, value)
        value = tuple(value) * (2 if len(value) == 1 else 1)
    if kind == PATHS and type(value) in (tuple, list) and len(value) < 2:
        return _converted(value[0] if value else "", str)
    if kind == VALUE:
        kind, is_one = str, isinstance(value, numbers.Real) and not isinstance(value, bool)
        value = str(value) if is_one else value
    if kind in (NAMES, PATHS, RATIO):
        single = float if kind == RATIO else str
        kind = tuple[single, ...] if type(value) in (tuple, list) else single
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        return tuple(_converted(item, get_args(kind)[0]) for item in value)
    wanted = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if kind is float and not math.isfinite(value):
        raise ValueError
    return kind(value)
