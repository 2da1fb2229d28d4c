"""The nodes of functions of greenjax that ONNX has operators for; rules as in operators.py."""

from functools import partial, reduce
from typing import Any

import numpy as np
from jax.extend.core import Literal

from greenjax.interop.onnx.graph import Graph, Tensor, Value
from greenjax.interop.onnx.operators import elementwise, transpose


def matmul(graph: Graph, eqn: Any, x: Value, kernel: Value, bias: Value = None) -> Tensor:
    """ops.primitives.matmul."""
    y = graph.node("MatMul", [x, kernel], eqn.outvars[0].aval.shape, x.dtype)
    return y if bias is None else elementwise(graph, "Add", y, bias)


def gelu(graph: Graph, eqn: Any, x: Value) -> Tensor:
    """ops.primitives.gelu, in the steps that runtimes join into one."""
    root, one, half = (np.asarray(number, x.dtype) for number in (2**0.5, 1, 0.5))
    erf = elementwise(graph, "Erf", elementwise(graph, "Div", x, root))
    return elementwise(graph, "Mul", elementwise(graph, "Mul", x, elementwise(graph, "Add", erf, one)), half)


def layer_norm(graph: Graph, eqn: Any, x: Value, scale: Value, bias: Value) -> Tensor:
    """ops.primitives.layer_norm, whose epsilon is the one number that it adds."""
    adds = [inner for inner in eqn.params["call_jaxpr"].jaxpr.eqns if inner.primitive.name == "add"]
    (epsilon,) = (float(read.val) for add in adds for read in add.invars if isinstance(read, Literal))
    return graph.node("LayerNormalization", [x, scale, bias], x.shape, x.dtype, axis=-1, epsilon=epsilon)


def attend(graph: Graph, eqn: Any, q: Value, k: Value, v: Value, *rest: Value) -> Tensor:
    """ops.group_attention.attend, with or without a bias [g, k, s, t] and windows [g, s]; slots of padding, which
    nobody reads, get other values."""
    scaled = elementwise(graph, "Mul", q, np.asarray(q.shape[-1] ** -0.5, q.dtype))
    keys = transpose(graph, k, (0, 1, 2, 4, 3))
    logits = graph.node("MatMul", [scaled, keys], (*q.shape[:-1], k.shape[3]), q.dtype)
    added = [hidden(np.asarray(given)) if len(given.shape) == 2 else given for given in rest]
    added = [value for value in added if isinstance(value, Tensor) or value.any()]
    if added:  # the sum of bias and mask first: a runtime computes it once, when it loads the file
        logits = elementwise(graph, "Add", logits, reduce(partial(elementwise, graph, "Add"), added))
    p = graph.node("Softmax", [logits], logits.shape, q.dtype, axis=-1)
    return graph.node("MatMul", [p, v], q.shape, q.dtype)


def hidden(window: np.ndarray) -> np.ndarray:
    """0 for pairs of slots that see each other, else -inf: [g, 1, s, s]. A slot of padding sees all."""
    seen = (window[:, :, None] == window[:, None, :]) | (window[:, :, None] < 0)
    return np.where(seen, 0, -np.inf).astype(np.float32)[:, None]


FUNCTIONS = {"attend": attend, "gelu": gelu, "layer_norm": layer_norm, "matmul": matmul}
