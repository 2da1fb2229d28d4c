"""What a layout makes of a model: which arrays become which tensors, what else a strict load wants, what cannot be."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.errors import InputError
from greenjax.interop.buffers import stage_windows
from greenjax.interop.tables import LAYOUTS, Layout, Rule, swin
from greenjax.models.decoder import sine_cosine_positions


class Entry(NamedTuple):
    """Arrays of a model and the tensors that they become."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    there: Callable[..., tuple[np.ndarray, ...]]
    back: Callable[..., tuple[np.ndarray, ...]]


def family(config: ConfigDict) -> str:
    """Swin or Twins."""
    return "swin" if config.model.name.startswith("swin") else "twins"


def find_layout(name: str, config: ConfigDict, merge_order: str = "swin") -> Layout:
    """The layout for a resolved config's encoder. Raises InputError where there is none, or no such merge order."""
    if name not in LAYOUTS:
        raise InputError(f"layout is {name!r}: expected {' or '.join(LAYOUTS)}")
    kind = family(config)
    if kind not in LAYOUTS[name]:
        fitting = " or ".join(layout for layout, families in LAYOUTS.items() if kind in families)
        raise InputError(f"layout is {name!r}, which has no {config.model.name}: expected {fitting}")
    if merge_order not in ("swin", "raster"):
        raise InputError(f"merge_order is {merge_order!r}: expected 'swin' or 'raster'")
    if merge_order == "swin":
        return LAYOUTS[name][kind]
    if (name, kind) != ("greenmim", "swin"):
        raise InputError(
            f"merge_order is 'raster' with layout {name!r} of {config.model.name}: only greenmim's Swin has it"
        )
    return LAYOUTS[name][kind]._replace(encoder=swin("raster"))


def entries(layout: Layout, names: Iterable[str], config: ConfigDict, *, whole: bool) -> list[Entry]:
    """Which tensors the named arrays of a model become, in the order of the tables.

    `whole`: the file holds more than the encoder.
    """
    modules: dict[str, set[str]] = {}
    for name in names:
        for cut in (match.start() for match in re.finditer("/", name)):
            modules.setdefault(name[:cut], set()).add(name[cut + 1 :])
        modules.setdefault("", set()).add(name)
    prefix = layout.prefix + (layout.model_prefix if whole else "")
    tables = [(layout.encoder, prefix), (layout.head, ""), *((table, "") for table in layout.decoders.values())]
    return [
        entry
        for table, stem in tables
        for rule in table
        for module, arrays in modules.items()
        for entry in _entries(rule, module, arrays, stem, config)
    ]


def _entries(rule: Rule, module: str, arrays: set[str], stem: str, config: ConfigDict) -> Iterable[Entry]:
    """Those of one rule for one module, if the rule is about it."""
    pattern = rule.ours.replace("{i}", r"(?P<i>\d+)").replace("{j}", r"(?P<j>\d+)")
    match = re.fullmatch(pattern, module)
    if match is None:
        return
    at: dict[str, Any] = {key: int(value) for key, value in match.groupdict().items()}
    if "i" in at:
        at |= dict(next=at["i"] + 1, odd=2 * at["i"] + 1, even=2 * at["i"] + 2)
    name = stem + rule.theirs.format(last=len(config.model.depths) - 1, **at)
    for part in rule.kind:
        if arrays.issuperset(part.ours):
            ours = tuple(f"{module}/{suffix}".lstrip("/") for suffix in part.ours)
            theirs = tuple(f"{name}.{suffix}".lstrip(".") for suffix in part.theirs)
            yield Entry(ours, theirs, part.there, part.back)


def fixed_tensors(name: str, layout: Layout, config: ConfigDict, *, whole: bool) -> dict[str, np.ndarray]:
    """What a strict load wants besides the model's parameters: buffers, and parameters that we do not have."""
    prefix = layout.prefix + (layout.model_prefix if whole else "")
    fixed = {prefix + key: value for key, value in (layout.buffers(config) | layout.extras(config)).items()}
    if name == "greenmim" and whole:
        positions = sine_cosine_positions(*token_grid(config).units, config.decoder.dim)
        fixed["decoder_pos_embed"] = positions[None]
    return fixed


