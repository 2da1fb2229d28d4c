"""The cost of a run: FLOPs of the matrix products of a program, the devices' peak rate, the memory in use."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

# Dense bfloat16 FLOP/s by the makers' data sheets, by whole words of a device's name; the longest that fits counts.
PEAK_FLOPS = {
    "A100": 312e12,
    "A10G": 70e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "TPU v4": 275e12,
    "TPU v5e": 197e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of dense matrix products of this type on a device of this kind; None where the rate is not known."""
    names = sorted((name for name in PEAK_FLOPS if re.search(rf"\b{name}\b", device_kind)), key=len)
    return PEAK_FLOPS[names[-1]] if names and dtype == "bfloat16" else None


def matmul_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """FLOPs of all matrix products and convolutions of a traced program, on all devices; a scan counts every iteration.

    Multiplications and additions count one each. Callbacks count nothing, a branch counts as its dearest case, a loop
    of unknown length counts once, a Pallas kernel counts its own estimate. Unused results, such as the gradient of the
    pixels, do not count: XLA drops them.
    """
    plain: Any = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return _products(dce_jaxpr(plain, [True] * len(plain.outvars))[0])


def _products(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    total = 0
    for eqn in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            total += _product(eqn)
        elif name == "conv_general_dilated":
            total += _convolution(eqn)
        elif name == "pallas_call":
            total += params["cost_estimate"].flops if params["cost_estimate"] else 0
        elif name == "cond":
            total += max(_products(branch) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
            total += times * sum(_products(inner) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr | Jaxpr):
                yield each


def _product(eqn: JaxprEqn) -> int:
    left = _shape(eqn.invars[0])
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: JaxprEqn) -> int:
    kernel, numbers = _shape(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[axis] for axis in numbers[1:])  # input channels of a group, and the window
    return 2 * math.prod(_shape(eqn.outvars[0])) * taps


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def peak_memory() -> int | None:
    """Peak bytes in use on the fullest device of this process; None where devices do not say, such as a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    found = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    return max(found, default=None)
