"""Selecting the tensors of a file that are the encoder's, from the dictionaries and prefixes of a training program.

The encoder stands in the dictionary and behind the prefix where most of the layout's names stand. Where several places
fit equally, a moving average goes before others, and the first in the file before the next; a note names the choice.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from greenjax.backbones.registry import FAMILIES, family_of
from greenjax.backbones.rules import Layout, Table
from greenjax.errors import InputError, listed
from greenjax.interop.entries import entries, expected_tensors
from greenjax.interop.files import Contents
from greenjax.interop.weights import fits, parameter_shapes
from greenjax.models import Backbone

Containers = Mapping[str, Mapping[str, Any]]

# PyTorch puts these into names wherever it wraps a module.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_AVERAGES = re.compile(r"(?<![a-z])(ema|swa|teacher|averaged?|avg)(?![a-z])", re.IGNORECASE)


class Place(NamedTuple):
    """A place of weights in a file: the key of their dictionary, and the prefix of their names."""

    key: str
    prefix: str

    @property
    def is_average(self) -> bool:
        return bool(_AVERAGES.search(f"{self.key}.{self.prefix}"))


class Selection(NamedTuple):
    """The tensors of one place."""

    tensors: dict[str, Any]  # named without the prefix
    prefix: str
    others: list[str]  # the names in the same dictionary that are not behind the prefix
    notes: list[str]  # for the report
    names: list[str]  # of the tensors, in the file


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
    """Is this a tensor of a head, a decoder or a detector, which the library has though the model may not?"""
    tables = layout.head, layout.detector, *layout.decoders.values()
    return name.startswith(layout.ignored) or any(name_kind(name) in name_kinds(table) for table in tables)


def _is_known(layout: Layout, name: str) -> bool:
    """Has the library a tensor of this name, for an encoder of any depth?"""
    kind = name_kind(name.removeprefix(layout.model_prefix))
    in_encoder = kind in name_kinds(layout.encoder, layout.prefix) or name.endswith(tuple(layout.buffers))
    return in_encoder or has_place(layout, name)


def select(
    containers: Containers,
    layout: Layout,
    fitting: Callable[[Mapping[str, Any]], int],
    key: str | None = None,
    prefix: str | None = None,
) -> Selection:
    """The tensors of the place where most tensors fit the model; `fitting` counts those of a dictionary.

    `key` and `prefix` name the place, or how it begins. Raises InputError where the file has no such key or prefix.
    """
    as_read, containers = containers, {name: _unwrapped(tensors, layout) for name, tensors in containers.items()}
    if key is not None:
        containers = _with_key(containers, key)
    if prefix is not None:
        prefix = _WRAPPERS.sub("", prefix)
        containers = _with_prefix(containers, prefix)
    everywhere = find_places(containers, layout)
    places = [place for place in everywhere if place.prefix.startswith(prefix or "")]
    if prefix in [place.prefix for place in places]:
        places = [place for place in places if place.prefix == prefix]
    if not places:
        largest = max(containers, key=lambda name: len(containers[name]))
        return _split(containers[largest], prefix or "")
    counts = {place: fitting(_split(containers[place.key], place.prefix).tensors) for place in places}
    best = [place for place in places if counts[place] == max(counts.values())]
    taken = next((place for place in best if place.is_average), best[0])
    notes = [_choice(taken, [place for place in best if place != taken])] if len(best) > 1 else []
    # A head stands beside the encoder, before whose names the layout may have a prefix of its own.
    outer = taken.prefix.removesuffix(layout.model_prefix)
    elsewhere = tuple(
        place.prefix
        for place in everywhere
        if place.key == taken.key and place.prefix != taken.prefix and place.prefix.startswith(outer)
    )
    found = _split(containers[taken.key], outer, elsewhere)
    in_file = dict(zip(containers[taken.key], as_read[taken.key]))
    return found._replace(notes=notes, names=[in_file[outer + name] for name in found.tensors])


def find_places(containers: Containers, layout: Layout) -> list[Place]:
    """The places of at least half of the kinds of names of a layout's encoder, in the order of the file."""
    kinds = name_kinds(layout.encoder, layout.prefix)
    found: dict[Place, set[str]] = {}
    for key, tensors in containers.items():
        for name in tensors:
            kind = name_kind(name).split(".")
            for cut in range(len(kind)):
                if (rest := ".".join(kind[cut:])) in kinds:
                    prefix = "".join(f"{part}." for part in name.split(".")[:cut])
                    found.setdefault(Place(key, prefix), set()).add(rest)
    return [place for place, there in found.items() if 2 * len(there) >= len(kinds)]


