"""The entries of a layout for one model: which of its arrays become which tensors, by the layout's tables."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.rules import Layout, Rule, Shape

# Name prefixes of the layers with outputs for classes: a classifier's head, and the predictors of a detector.
PREDICTORS = ("head/", "roi_heads/box_predictor/", "roi_heads/mask_predictor/mask_fcn_logits/")


class Entry(NamedTuple):
    """Arrays of a model and the tensors that they become; as `Part`, for the names of one model."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_torch: Callable[..., tuple[np.ndarray, ...]]
    from_torch: Callable[..., tuple[np.ndarray, ...]]

    @property
    def part(self) -> str:
        return part_of(self.ours[0])


def part_of(name: str) -> str:
    """The part of a model that an array belongs to: "encoder", "decoder", "head", ..."""
    return name.partition("/")[0]


def of_classes(name: str) -> bool:
    """Whether the named array belongs to a layer with outputs for classes, which `new_head` draws anew."""
    return name.startswith(PREDICTORS)


def entries(layout: Layout, names: Iterable[str], config: ConfigDict, *, whole: bool) -> list[Entry]:
    """The entries of the named arrays of a model, in the order of the tables.

    `whole`: the file holds more than the encoder.
    """
    modules: dict[str, set[str]] = {}
    for name in names:
        for cut in (match.start() for match in re.finditer("/", name)):
            modules.setdefault(name[:cut], set()).add(name[cut + 1 :])
        modules.setdefault("", set()).add(name)
    tables = [(layout.encoder, _stem(layout, whole)), (layout.head, "")]
    tables += [(table, "") for table in (*layout.decoders_of(config), layout.detector)]
    return [
        entry
        for table, stem in tables
        for rule in table
        for module, arrays in modules.items()
        for entry in _entries(rule, module, arrays, stem, config)
    ]


def _stem(layout: Layout, whole: bool) -> str:
    """The prefix of the encoder's names."""
    return layout.prefix + (layout.model_prefix if whole else "")


def _entries(rule: Rule, module: str, arrays: set[str], stem: str, config: ConfigDict) -> Iterable[Entry]:
    """The entries of one rule for one module; none where the rule is about other modules. The first part of the rule
    that takes an array has it."""
    pattern = rule.ours.replace("{i}", r"(?P<i>\d+)").replace("{j}", r"(?P<j>\d+)")
    match = re.fullmatch(pattern, module)
    if match is None:
        return
    depths, at = config.model.depths, {key: int(value) for key, value in match.groupdict().items()}
    if "i" in at:
        at |= dict(next=at["i"] + 1, odd=2 * at["i"] + 1, even=2 * at["i"] + 2)
        at["n"] = sum(depths[: at["i"]]) + at.get("j", 0)
    name, taken = stem + rule.theirs.format(last=len(depths) - 1, stages=len(depths), **at), set()
    for part in rule.kind:
        if arrays.issuperset(part.ours) and taken.isdisjoint(part.ours):
            taken.update(part.ours)
            ours = tuple(f"{module}/{suffix}".lstrip("/") for suffix in part.ours)
            theirs = tuple(f"{name}.{suffix}".lstrip(".") for suffix in part.theirs)
            yield Entry(ours, theirs, part.to_torch, part.from_torch)


def fixed_tensors(layout: Layout, config: ConfigDict, *, whole: bool) -> dict[str, np.ndarray]:
    """The tensors that a strict load needs besides the model's parameters."""
    return {_stem(layout, whole) + name: value for name, value in layout.fixed(config).items()}


class Expected(NamedTuple):
    """The shape of a tensor, and the arrays that it becomes."""

    shape: Shape
    ours: str


def expected_tensors(wanted: list[Entry], shapes: Mapping[str, Shape], config: ConfigDict) -> dict[str, Expected]:
    """The tensors that a file needs for these entries."""
    expected = {}
    for entry in wanted:
        # Only shapes matter: a view of one zero has them all.
        zeros = (np.broadcast_to(np.float32(0), shapes[ours]) for ours in entry.ours)
        for theirs, array in zip(entry.theirs, entry.to_torch(config, *zeros), strict=True):
            expected[theirs] = Expected(array.shape, " and ".join(entry.ours))
    return expected
