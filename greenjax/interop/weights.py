"""From a model's weights to a library's tensors and back; every misfit is found before anything is loaded.

Weights are flat here, {"encoder/norm/scale": array, ...}. A file is taken whole or not at all: the encoder has to be
there to the last tensor. A decoder or a head that the file lacks stays new, one that the model lacks is dropped; a
report says so.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Shaped
from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.interop.buffers import check_buffers, is_buffer
from greenjax.interop.decoders import positions_transposed, turned
from greenjax.interop.files import Contents, listed, to_array
from greenjax.interop.layouts import Entry, entries, family, find_layout, fixed_tensors
from greenjax.interop.resize import resize_table, window_of
from greenjax.interop.selection import Selection, find_places, name_kind, name_kinds, select
from greenjax.interop.tables import LAYOUTS, Layout
from greenjax.models import Backbone
from greenjax.models.classifier import BatchNorm
from greenjax.runtime.checkpoint import flatten_tree

Weights = dict[str, Shaped[np.ndarray, "..."]]
Shapes = Mapping[str, tuple[int, ...]]

TABLE = "relative_position_bias_table"
SHOWN = 10  # misfits


@dataclass
class Report:
    """What was not simply taken over, in words."""

    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # not behind the prefix of the weights
    prefix: str = ""
    resized: dict[tuple[int, int], list[str]] = field(default_factory=dict)  # by windows, from and to
    method: str = ""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [f"new, as initialised: {_by_part(self.new)}"] if self.new else []
        lines += [f"dropped: {_by_part(self.dropped)}"] if self.dropped else []
        behind = f", not behind {self.prefix!r}" if self.prefix else ""
        lines += [f"left out{behind}: {_by_part(self.left_out, self.prefix)}"] if self.left_out else []
        for (source, target), names in sorted(self.resized.items()):
            stages = ", ".join(
                sorted({str(int(found[1]) + 1) for n in names if (found := re.search(r"stages/(\d+)", n))})
            )
            rows = f"{2 * source - 1} x {2 * source - 1} to {2 * target - 1} x {2 * target - 1} offsets"
            lines.append(
                f"position bias tables resized ({self.method}) from window {source} to {target}, {rows}: stage {stages}"
            )
        return lines + self.notes


def flat_weights(model: Backbone) -> Weights:
    """The parameters of a model, on the host."""
    return {
        name: np.asarray(value) for name, value in flatten_tree(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()
    }


def put_weights(model: Backbone, weights: Weights) -> None:
    """Replaces all parameters of a model."""
    state = nnx.state(model, nnx.Param)
    names = list(flatten_tree(nnx.to_pure_dict(state)))
    leaves = [jax.numpy.asarray(weights[name]) for name in names]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))


def folded(weights: Weights) -> Weights:
    """A linear probe's weights as those of a plain classifier: its batch norm becomes part of its head."""
    if "batch_norm/mean" not in weights:
        return weights
    mean, var = (weights[f"batch_norm/{name}"].astype(np.float64) for name in ("mean", "var"))
    kernel = weights["head/kernel"] / np.sqrt(var + BatchNorm.epsilon)[:, None]
    head = {"head/kernel": kernel, "head/bias": weights["head/bias"] - mean @ kernel}
    rest = {key: value for key, value in weights.items() if _part(key) not in ("head", "batch_norm")}
    return rest | {key: value.astype(np.float32) for key, value in head.items()}


# Out


def to_tensors(
    weights: Weights, config: ConfigDict, name: str, merge_order: str = "swin", *, encoder_only: bool = False
) -> tuple[Weights, list[str]]:
    """The tensors of layout `name`, buffers included, and the parts of the model that it has no place for."""
    layout = find_layout(name, config, merge_order)
    wanted = {"encoder"} if encoder_only else {"encoder", *_other_parts(layout, config)}
    kept = {key: value for key, value in weights.items() if _part(key) in wanted}
    whole = any(_part(key) != "encoder" for key in kept)
    tensors: Weights = {}
    covered = set()
    for entry in entries(layout, kept, config, whole=whole):
        tensors |= zip(entry.theirs, entry.there(config, *(kept[ours] for ours in entry.ours)), strict=True)
        covered.update(entry.ours)
    assert covered == set(kept), f"layout {name} does not cover {sorted(set(kept) - covered)}"
    return tensors | fixed_tensors(name, layout, config, whole=whole), sorted(
        {_part(key) for key in weights.keys() - kept}
    )


def _other_parts(layout: Layout, config: ConfigDict) -> set[str]:
    """What a layout holds of the configured model besides its encoder."""
    if config.task != "pretrain":
        return {"head"} if layout.head else set()
    if config.method not in layout.decoders:
        return set()
    return {"decoder"} if config.method == "green" else {"pixel_head", "mask_token"}


# In


