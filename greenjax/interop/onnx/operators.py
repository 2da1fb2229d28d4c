"""The nodes of each primitive of JAX.

A rule takes the graph, the equation of the traced function and the values that it reads. Weights, and indices that say
where tokens are, are constants.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from jax.export import is_symbolic_dim
from jax.lax import GatherScatterMode

from greenjax.errors import InputError
from greenjax.interop.onnx.graph import Graph, Shape, Tensor, Value


class Uncovered(InputError):
    """An operation that has no rule here."""


def covered(is_so: Any, what: str) -> None:
    if not is_so:
        raise Uncovered(what)


def whole(graph: Graph, x: Value, shape: Shape) -> Value:
    """The value with every axis as long as the traced function has it; the batch of a constant stays 1."""
    if x.shape == tuple(shape):
        return x
    if not isinstance(x, Tensor):
        return np.broadcast_to(x, [1 if is_symbolic_dim(size) else size for size in shape])
    sizes = [1 if found == size else size for found, size in zip(x.shape, shape, strict=True)]
    covered(not any(map(is_symbolic_dim, sizes)), "a constant that is repeated for every image")
    return graph.node("Expand", [x, np.array(sizes, np.int64)], shape, x.dtype)


def reshape(graph: Graph, x: Value, shape: Sequence[Any]) -> Value:
    """At most one axis depends on the batch."""
    sizes = [-1 if is_symbolic_dim(size) else size for size in shape]
    if not isinstance(x, Tensor):
        return np.reshape(x, sizes)
    return x if x.shape == tuple(shape) else graph.node("Reshape", [x, np.array(sizes, np.int64)], shape, x.dtype)


def transpose(graph: Graph, x: Value, order: Sequence[int]) -> Value:
    if not isinstance(x, Tensor):
        return np.transpose(x, order)
    shape = [x.shape[axis] for axis in order]
    return x if list(order) == sorted(order) else graph.node("Transpose", [x], shape, x.dtype, perm=list(order))


def cast(graph: Graph, x: Value, dtype: Any) -> Value:
    if not isinstance(x, Tensor):
        return np.asarray(x, dtype)
    return x if x.dtype == dtype else graph.node("Cast", [x], x.shape, dtype, to=graph.kind(dtype))


def elementwise(graph: Graph, operator: str, *inputs: Value, dtype: Any = None) -> Tensor:
    """A node that broadcasts its inputs; its type is that of the first, or `dtype`."""
    rank = max(len(x.shape) for x in inputs)
    shapes = [(1,) * (rank - len(x.shape)) + tuple(x.shape) for x in inputs]
    shape = [next((size for size in sizes if is_symbolic_dim(size) or size != 1), 1) for sizes in zip(*shapes)]
    return graph.node(operator, inputs, shape, inputs[0].dtype if dtype is None else dtype)


def plain(operator: str) -> Callable[..., Tensor]:
    """The rule of an operation that ONNX has under another name."""

    def rule(graph: Graph, eqn: Any, *inputs: Value) -> Tensor:
        dtype = eqn.outvars[0].aval.dtype
        if dtype.kind == "b":  # runtimes compare no short integers
            inputs = tuple(cast(graph, x, wider(x.dtype)) for x in inputs)
        return elementwise(graph, operator, *inputs, dtype=dtype)

    return rule


def wider(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.int32) if dtype.kind in "iu" and dtype.itemsize < 4 else dtype


def broadcast(graph: Graph, eqn: Any, x: Value, *_: Any) -> Value:
    """New axes have size 1: the node that reads them broadcasts."""
    shape: list[Any] = [1] * len(eqn.params["shape"])
    for axis, size in zip(eqn.params["broadcast_dimensions"], x.shape):
        shape[axis] = size
    return reshape(graph, x, shape)


def part(graph: Graph, x: Value, corner: Sequence[int], shape: Shape) -> Value:
    """The part of this shape that begins at a corner; axes that stay whole may depend on the batch."""
    axes = [axis for axis, size in enumerate(x.shape) if size != shape[axis]]
    starts = np.array([corner[axis] for axis in axes], np.int64)
    ends = starts + np.array([shape[axis] for axis in axes], np.int64)
    return graph.node("Slice", [x, starts, ends, np.array(axes, np.int64)], shape, x.dtype) if axes else x


def cut(graph: Graph, eqn: Any, x: Value) -> Value:
    covered(set(eqn.params["strides"] or (1,)) == {1}, "a slice with strides")
    return part(graph, x, eqn.params["start_indices"], eqn.outvars[0].aval.shape)


def split(graph: Graph, eqn: Any, x: Value) -> list[Value]:
    starts = [0, *accumulate(map(int, eqn.params["sizes"]))]
    corners = [[start if axis == eqn.params["axis"] else 0 for axis in range(len(x.shape))] for start in starts]
    return [part(graph, x, corner, made.aval.shape) for corner, made in zip(corners, eqn.outvars)]


def pad(graph: Graph, eqn: Any, x: Value, filler: Value) -> Value:
    sides, kind = eqn.params["padding_config"], wider(x.dtype)  # runtimes pad no short integers
    covered(all(low >= 0 <= high and not inner for low, high, inner in sides), "a padding of other things than sides")
    pads = np.array([low for low, _, _ in sides] + [high for _, high, _ in sides], np.int64)
    inputs = [cast(graph, x, kind), pads, np.asarray(filler, kind)]
    return cast(graph, graph.node("Pad", inputs, eqn.outvars[0].aval.shape, kind), x.dtype)


def reduction(graph: Graph, eqn: Any, x: Value) -> Tensor:
    axes, shape = eqn.params["axes"], eqn.outvars[0].aval.shape
    if eqn.primitive.name == "reduce_sum":  # in this opset, it alone takes axes as an input
        return graph.node("ReduceSum", [x, np.array(axes, np.int64)], shape, x.dtype, keepdims=0)
    return graph.node("ReduceMax", [x], shape, x.dtype, axes=list(axes), keepdims=0)


def concatenate(graph: Graph, eqn: Any, *parts: Value) -> Value:
    """A constant part, such as a class token, is repeated for every image."""
    batch = graph.node("Shape", [next(x for x in parts if isinstance(x, Tensor))], (1,), np.int64, start=0, end=1)

    def for_all(x: Value, shape: Shape) -> Value:
        if isinstance(x, Tensor) or not is_symbolic_dim(shape[0]):
            return x
        sizes = graph.node("Concat", [batch, np.array(shape[1:], np.int64)], (len(shape),), np.int64, axis=0)
        return graph.node("Expand", [x, sizes], shape, x.dtype)

    parts = tuple(for_all(x, read.aval.shape) for x, read in zip(parts, eqn.invars))
    return graph.node("Concat", parts, eqn.outvars[0].aval.shape, parts[0].dtype, axis=eqn.params["dimension"])


def dot(graph: Graph, eqn: Any, x: Value, y: Value) -> Value:
    """A product of matrices, one for each index of the axes that both have."""
    (x_summed, y_summed), (x_shared, y_shared) = eqn.params["dimension_numbers"]
    x_own = [axis for axis in range(len(x.shape)) if axis not in (*x_summed, *x_shared)]
    y_own = [axis for axis in range(len(y.shape)) if axis not in (*y_summed, *y_shared)]
    x = transpose(graph, x, (*x_shared, *x_own, *x_summed))
    y = transpose(graph, y, (*y_shared, *y_summed, *y_own))
    shape, shared = eqn.outvars[0].aval.shape, len(x_shared)
    rows, columns = (math.prod(sizes) for sizes in (shape[shared:][: len(x_own)], shape[shared:][len(x_own) :]))
    inner = math.prod(y.shape[shared:][: len(y_summed)])
    # Of a constant, axes that depend on the batch are 1.
    x = reshape(graph, x, (*x.shape[:shared], rows, inner))
    y = reshape(graph, y, (*y.shape[:shared], inner, columns))
    return reshape(graph, graph.node("MatMul", [x, y], (*shape[:shared], rows, columns), x.dtype), shape)


def gather(graph: Graph, eqn: Any, x: Value, index: Value) -> Value:
    """Rows of the tensor, or elements along several of its axes, at constant places; or one part of it."""
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    axes = numbers.collapsed_slice_dims
    if not axes and not isinstance(index, Tensor) and np.ndim(index) == 1:
        corner = dict.fromkeys(range(len(shape)), 0) | dict(zip(numbers.start_index_map, np.asarray(index).tolist()))
        return part(graph, x, list(corner.values()), shape)
    places = constant_places(index, axes, x.shape)
    rest = [axis for axis in range(len(shape)) if not 0 <= axis - axes[0] < places.ndim]
    rows = all(axis in axes or size == sizes[axis] for axis, size in enumerate(x.shape))
    filler = eqn.params["fill_value"]
    kept = places.min() >= 0 or (eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP and filler is not None)
    rows &= numbers.start_index_map == axes and list(numbers.offset_dims) == rest
    covered(rows and kept, "a gather of other things than rows")
    size = math.prod(x.shape[axis] for axis in axes)
    joined = reshape(graph, x, (*x.shape[: axes[0]], size, *x.shape[axes[-1] + 1 :]))
    return take(graph, joined, axes[0], places, filler)


def scatter(graph: Graph, eqn: Any, x: Value, index: Value, updates: Value) -> Value:
    """Rows put at constant places of an array of one number: a gather by the inverse."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    axes, fillers = numbers.inserted_window_dims, [] if isinstance(x, Tensor) else np.unique(x).tolist()
    rows = numbers.scatter_dims_to_operand_dims == axes and len(fillers) == 1
    covered(rows, "a scatter of other things than rows into one number")
    places, inverse = constant_places(index, axes, shape), np.full(math.prod(shape[axis] for axis in axes), -1)
    inside = places >= 0
    inverse[places[inside]] = np.flatnonzero(inside)
    return reshape(graph, take(graph, updates, axes[0], inverse, fillers[0]), shape)


