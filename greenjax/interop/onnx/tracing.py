"""A traced function as nodes: what follows from the weights alone is computed now, the rest by the graph."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.export import symbolic_shape
from jax.extend.core import Literal

from greenjax.interop.onnx.functions import FUNCTIONS
from greenjax.interop.onnx.graph import Graph, Tensor, Value
from greenjax.interop.onnx.operators import BROADCASTING, WHOLE, covered, whole

# Constants that need no program of XLA, which would compile one for each operation and shape.
IN_NUMPY: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "eq", "ge", "lt", "mul", "ne", "sub")},
    "rem": np.fmod,
    "select_n": lambda which, no, yes: np.where(which, yes, no),
    "sign": np.sign,
}
INNER = ("jaxpr", "call_jaxpr", "call")  # the names under which an equation holds the function that it calls
SHAPES = ("broadcast_in_dim", "reshape", "squeeze", "transpose")  # rules that work on constants, too

Specs = Mapping[str, jax.ShapeDtypeStruct]


def traced(
    function: Callable[..., Any], params: Any, names: Mapping[int, str], inputs: Specs
) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    """The graph of function(params, *inputs), its inputs and outputs, for any batch, which is the first axis.

    `inputs` are those of one image, `names` those of parameters by their identity. Raises Uncovered.
    """
    (batch,) = symbolic_shape("batch")
    specs = [jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in inputs.values()]
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(params, *specs)
    given = {name: Tensor(name, spec.shape, np.dtype(spec.dtype)) for name, spec in zip(inputs, specs)}
    found = _run(graph := Graph(names), closed, [*jax.tree.leaves(params), *given.values()])
    return graph, given, jax.tree.unflatten(jax.tree.structure(outputs), found)


def _run(graph: Graph, closed: Any, values: Sequence[Value]) -> list[Value]:
    """The outputs of a function of these values; those of its calls are put in place of the calls."""
    jaxpr, known = closed.jaxpr, dict(zip(closed.jaxpr.constvars, closed.consts))
    known |= zip(jaxpr.invars, values)
    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _computed(graph, eqn, [_value(atom, known) for atom in eqn.invars]))
    return [_value(atom, known) for atom in jaxpr.outvars]


def _value(atom: Any, known: Mapping[Any, Value]) -> Value:
    if not isinstance(atom, Literal):
        return known[atom]
    kind: Any = atom.aval
    return np.asarray(atom.val, kind.dtype)


def _computed(graph: Graph, eqn: Any, values: list[Value]) -> Sequence[Value]:
    name, constant = eqn.primitive.name, not any(isinstance(value, Tensor) for value in values)
    if name == "platform_index":  # of no platform: the branch for all others
        return [np.int32(eqn.params["platforms"].index(None))]
    if name == "cond" and not isinstance(values[0], Tensor):
        return _run(graph, eqn.params["branches"][int(values[0])], values[1:])
    inner = next((eqn.params[key] for key in INNER if key in eqn.params), None)
    rule = FUNCTIONS.get(inner.jaxpr.debug_info.func_name) if inner is not None else WHOLE.get(name)
    if inner is not None and (rule is None or constant):
        return _run(graph, inner, values)
    if rule is not None or (constant and name not in SHAPES):
        values = [whole(graph, value, atom.aval.shape) for value, atom in zip(values, eqn.invars)]
    if constant and name not in SHAPES and not _grows(eqn):
        now = IN_NUMPY.get(name) or partial(eqn.primitive.bind, **eqn.params)
        found = now(*map(np.asarray, values))
    else:
        covered(rule or name in BROADCASTING, f"JAX's {name}")
        found = (rule or BROADCASTING[name])(graph, eqn, *values)
    return found if eqn.primitive.multiple_results and inner is None else [found]


def _grows(eqn: Any) -> bool:
    """Whether an equation reads a table many times: a table of position biases is small, those of all pairs are not."""
    found, reads = eqn.outvars[0].aval, eqn.primitive.name == "gather"
    return reads and found.dtype.kind == "f" and found.size > eqn.invars[0].aval.size
