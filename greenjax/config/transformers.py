"""The settings of a folder of transformers, as its config.json and preprocessor_config.json say them.

The config.json that greenjax would write for the same model tells whether the model there is one that greenjax has.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from greenjax.backbones.family import Family
from greenjax.backbones.registry import FAMILIES
from greenjax.config.resolve import resolve
from greenjax.config.values import same_value
from greenjax.errors import InputError
from greenjax.runtime.files import read_json

LAYOUT, PROCESSOR = "hf", "preprocessor_config.json"

# Settings of the section `model` by transformers' name, or the first of its names that is there.
NAMES = {
    "patch": ("patch_stride", "patch_size", "strides"),
    "in_channels": ("num_channels",),
    "embed_dim": ("embed_dim", "hidden_size"),
    "embed_dims": ("hidden_sizes",),
    "depths": ("depths", "num_hidden_layers"),
    "num_heads": ("num_heads", "num_attention_heads"),
    "window": ("window_size",),
    "pretrained_windows": ("pretrained_window_sizes",),
    "mlp_ratio": ("mlp_ratio", "mlp_ratios"),
    "sr_ratios": ("sr_ratios",),
    "query_pools": ("num_query_pool",),
}
OPTIONAL = ("mlp_ratio", "pretrained_windows")
DECODER = {
    "decoder_hidden_size": "decoder.dim",
    "decoder_num_hidden_layers": "decoder.depth",
    "decoder_depth": "decoder.depth",
    "decoder_num_attention_heads": "decoder.num_heads",
    "decoder_num_heads": "decoder.num_heads",
    "norm_pix_loss": "decoder.norm_pixels",
    "normalize_pixel_loss": "decoder.norm_pixels",
    "mask_ratio": "mask.ratio",
}
# Entries of config.json that weights do not fix, or that training alone reads.
FREE = ("architectures", "image_size", "layer_norm_eps", "dtype", "encoder_stride")
FREE += ("mask_ratio", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
BICUBIC = 3  # PIL's number
SQUEEZED_FROM = 384  # pixels: ConvNextImageProcessor crops smaller images only
DAMAGED = (KeyError, TypeError, ValueError, IndexError, ArithmeticError)  # what entries of other kinds end in


class Described(NamedTuple):
    """What a folder says: flat settings, and how greenjax differs from transformers, a line each."""

    settings: dict[str, Any]
    notes: list[str]


class View(NamedTuple):
    """How a preprocessor cuts an image: to which size, and the crop's share of the shorter side."""

    size: tuple[int, int]
    crop: float = 1.0
    squeezed: tuple[int, int] | None = None  # the size that the whole image is resized to, whatever its shape


def families() -> dict[str, Family]:
    """The families that transformers has, too, by model_type; one of masked autoencoders may have a type of its own."""
    found = {}
    for name, family in FAMILIES.items():
        if (hf := family.layouts.get(LAYOUT)) and hf.folder:
            found |= {name: family} | ({hf.autoencoder: family} if hf.autoencoder else {})
    return found


def described(folder: Path, found: Mapping[str, Any]) -> Described:
    """The settings in a config.json, and in the preprocessor beside it; none for a model_type of no family here.

    Raises InputError for a model that greenjax cannot compute, and for entries that are missing or damaged.
    """
    kind = str(found.get("model_type"))
    family = families().get(kind)
    if family is None:
        return Described({}, [])
    try:
        return _described(folder, found, kind, family)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{str(folder / 'config.json')!r} cannot be read: {error!r}") from error


def _described(folder: Path, found: Mapping[str, Any], kind: str, family: Family) -> Described:
    layout = family.layouts[LAYOUT]
    entries = {part: next((found[name] for name in names if name in found), None) for part, names in NAMES.items()}
    sizes = {part: _plain(value) for part, value in entries.items() if value is not None}
    if isinstance(sizes.get("patch"), tuple):
        sizes["patch"] = sizes["patch"][0]
    published = next(iter(family.sizes.values()))
    for part in ("depths", "num_heads"):  # of one stage
        sizes |= {part: (sizes[part],)} if isinstance(sizes.get(part), int) else {}
    where = repr(str(folder / "config.json"))
    needed = [part for part in ("in_channels", *published) if part in NAMES and part not in OPTIONAL]
    if missing := [part for part in needed if part not in sizes]:
        names = " and ".join(NAMES[part][-1] for part in missing)
        raise InputError(f"{where} has no {names}: expected the config.json of a {kind}")
    if "mlp_ratio" not in sizes and "intermediate_size" in found:
        sizes["mlp_ratio"] = found["intermediate_size"] / found["hidden_size"]
    sizes = {part: value for part, value in sizes.items() if part in (*published, "in_channels")}
    epsilon = found.get("layer_norm_eps", layout.epsilon)
    if not isinstance(epsilon, float):
        raise InputError(f"{where}: layer_norm_eps is {epsilon!r}: expected a number such as 1e-6")
    sizes["norm_epsilon"] = epsilon if layout.any_epsilon else layout.epsilon
    name = max(family.sizes, key=lambda name: sum(family.sizes[name].get(part) == sizes[part] for part in sizes))
    settings = {"model.name": name} | {f"model.{part}": value for part, value in sizes.items()}
    of_autoencoder = kind == layout.autoencoder and found.get("decoder_hidden_size") is not None
    if of_autoencoder:
        settings |= {key: found[entry] for entry, key in DECODER.items() if entry in found}
        settings |= layout.of_autoencoder
    view = processed(folder)
    image_size = view.get("image_size") or _plain(found.get("image_size", 224))
    parts = {"decoder"} if of_autoencoder else set()
    _check(folder, found, layout, settings | {"image_size": image_size}, parts)
    notes = view.pop("notes", [])
    if epsilon != sizes["norm_epsilon"]:
        notes.append(f"layer_norm_eps is {epsilon:g} in config.json; every norm here has {layout.epsilon:g}")
    return Described(settings | view | {"image_size": image_size}, notes)