def constant_places(index: Value, axes: Sequence[int], shape: Shape) -> np.ndarray:
    """The place of each index among all elements of the axes, which are neighbours; -1 beyond their ends."""
    neighbours = axes and list(axes) == list(range(axes[0], axes[-1] + 1))
    covered(neighbours and not isinstance(index, Tensor), "an index that depends on the image")
    sizes, parts = [shape[axis] for axis in axes], np.moveaxis(np.asarray(index), -1, 0)
    inside = np.all([(part >= 0) & (part < size) for part, size in zip(parts, sizes)], axis=0)
    return np.where(inside, np.ravel_multi_index(tuple(parts), sizes, mode="clip"), -1)


def take(graph: Graph, x: Value, axis: int, places: np.ndarray, filler: Any) -> Value:
    """x at these places of an axis; the filler where a place is -1."""
    if np.array_equal(places, np.arange(x.shape[axis])):
        return x
    shape, there = (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]), places >= 0
    taken = graph.node("Gather", [x, np.maximum(places, 0).astype(np.int32)], shape, x.dtype, axis=axis)
    if there.all():
        return taken
    there = there.reshape(places.shape + (1,) * (len(x.shape) - axis - 1))
    return elementwise(graph, "Where", there, taken, np.asarray(filler, x.dtype), dtype=x.dtype)