def name_kind(name: str) -> str:
    """A name without its numbers: encoders of any depth have the same kinds of names."""
    return re.sub(r"\{\w+\}|\d+", "#", name)


def name_kinds(table: Table, prefix: str = "") -> set[str]:
    """The kinds of the names in a table of a layout."""
    return {
        name_kind(f"{prefix}{rule.theirs}.{suffix}".lstrip("."))
        for rule in table
        for part in rule.kind
        for suffix in part.theirs
    }


def renamed(name: str, module: str, other: str) -> str:
    """The name of a tensor after its module, anywhere in the name, is called `other`."""
    return re.sub(rf"(?<![^.]){re.escape(module)}\.", f"{other}.", name)


def _unwrapped(tensors: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The tensors named without PyTorch's wrappers, and as the layout's tables have them; as they are where two would
    then have one name."""
    short: dict[str, Any] = {}
    for whole, value in tensors.items():
        name = _WRAPPERS.sub("", whole)
        for module, other, _ in layout.other_names:
            name = renamed(name, other, module)
        short[name] = value
    return short if len(short) == len(tensors) else dict(tensors)


def _split(tensors: Mapping[str, Any], prefix: str, elsewhere: tuple[str, ...] = ()) -> Selection:
    """The tensors behind a prefix that are not behind one of the prefixes `elsewhere`."""
    inside = [name for name in tensors if name.startswith(prefix) and not name.startswith(elsewhere)]
    others = tensors.keys() - inside
    split = {name.removeprefix(prefix): tensors[name] for name in inside}
    return Selection(split, prefix, [name for name in tensors if name in others], [], [])


def _with_key(containers: Containers, key: str) -> Containers:
    """The dictionary of a key, or the dictionaries within it."""
    if key in containers:
        return {key: containers[key]}
    if within := {name: tensors for name, tensors in containers.items() if name.startswith(f"{key}.")}:
        return within
    largest = sorted(containers, key=lambda name: -len(containers[name]))
    raise InputError(f"key is {key!r}: the file has {listed(largest)}")


def _with_prefix(containers: Containers, prefix: str) -> Containers:
    """The dictionaries that have names with the prefix."""
    having = {key: tensors for key, tensors in containers.items() if any(name.startswith(prefix) for name in tensors)}
    if not having:
        first = {f"{name.split('.')[0]}." for tensors in containers.values() for name in tensors if "." in name}
        raise InputError(f"prefix is {prefix!r}: names in the file begin with {listed(sorted(first))}")
    return having


def _choice(taken: Place, others: list[Place]) -> str:
    """The note on a choice among several places: the one taken, why, and the flags for another."""
    all_of = (taken, *others)
    telling = [field for field in Place._fields if len({getattr(place, field) for place in all_of}) == len(all_of)]
    differ = telling[:1] or Place._fields

    def named(place: Place) -> str:
        return " ".join(f"{field} {getattr(place, field)!r}" for field in differ)

    def typed(place: Place) -> str:
        return " ".join(f"--{field} {shlex.quote(getattr(place, field))}" for field in differ)

    why = "a moving average" if taken.is_average else "the first in the file"
    return (
        f"{len(others) + 1} sets of weights fit: {named(taken)} was taken, {why}; from-torch"
        f" {' or '.join(map(typed, others))} takes {'the other' if len(others) == 1 else 'another'}"
    )