def _check(folder: Path, found: Mapping[str, Any], layout: Any, settings: Mapping[str, Any], parts: set[str]) -> None:
    """Raises InputError where greenjax would describe a model of these settings otherwise."""
    colours = dict.fromkeys(("data.mean", "data.std"), (0.5,) * settings["model.in_channels"])
    expected = layout.folder(resolve({"task": "knn", "data.source": "python"} | colours | dict(settings)), parts)
    for key, value in expected.items():
        if key in found and key not in FREE and not _same(found[key], value):
            where = f"{str(folder / 'config.json')!r}: {key} is {found[key]!r}"
            raise InputError(f"{where}: expected {value!r}, which is all that a {expected['model_type']} has here")


def _same(found: Any, expected: Any) -> bool:
    """transformers reads no more entries of a list than the model has stages."""
    both_lists = isinstance(found, list) and isinstance(expected, list)
    return same_value(found[: len(expected)] if both_lists else found, expected)


def processed(folder: Path) -> dict[str, Any]:
    """The settings of images in the preprocessor of a folder, and "notes", lines; {} where there is none."""
    path = folder / PROCESSOR
    if not path.is_file():
        return {}
    found = read_json(path, dict, "expected the preprocessor of transformers")
    try:
        settings = _colours(found)
        if view := _view(found):
            settings |= {"image_size": view.size, "data.eval_crop": view.crop}
        settings["notes"] = list(_unlike(found, view))
    except DAMAGED as error:
        raise InputError(f"{str(path)!r} cannot be read: {error!r}") from error
    return settings


def _colours(found: Mapping[str, Any]) -> dict[str, Any]:
    settings = {}
    if not found.get("do_normalize", True):
        settings |= {"data.mean": (0.0,), "data.std": (1.0,)}
    elif "image_mean" in found:
        settings |= {"data.mean": _plain(found["image_mean"]), "data.std": _plain(found["image_std"])}
    scale = 1.0 / found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    return settings | ({} if math.isclose(scale, 255, rel_tol=1e-6) else {"data.scale": scale})


def _view(found: Mapping[str, Any]) -> View | None:
    """None where the preprocessor neither resizes nor crops."""
    size, crop = found.get("size"), found.get("crop_size") if found.get("do_center_crop") else None
    resizes = found.get("do_resize", True) and size is not None
    if crop is not None:
        cut = _pair(crop)
        shorter = (size.get("shortest_edge") if isinstance(size, dict) else size) if resizes else None
        squeezed = _pair(size) if resizes and shorter is None else None
        return View(cut, min(1.0, min(cut) / (shorter or min(_pair(size)))) if resizes else 1.0, squeezed)
    if not resizes:
        return None
    short = size.get("shortest_edge") if isinstance(size, dict) else size if "crop_pct" in found else None
    if short is None:
        return View(_pair(size), squeezed=_pair(size))
    if "crop_pct" in found and short >= SQUEEZED_FROM:
        return View((short, short), squeezed=(short, short))
    return View((short, short), found.get("crop_pct") or 1.0)


def _unlike(found: Mapping[str, Any], view: View | None) -> Iterator[str]:
    """How a preprocessor differs from greenjax, a line each."""
    if not found.get("do_resize", True):
        yield "transformers takes images at their own size (do_resize is false); greenjax resizes them"
    elif (resample := found.get("resample", BICUBIC)) != BICUBIC:
        yield f"resample is {resample!r} in {PROCESSOR}; greenjax resizes bicubically, which is {BICUBIC}"
    if view and view.squeezed:
        size = " x ".join(map(str, view.squeezed))
        yield f"transformers squeezes an image that is not square to {size}; greenjax cuts out its centre"


def _pair(size: Any) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, dict) else (size, size)


def _plain(value: Any) -> Any:
    """A list of JSON as a tuple."""
    return tuple(value) if isinstance(value, list) else value