def convolution(graph: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    covered(set(params["lhs_dilation"]) == {1} and params["batch_group_count"] == 1, "a transposed convolution")
    inputs = [transpose(graph, x, numbers.lhs_spec), transpose(graph, kernel, numbers.rhs_spec)]
    pads = [low for low, _ in params["padding"]] + [high for _, high in params["padding"]]
    options = dict(strides=list(params["window_strides"]), dilations=list(params["rhs_dilation"]), pads=pads)
    shape = [eqn.outvars[0].aval.shape[axis] for axis in numbers.out_spec]
    y = graph.node("Conv", inputs, shape, x.dtype, group=params["feature_group_count"], **options)
    return transpose(graph, y, np.argsort(numbers.out_spec).tolist())


def unchanged(graph: Graph, eqn: Any, x: Value) -> Value:
    return x


def other_shape(graph: Graph, eqn: Any, x: Value, *_: Any) -> Value:
    return reshape(graph, x, eqn.outvars[0].aval.shape)


BROADCASTING: dict[str, Callable[..., Value]] = {
    **{
        name: plain(name.capitalize())
        for name in ("add", "and", "div", "erf", "exp", "max", "mul", "not", "sqrt", "sub")
    },
    "broadcast_in_dim": broadcast,
    "convert_element_type": lambda graph, eqn, x: cast(graph, x, eqn.outvars[0].aval.dtype),
    "eq": plain("Equal"),
    "lt": plain("Less"),
    "ne": lambda graph, eqn, x, y: elementwise(graph, "Not", plain("Equal")(graph, eqn, x, y)),
    "optimization_barrier": unchanged,
    "rsqrt": lambda graph, eqn, x: elementwise(graph, "Reciprocal", elementwise(graph, "Sqrt", x)),
    "select_n": lambda graph, eqn, which, no, yes: elementwise(graph, "Where", which, yes, no, dtype=yes.dtype),
    "square": lambda graph, eqn, x: elementwise(graph, "Mul", x, x),
    "stop_gradient": unchanged,
}
# These get every axis at its whole length.
WHOLE: dict[str, Callable[..., Value]] = {
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "gather": gather,
    "pad": pad,
    "reduce_max": reduction,
    "reduce_sum": reduction,
    "reshape": other_shape,
    "scatter": scatter,
    "slice": cut,
    "split": split,
    "squeeze": other_shape,
    "transpose": lambda graph, eqn, x: transpose(graph, x, eqn.params["permutation"]),
}
