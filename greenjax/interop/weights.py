"""The weights of a model as a flat dictionary, {"encoder/norm/scale": array, ...}, and how they fit another model."""

import re
from dataclasses import dataclass, field
from itertools import takewhile

import jax
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from greenjax.backbones.registry import family_of
from greenjax.backbones.rules import Resizing, Shape
from greenjax.errors import InputError
from greenjax.interop.entries import of_classes, part_of
from greenjax.interop.layouts import RESIZE_METHODS
from greenjax.models import Backbone
from greenjax.models.classifier import BatchNorm
from greenjax.runtime.checkpoint import flatten_tree

Weights = dict[str, Shaped[np.ndarray, "..."]]

SHOWN = 10  # misfits
LAST_NORM = ("encoder/norm/scale", "encoder/norm/bias")  # a detector norms every stage instead


@dataclass
class Report:
    """The arrays of a model and the tensors of a file that were not simply taken over."""

    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # not behind the prefix of the weights
    prefix: str = ""
    resized: dict[str, list[str]] = field(default_factory=dict)  # by the line of their `Resizing`
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [f"new, as initialised: {_by_part(self.new)}"] if self.new else []
        lines += [f"dropped: {_by_part(self.dropped)}"] if self.dropped else []
        behind = f", not behind {self.prefix!r}" if self.prefix else ""
        lines += [f"left out{behind}: {_by_part(self.left_out, self.prefix)}"] if self.left_out else []
        for line, names in self.resized.items():
            stages = sorted({int(found[1]) + 1 for name in names if (found := re.search(r"stages/(\d+)", name))})
            lines.append(line + (f": stage {', '.join(map(str, stages))}" if stages else ""))
        return lines + self.notes


def flat_weights(model: Backbone) -> Weights:
    """The parameters of a model, on the host."""
    flat = flatten_tree(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {name: np.asarray(value) for name, value in flat.items()}


def finite_weights(model: Backbone) -> Weights:
    """As `flat_weights`. Raises InputError for weights that are not finite, which no file gets."""
    weights = flat_weights(model)
    if bad := [name for name, value in weights.items() if not np.isfinite(value).all()]:
        raise InputError(
            f"{len(bad)} of {len(weights)} arrays of the model are not finite, such as {bad[0]}: nothing written"
        )
    return weights


def parameter_shapes(model: Backbone) -> dict[str, Shape]:
    """The shape of every parameter, by its name in `flat_weights`; the model may be one of shapes alone."""
    flat = flatten_tree(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def put_weights(model: Backbone, weights: Weights) -> None:
    """Replaces all parameters of a model."""
    state = nnx.state(model, nnx.Param)
    leaves = [jax.numpy.asarray(weights[name]) for name in flatten_tree(nnx.to_pure_dict(state))]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))


def folded(weights: Weights) -> Weights:
    """A linear probe's weights as those of a plain classifier: its batch norm becomes part of its head."""
    if "batch_norm/mean" not in weights:
        return weights
    mean, var = (weights[f"batch_norm/{name}"].astype(np.float64) for name in ("mean", "var"))
    kernel = weights["head/kernel"] / np.sqrt(var + BatchNorm.epsilon)[:, None]
    head = {"head/kernel": kernel, "head/bias": weights["head/bias"] - mean @ kernel}
    rest = {key: value for key, value in weights.items() if part_of(key) not in ("head", "batch_norm")}
    return rest | {key: value.astype(np.float32) for key, value in head.items()}


def fits(ours: str, found: Shape, wanted: Shape, resizing: Resizing | None) -> bool:
    """Can an array of shape `found` become the array `ours` of shape `wanted`?"""
    if resizing is not None and ours.endswith(resizing.ending):
        return resizing.fits(found, wanted)
    return found == wanted


def adapt(
    weights: Weights, model: Backbone, report: Report, resize: str = RESIZE_METHODS[0], *, new_head: bool = False
) -> Weights:
    """The weights that a model takes: arrays of another window or image size are resized, parts it lacks are dropped.

    Writes to `report`. Raises InputError with all misfits.
    """
    shapes, resizing = parameter_shapes(model), family_of(model.config.model.name).resizing
    if new_head:
        weights = {key: value for key, value in weights.items() if not of_classes(key)}
    parts, wanted = set(map(part_of, weights)), set(map(part_of, shapes))
    lost = () if LAST_NORM[0] in shapes else LAST_NORM
    used = {key: value for key, value in weights.items() if part_of(key) in wanted and key not in lost}
    report.dropped += [key for key in weights if key not in used]
    weights = used
    lacking = (key for key in shapes if part_of(key) not in parts or (new_head and of_classes(key)))
    report.new += [key for key in lacking if key not in report.new]
    fitted: Weights = {}
    misfits = [f"only in the weights: {key}" for key in weights if key not in shapes]
    for key, shape in shapes.items():
        if key in report.new:
            continue
        if key not in weights:
            misfits.append(f"not in the weights: {key} {list(shape)}")
        elif weights[key].shape == shape:
            fitted[key] = weights[key]
        elif resizing is not None and fits(key, weights[key].shape, shape, resizing):
            fitted[key] = _resized(key, weights[key], shape, resize, resizing, report)
        else:
            misfits.append(f"{key} is {list(weights[key].shape)} in the weights, {list(shape)} in the model")
    if misfits:
        raise InputError(misfits_text("the weights do not fit the model", misfits))
    return fitted


def _resized(key: str, array: np.ndarray, shape: Shape, method: str, resizing: Resizing, report: Report) -> np.ndarray:
    try:
        resized = resizing.resized(array, shape, method)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    report.resized.setdefault(resizing.line(array.shape, shape, method), []).append(key)
    return resized


def misfits_text(first: str, misfits: list[str], hint: str = "") -> str:
    """An error of several lines: the first ten misfits, and how many more there are."""
    count = f"{len(misfits)} misfit{'' if len(misfits) == 1 else 's'}"
    lines = misfits if len(misfits) <= SHOWN + 1 else [*misfits[:SHOWN], f"and {len(misfits) - SHOWN} more"]
    return "\n".join([f"{first}, {count}{hint}:", *(f"  {line}" for line in lines)])


def _by_part(names: list[str], beside: str = "") -> str:
    """`decoder (20 tensors)`. A part's name goes down to where it leaves the prefix `beside`."""
    parts: dict[str, int] = {}
    for name in names:
        words, before = re.split(r"[/.]", name), beside.split(".")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, before)))
        part = ".".join(words[: shared + 1])
        parts[part] = parts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in parts.items())