def from_tensors(
    contents: Contents,
    shapes: Shapes,
    config: ConfigDict,
    name: str,
    merge_order: str = "swin",
    *,
    key: str | None = None,
    prefix: str | None = None,
    new_head: bool = False,
) -> tuple[Weights, Report]:
    """What a file of layout `name` has for a model with arrays of these shapes, tables in the file's window.

    `key` and `prefix` say where in the file, None: found. Raises InputError with all misfits: missing and unexpected
    names, other shapes.
    """
    layout = find_layout(name, config, merge_order)
    selection, _ = _selected(contents, shapes, config, layout, key, prefix)
    report = Report(notes=list(selection.notes), left_out=selection.others, prefix=selection.prefix)
    tensors = {key: to_array(selection.prefix + key, value) for key, value in selection.tensors.items()}
    _refuse_infinite(tensors)
    check_buffers(tensors)
    transposed = name == "greenmim" and positions_transposed(tensors.get("decoder_pos_embed"), config)
    given = {key: value for key, value in tensors.items() if not is_buffer(key) and key != "decoder_pos_embed"}

    whole = bool(layout.model_prefix) and any(key.startswith(layout.model_prefix) for key in given)
    wanted = entries(layout, shapes, config, whole=whole)
    present = {_part(entry.ours[0]) for entry in wanted if given.keys() & set(entry.theirs)} | {"encoder"}
    if new_head:
        present.discard("head")
    needed = [entry for entry in wanted if _part(entry.ours[0]) in present]
    report.new = [ours for ours in shapes if _part(ours) not in present]
    extra = given.keys() - {theirs for entry in needed for theirs in entry.theirs}
    fixed = fixed_tensors(name, layout, config, whole=whole)
    report.dropped = [key for key in given if key in extra and (key in fixed or _has_place(layout, key))]
    unexpected = [key for key in given if key in extra and key not in report.dropped]
    if misfits := _misfitting(expected_tensors(needed, shapes, config), given, unexpected):
        alike = look_alike(contents)
        looks = fitting_layouts(contents, shapes, config) or ([] if name in alike else alike)
        looks = [other for other in looks if other != name]
        hint = f" (the names look like layout {' or '.join(looks)})" if looks else ""
        behind = f" behind {selection.prefix!r}" if selection.prefix else ""
        first = f"the file does not fit {config.model.name} as layout {name!r}{behind}"
        raise InputError(_listing(first, misfits, hint))

    weights: Weights = {}
    for entry in needed:
        arrays = entry.back(config, *(given[theirs] for theirs in entry.theirs))
        weights |= {ours: np.asarray(value, np.float32) for ours, value in zip(entry.ours, arrays, strict=True)}
    if transposed:
        report.notes.append("decoder_pos_embed has the row first: the decoder's channels were turned to match")
        weights = {key: turned(key, value) for key, value in weights.items()}
    return weights, report


def fit(
    weights: Weights, shapes: Shapes, report: Report, resize: str = "geometric", *, new_head: bool = False
) -> Weights:
    """The weights that a model of these shapes takes, tables in its windows; `report` hears what changed.

    Raises InputError with all misfits.
    """
    if new_head:
        weights = {key: value for key, value in weights.items() if _part(key) != "head"}
    parts = {_part(key) for key in weights}
    report.method = resize
    report.dropped += [key for key in weights if _part(key) not in {_part(name) for name in shapes}]
    report.new += [key for key in shapes if _part(key) not in parts and key not in report.new]
    fitted: Weights = {}
    misfits = [f"only in the weights: {key}" for key in weights if key not in shapes and key not in report.dropped]
    for key, shape in shapes.items():
        if _part(key) not in parts:
            continue
        if key not in weights:
            misfits.append(f"not in the weights: {key} {list(shape)}")
        elif key.endswith(TABLE) and weights[key].shape[1:] == shape[1:] and weights[key].shape != shape:
            fitted[key] = _resized(key, weights[key], shape, resize, report)
        elif weights[key].shape != shape:
            misfits.append(f"{key} is {list(weights[key].shape)} in the weights, {list(shape)} in the model")
        else:
            fitted[key] = weights[key]
    if misfits:
        raise InputError(_listing("the weights do not fit the model", misfits))
    return fitted


def _resized(key: str, table: np.ndarray, shape: tuple[int, ...], method: str, report: Report) -> np.ndarray:
    target = window_of(shape[0])
    assert target is not None  # the model's own
    try:
        resized = resize_table(table, target, method)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    report.resized.setdefault((window_of(len(table)) or 0, target), []).append(key)
    return resized


def fitting_layouts(contents: Contents, shapes: Shapes, config: ConfigDict) -> list[str]:
    """The layouts under which a file has the whole encoder; of these, those that have a place for most of the file."""
    known: dict[str, int] = {}
    for name, families in LAYOUTS.items():
        if layout := families.get(family(config)):
            selection, complete = _selected(contents, shapes, config, layout)
            if complete:
                known[name] = sum(_is_known(layout, key) for key in selection.tensors)
    return [name for name in known if known[name] == max(known.values())]


