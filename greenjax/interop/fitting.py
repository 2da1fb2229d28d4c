"""How well the tensors of a file fit a layout, and which layouts they fit."""

from collections.abc import Mapping
from typing import Any

from greenjax.backbones.registry import FAMILIES, family_of
from greenjax.backbones.rules import Layout
from greenjax.interop.entries import entries, expected_tensors
from greenjax.interop.files import Contents
from greenjax.interop.selection import Selection, find_places, name_kind, name_kinds, select
from greenjax.interop.weights import fits, parameter_shapes
from greenjax.models import Backbone


def best_selection(
    contents: Contents, model: Backbone, layout: Layout, key: str | None = None, prefix: str | None = None
) -> tuple[Selection, bool]:
    """The tensors of a file that fit a layout of the model best, and whether the encoder is whole."""
    config, shapes = model.config, parameter_shapes(model)
    resizing = family_of(config.model.name).resizing
    wanted = [entry for entry in entries(layout, shapes, config, whole=False) if entry.part == "encoder"]
    expected = expected_tensors(wanted, shapes, config)

    def fitting(tensors: Mapping[str, Any], before: str = "") -> int:
        return sum(
            fits(ours, tuple(tensors[before + theirs].shape), shape, resizing)
            for theirs, (shape, ours) in expected.items()
            if before + theirs in tensors
        )

    selection = select(contents.containers, layout, fitting, key, prefix)
    count = max(fitting(selection.tensors, before) for before in ("", layout.model_prefix))
    return selection, count == len(expected)


def fitting_layouts(contents: Contents, model: Backbone) -> list[str]:
    """The layouts under which a file has the whole encoder; of these, those that know most of the file's names."""
    known: dict[str, int] = {}
    for name, layout in family_of(model.config.model.name).layouts.items():
        selection, complete = best_selection(contents, model, layout)
        if complete:
            known[name] = sum(_is_known(layout, key) for key in selection.tensors)
    return [name for name in known if known[name] == max(known.values())]


def look_alike(contents: Contents) -> list[str]:
    """The layouts of any family that know every name of a file, behind the prefix of its weights."""
    found = []
    for family in FAMILIES.values():
        for name, layout in family.layouts.items():
            if find_places(contents.containers, layout):
                tensors = select(contents.containers, layout, len).tensors
                found += [name] if all(_is_known(layout, key) for key in tensors) else []
    return list(dict.fromkeys(found))


def has_place(layout: Layout, name: str) -> bool:
    """Is this a tensor of a head or a decoder, which the library has though the model may not?"""
    return any(name_kind(name) in name_kinds(table) for table in (layout.head, *layout.decoders.values()))


def _is_known(layout: Layout, name: str) -> bool:
    """Has the library a tensor of this name, for an encoder of any depth?"""
    kind = name_kind(name.removeprefix(layout.model_prefix))
    in_encoder = kind in name_kinds(layout.encoder, layout.prefix) or name.endswith(tuple(layout.buffers))
    return in_encoder or has_place(layout, name)
