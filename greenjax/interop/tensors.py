"""From a model's weights to a library's tensors and back.

A file is taken whole or not at all: all misfits are found before anything is loaded. The encoder has to be in the file
to the last tensor. A decoder or head that the file lacks stays as initialised, one that the model lacks is dropped; the
report names both.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.positions import POSITIONS, check_grid
from greenjax.backbones.registry import family_of
from greenjax.backbones.rules import Layout, Resizing
from greenjax.errors import InputError, listed
from greenjax.interop.decoders import decoder_positions, positions_transposed, turned
from greenjax.interop.entries import Expected, entries, expected_tensors, fixed_tensors, of_classes, part_of
from greenjax.interop.files import Contents, to_array
from greenjax.interop.heads import check_head
from greenjax.interop.layouts import MERGE_ORDERS, RESIZE_METHODS, find_layout
from greenjax.interop.selection import best_selection, fitting_layouts, has_place, look_alike, renamed
from greenjax.interop.weights import LAST_NORM, Report, Weights, fits, misfits_text, parameter_shapes
from greenjax.models import Backbone


class Reading(NamedTuple):
    """How a file of weights is read."""

    merge_order: str = MERGE_ORDERS[0]
    resize: str = RESIZE_METHODS[0]
    new_head: bool = False  # layers with outputs for classes stay as initialised
    key: str | None = None  # of the dictionary in the file that holds the weights; None: found
    prefix: str | None = None  # before their names; None: found


BY_DEFAULT = Reading()


def to_tensors(
    weights: Weights, config: ConfigDict, name: str, merge_order: str = MERGE_ORDERS[0], *, encoder_only: bool = False
) -> tuple[Weights, list[str]]:
    """The tensors of layout `name`, fixed ones included, and the parts of the model that it has no place for."""
    layout = find_layout(name, config, merge_order)
    parts = {entry.part for entry in entries(layout, weights, config, whole=False)}
    kept = {
        key: value
        for key, value in weights.items()
        if part_of(key) in ({"encoder"} if encoder_only else parts) and not key.startswith(layout.lacking)
    }
    whole = any(part_of(key) != "encoder" for key in kept)
    tensors: Weights = {}
    covered = set()
    for entry in entries(layout, kept, config, whole=whole):
        tensors |= zip(entry.theirs, entry.to_torch(config, *(kept[ours] for ours in entry.ours)), strict=True)
        covered.update(entry.ours)
    if any(part_of(key) == "decoder" for key in kept) and config.decoder.positions == "sincos":
        tensors[layout.decoder_positions[0]] = decoder_positions(layout, config)
    assert covered == set(kept), f"layout {name} does not cover {sorted(set(kept) - covered)}"
    for name_here, other, taken in layout.other_names:
        if taken(config):
            tensors = {renamed(key, name_here, other): value for key, value in tensors.items()}
    left_out = sorted({part_of(key) for key in weights.keys() - kept} - {"encoder"}) + [*layout.lacking]
    return tensors | fixed_tensors(layout, config, whole=whole), left_out


def from_tensors(contents: Contents, model: Backbone, name: str, how: Reading) -> tuple[Weights, Report]:
    """The weights that a file of layout `name` has for a model; position bias tables stay as they are in the file.

    Raises InputError with all misfits: missing and unexpected names, other shapes and types.
    """
    config, shapes = model.config, parameter_shapes(model)
    layout = find_layout(name, config, how.merge_order)
    selection, _ = best_selection(contents, model, layout, how.key, how.prefix)
    notes = [*selection.notes, *(f"files of layout {name!r} have no {module}" for module in layout.lacking)]
    report = Report(notes=notes, left_out=selection.others, prefix=selection.prefix)
    given = _checked({key: to_array(selection.prefix + key, value) for key, value in selection.tensors.items()}, layout)

    whole = bool(layout.model_prefix) and any(key.startswith(layout.model_prefix) for key in given)
    wanted = entries(layout, shapes, config, whole=whole)
    codes = layout.decoder_positions[0]  # fixed ones, unless the model trains them and the layout has a place for them
    positions = None if any(codes in entry.theirs for entry in wanted) else given.pop(codes, None)
    present = {entry.part for entry in wanted if given.keys() & set(entry.theirs)} | {"encoder"}
    drawn = {ours for ours in shapes if part_of(ours) not in present or (how.new_head and of_classes(ours))}
    needed = [entry for entry in wanted if drawn.isdisjoint(entry.ours)]
    report.new = [ours for ours in shapes if ours in drawn or ours.startswith(layout.lacking)]
    read = {theirs for entry in needed for theirs in entry.theirs}
    extra = [key for key in given if key not in read]
    fixed = fixed_tensors(layout, config, whole=whole)
    last_norm = {theirs for entry in entries(layout, LAST_NORM, config, whole=whole) for theirs in entry.theirs}
    report.dropped = [key for key in extra if key in fixed or key in last_norm or has_place(layout, key)]
    unexpected = [key for key in extra if key not in report.dropped]
    resizing = family_of(config.model.name).resizing
    misfits = _misfitting(expected_tensors(needed, shapes, config), given, resizing)
    misfits += [f"unexpected: {key} {list(given[key].shape)} (nothing here)" for key in unexpected]
    if misfits:
        behind = f" behind {selection.prefix!r}" if selection.prefix else ""
        first = f"the file does not fit {config.model.name} as layout {name!r}{behind}"
        raise InputError(misfits_text(first, misfits, _hint(contents, model, name)))
    if any(entry.part == "head" for entry in needed):
        check_head(layout.read_by_head(selection.names), config)

    weights: Weights = {}
    told = _as_told(config, contents.metadata)
    for entry in needed:
        arrays = entry.from_torch(told or config, *(given[theirs] for theirs in entry.theirs))
        weights |= {ours: np.asarray(value, np.float32) for ours, value in zip(entry.ours, arrays, strict=True)}
    for ours, value in () if told else weights.items():
        if ours.endswith(f"/{POSITIONS}"):
            check_grid(ours, value)
    if "decoder" in present and positions is not None and positions_transposed(positions, layout, told or config):
        report.notes.append(f"{codes} has the row first: the decoder's channels were turned to match")
        weights = {key: turned(key, value) for key, value in weights.items()}
    return weights, report


def _as_told(config: ConfigDict, metadata: Mapping[str, str]) -> ConfigDict | None:
    """The config with the image_size that the file was written with; None where it does not say."""
    if "image_size" not in metadata:
        return None
    told = ConfigDict(config.to_dict())
    with told.unlocked():
        told.image_size = tuple(map(int, metadata["image_size"].split("x")))
    return told


def _checked(tensors: Weights, layout: Layout) -> Weights:
    """The tensors without buffers. Raises InputError where some are not finite or a buffer is not as it has to be."""
    with np.errstate(over="ignore"):  # float64 beyond float32
        floats = {name: np.asarray(value, np.float32) for name, value in tensors.items() if value.dtype.kind == "f"}
    if bad := sorted(name for name, value in floats.items() if not np.isfinite(value).all()):
        raise InputError(f"{len(bad)} of {len(tensors)} tensors are not finite: {listed(bad)}")
    for name in tensors:
        for ending, check in layout.buffers.items():
            if name.endswith(ending):
                check(name, tensors)
    return {name: value for name, value in tensors.items() if not name.endswith(tuple(layout.buffers))}


def _misfitting(expected: dict[str, Expected], given: Weights, resizing: Resizing | None) -> list[str]:
    """Every tensor that is missing, of another shape or type, under both names."""
    misfits = []
    for theirs, (shape, ours) in expected.items():
        if theirs not in given:
            misfits.append(f"missing: {theirs} {list(shape)} (here {ours})")
        elif not fits(ours, given[theirs].shape, shape, resizing):
            found = list(given[theirs].shape)
            misfits.append(f"other shape: {theirs} is {found}, expected {list(shape)} (here {ours})")
        elif given[theirs].dtype.kind != "f":
            misfits.append(f"other type: {theirs} is {given[theirs].dtype}, expected floats (here {ours})")
    return misfits


def _hint(contents: Contents, model: Backbone, name: str) -> str:
    """The other layouts that a file looks like."""
    alike = look_alike(contents)
    looks = fitting_layouts(contents, model) or ([] if name in alike else alike)
    looks = [other for other in looks if other != name]
    return f" (the names look like layout {' or '.join(looks)})" if looks else ""
