"""A graph of ONNX that grows node by node."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from jax.export import is_symbolic_dim

OPSET = 17  # of the year 2022, the first with LayerNormalization: runtimes of any kind know it
IR_VERSION = 8  # of the file format, which came with the opset

Shape = Sequence[Any]  # whole numbers, and the symbol of the batch or a multiple of it


class Tensor(NamedTuple):
    """An array that the graph computes. An axis of size 1 may stand for a longer one, as in NumPy."""

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype


Value = Any  # a Tensor, or an array that follows from the weights alone


class Graph:
    """Nodes in the order of computation. Equal nodes and equal constants are there once."""

    def __init__(self, names: Mapping[int, str]):
        """`names` of constants, by the identity of the array."""
        self._onnx: Any = import_module("onnx")  # an extra
        self._names = names
        self._nodes: dict[Any, tuple[Any, Tensor]] = {}
        self._constants: dict[Any, tuple[str, np.ndarray]] = {}

    def node(self, operator: str, inputs: Sequence[Value], shape: Shape, dtype: Any, **attributes: Any) -> Tensor:
        """The output of a node. `shape` and `dtype` are what ONNX computes."""
        names = [value.name if isinstance(value, Tensor) else self._constant(value) for value in inputs]
        key = operator, *names, repr(sorted(attributes.items()))
        if key not in self._nodes:
            output = Tensor(f"{operator.lower()}_{len(self._nodes)}", tuple(shape), np.dtype(dtype))
            made = self._onnx.helper.make_node(operator, names, [output.name], output.name, **attributes)
            self._nodes[key] = made, output
        return self._nodes[key][1]

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        key = array.dtype, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self._constants:
            self._constants[key] = self._names.get(id(value), f"constant_{len(self._constants)}"), array
        return self._constants[key][0]

    def model(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], title: str) -> Any:
        """The contents of a file: the nodes that the outputs need."""
        helper = self._onnx.helper
        nodes = [helper.make_node("Identity", [value.name], [name], name) for name, value in outputs.items()]
        needed = {value.name for value in outputs.values()}
        for made, output in reversed(self._nodes.values()):
            if output.name in needed:
                needed.update(made.input)
                nodes.insert(0, made)
        constants = [(array, name) for name, array in self._constants.values() if name in needed]
        weights = [self._onnx.numpy_helper.from_array(*constant) for constant in constants]
        ends = [[self._declared(*end) for end in given.items()] for given in (inputs, outputs)]
        graph, opsets = helper.make_graph(nodes, title, *ends, weights), [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, producer_name="greenjax", opset_imports=opsets, ir_version=IR_VERSION)

    def kind(self, dtype: Any) -> int:
        """ONNX's number of a type."""
        return self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def _declared(self, name: str, value: Tensor) -> Any:
        shape = ["batch" if is_symbolic_dim(size) else size for size in value.shape]
        return self._onnx.helper.make_tensor_value_info(name, self.kind(value.dtype), shape)
