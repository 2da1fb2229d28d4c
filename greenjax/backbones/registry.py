"""The families of backbones. A new one is a folder beside this file and one line in `FAMILIES`."""

from importlib import import_module

from greenjax.backbones.family import Family
from greenjax.errors import InputError


def _stated(folder: str) -> Family:
    return import_module(f"greenjax.backbones.{folder}.family").FAMILY


FAMILIES: dict[str, Family] = {
    "swin": _stated("swin"),
    "twins": _stated("twins"),
    "swinv2": _stated("swinv2"),
    "convnext": _stated("convnext"),
    "convnextv2": _stated("convnextv2"),
    "hiera": _stated("hiera"),
    "pvt_v2": _stated("pvt_v2"),
    "vit": _stated("vit"),
}

# The published settings of every model.name. A key set in a config overrides its part; other parts cannot be set.
ARCHITECTURES = {name: settings for family in FAMILIES.values() for name, settings in family.sizes.items()}

DEFAULT = "swin_b"  # the paper's

# The settings of the section `model` that families state.
SETTINGS = {part: key for family in FAMILIES.values() for part, key in family.settings.items()}

# The settings that some model.name brings.
SIZE_SETTINGS = tuple(dict.fromkeys(part for settings in ARCHITECTURES.values() for part in settings))


def family_of(name: str) -> Family:
    """The family that has `name` as a model.name. Raises InputError where none has."""
    for family in FAMILIES.values():
        if name in family.sizes:
            return family
    raise InputError(f"model.name is {name!r}: expected {' or '.join(ARCHITECTURES)}")