class Fault(NamedTuple):
    """Why a library does not compute as here: what is so, and the rest of the sentence."""

    because: str
    there: str
    kind: Literal["refused", "differs", "small images"]  # the last: on larger ones, as here

    def __str__(self) -> str:
        return self.because + self.there


def check_geometry(name: str, layout: Layout, config: ConfigDict) -> list[str]:
    """Raises InputError where the library cannot hold or run this model; returns what will differ there, in words."""
    faults = list(geometry_faults(name, layout, config))
    for fault in faults:
        if fault.kind == "refused":
            raise InputError(f"layout {name!r}: {fault}")
    notes = [str(fault) for fault in faults]
    if abs(config.model.norm_epsilon - layout.epsilon) > 1e-12:
        notes.insert(0, f"norms there have epsilon {layout.epsilon:g}, here {config.model.norm_epsilon:g}")
    return notes


def export_line(config: ConfigDict) -> str:
    """Which layouts take a resolved config's weights as they are at its image size, and why others do not: one line."""
    fits, faulty = [], {}
    for name, families in LAYOUTS.items():
        if (layout := families.get(family(config))) is None:
            continue
        faults = list(geometry_faults(name, layout, config))
        grave = [fault for fault in faults if fault.kind != "small images"]
        if grave:
            first = next((fault for fault in grave if fault.kind == "refused"), grave[0])
            faulty.setdefault(first.because, []).append(name)
        else:
            fits.append(f"{name} (on larger images)" if faults else name)
    reasons = "; ".join(f"{', '.join(names)} ({because})" for because, names in faulty.items())
    return f"weights as they are: {', '.join(fits) or 'none'}" + (f"; not: {reasons}" if reasons else "")


def geometry_faults(name: str, layout: Layout, config: ConfigDict) -> Iterable[Fault]:
    """What of a resolved config's channels, grids and windows a library does not have, or has otherwise."""
    if name == "torchvision" and config.model.in_channels != 3:
        yield Fault(f"model.in_channels is {config.model.in_channels}", ": expected 3", "refused")
    window, grid = config.model.window, token_grid(config)
    if window is None:
        return
    for stage in range(grid.stages):
        rows, columns = grid.shape(stage)
        at = f"stage {stage + 1} has a grid of {rows} x {columns} tokens"
        if layout.whole_windows and min(rows, columns) < window:
            least = window * config.model.patch * 2**stage
            there = f", which it cannot have: expected an image_size of at least {least} a side there"
            yield Fault(f"{at}, smaller than the window of {window}", there, "refused")
        if name == "timm" and family(config) == "swin" and rows != columns and min(rows, columns) <= window:
            expected = "expected a square grid, or one with both sides above the window"
            there = f", which timm cuts on each axis by itself: {expected}"
            yield Fault(f"{at} with a window of {window}", there, "refused")
        side = stage_windows(config)[stage][0]
        if rows % side or columns % side:
            because = f"{at}, no multiple of the window of {side}"
            if layout.multiples:
                yield Fault(because, f", which it cannot run: expected multiples of {side}", "refused")
            elif (name, family(config)) != ("mmdet", "twins") or not (rows % side and columns % side):
                # mmpretrain's Twins hides its padding, if both axes have some.
                yield Fault(because, ": there, padding attends; here it does not", "differs")
        elif (
            (name, family(config)) == ("mmdet", "swin")
            and min(rows, columns) <= window
            and config.model.depths[stage] > 1
        ):
            there = ": there, odd blocks shift it; in larger images all is equal"
            yield Fault(f"{at}, no more than one window", there, "small images")


def describe(config: ConfigDict) -> dict[str, str]:
    """What a file says of the model in it, besides its layout."""
    model = {key: value for key, value in config.model.to_dict().items() if value is not None}
    return {
        "architecture": config.model.name,
        "window": str(config.model.window),
        "image_size": "x".join(map(str, config.image_size)),
        "mean": json.dumps(config.data.mean),
        "std": json.dumps(config.data.std),
        "crop_pct": str(config.data.eval_crop),  # this and the next as timm calls them
        "interpolation": "bicubic",
        "model": json.dumps(model),
    }