def look_alike(contents: Contents) -> list[str]:
    """The layouts of any encoder that have every name of a file, behind the prefix of its weights."""
    found = []
    for name, families in LAYOUTS.items():
        for layout in families.values():
            if find_places(contents.containers, layout):
                tensors = select(contents.containers, layout, len).tensors
                found += [name] if all(_is_known(layout, key) for key in tensors) else []
    return list(dict.fromkeys(found))


def expected_tensors(wanted: list[Entry], shapes: Shapes, config: ConfigDict) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape that each tensor has to have, and what it becomes here."""
    expected = {}
    for entry in wanted:
        # Only shapes matter: a view of one zero has them all.
        zeros = (np.broadcast_to(np.float32(0), shapes[ours]) for ours in entry.ours)
        for theirs, array in zip(entry.theirs, entry.there(config, *zeros), strict=True):
            expected[theirs] = array.shape, " and ".join(entry.ours)
    return expected


def _selected(
    contents: Contents,
    shapes: Shapes,
    config: ConfigDict,
    layout: Layout,
    key: str | None = None,
    prefix: str | None = None,
) -> tuple[Selection, bool]:
    """The tensors of a file that fit best as this layout, and whether the encoder is whole."""
    wanted = [entry for entry in entries(layout, shapes, config, whole=False) if _part(entry.ours[0]) == "encoder"]
    expected = expected_tensors(wanted, shapes, config)

    def fitting(tensors: Mapping[str, Any], before: str = "") -> int:
        found = ((theirs, shape) for theirs, (shape, _) in expected.items() if before + theirs in tensors)
        return sum(_fits(theirs, tuple(tensors[before + theirs].shape), shape) for theirs, shape in found)

    selection = select(contents.containers, layout, fitting, key, prefix)
    count = max(fitting(selection.tensors, before) for before in ("", layout.model_prefix))
    return selection, count == len(expected)


def _refuse_infinite(tensors: Weights) -> None:
    with np.errstate(over="ignore"):  # float64 beyond float32
        bad = sorted(
            name
            for name, value in tensors.items()
            if value.dtype.kind == "f" and not np.isfinite(np.asarray(value, np.float32)).all()
        )
    if bad:
        raise InputError(f"{len(bad)} of {len(tensors)} tensors are not finite: {listed(bad)}")


def _misfitting(expected: dict[str, tuple[tuple[int, ...], str]], given: Weights, unexpected: list[str]) -> list[str]:
    """Everything that is missing, unexpected, of another shape or type, under both names."""
    misfits = []
    for theirs, (shape, ours) in expected.items():
        if theirs not in given:
            misfits.append(f"missing: {theirs} {list(shape)} (here {ours})")
        elif not _fits(theirs, given[theirs].shape, shape):
            found = list(given[theirs].shape)
            misfits.append(f"other shape: {theirs} is {found}, expected {list(shape)} (here {ours})")
        elif given[theirs].dtype.kind != "f":
            misfits.append(f"other type: {theirs} is {given[theirs].dtype}, expected floats (here {ours})")
    return misfits + [f"unexpected: {key} {list(given[key].shape)} (nothing here)" for key in unexpected]


def _fits(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """A table may be that of another window."""
    if name.endswith(TABLE) and len(found) == 2 and window_of(found[0]) is not None:
        return found[1] == expected[1]
    return found == expected


def _listing(first: str, misfits: list[str], hint: str = "") -> str:
    count = f"{len(misfits)} misfit{'' if len(misfits) == 1 else 's'}"
    lines = misfits if len(misfits) <= SHOWN + 1 else [*misfits[:SHOWN], f"and {len(misfits) - SHOWN} more"]
    return "\n".join([f"{first}, {count}{hint}:", *(f"  {line}" for line in lines)])


def _has_place(layout: Layout, key: str) -> bool:
    """Is this a tensor of a head or a decoder, which the library has though our model may not?"""
    return any(name_kind(key) in name_kinds(table) for table in (layout.head, *layout.decoders.values()))


def _is_known(layout: Layout, key: str) -> bool:
    """Has the library a tensor of this name, for an encoder of any depth?"""
    kind = name_kind(key.removeprefix(layout.model_prefix))
    return kind in name_kinds(layout.encoder, layout.prefix) or is_buffer(key) or _has_place(layout, key)


def _part(key: str) -> str:
    return key.partition("/")[0]


def _by_part(keys: list[str], beside: str = "") -> str:
    """`decoder (20 tensors)`. Parts are named down to where they leave the prefix `beside`."""
    parts: dict[str, int] = {}
    for key in keys:
        names, before = re.split(r"[/.]", key), beside.split(".")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(names, before)))
        part = ".".join(names[: shared + 1])
        parts[part] = parts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in parts.items())
