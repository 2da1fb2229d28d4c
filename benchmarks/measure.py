"""Times compiled programs, and measures the rates that limit them: matrix products and a copy."""

import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from greenjax.config.flags import positive
from greenjax.runtime.processes import cores

TIMING = {  # flags of suites that time programs
    "--batch": dict(type=positive, default=8, help="images at a time"),
    "--repeats": dict(type=positive, default=15, help="measurements of each; the median counts"),
}

Timed = tuple[Callable[..., Any], tuple[Any, ...]]  # a compiled program and its arguments

# Arrays exceed every cache, and kernels on a GPU last much longer than their start.
SIDES = {"cpu": 2048, "gpu": 8192}  # of the square matrices that are multiplied
COPIED = {"cpu": 2**28, "gpu": 2**31}  # bytes of the array that is copied


def interleaved_medians(programs: dict[Any, Timed], repeats: int) -> dict[Any, float]:
    """Median seconds of each compiled program; programs take turns, so that all meet the same disturbances."""
    return {name: statistics.median(times) for name, times in interleaved_seconds(programs, repeats).items()}


def interleaved_seconds(programs: dict[Any, Timed], repeats: int) -> dict[Any, list[float]]:
    """Seconds of each program by round.

    A turn is two runs, and the second one counts: the first finds memory and caches as another program left them.
    Swin-B's update takes up to twice as long right after one of PyTorch.
    """
    seconds = {name: [] for name in programs}
    for _ in range(repeats):
        for name, (program, args) in programs.items():
            jax.block_until_ready(program(*args))
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians_one_by_one(programs: dict[Any, Timed], repeats: int) -> dict[Any, float | None]:
    """Median seconds of each program, one program after the other; None: the device has too little memory for it.

    For a device that runs nothing else and whose memory does not hold several programs at once.
    """
    medians: dict[Any, float | None] = {}
    for name, program in programs.items():
        try:
            medians |= interleaved_medians({name: program}, repeats)
        except RuntimeError as error:  # JAX's and PyTorch's are of this class
            if not re.search(r"RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
                raise
            medians[name] = None
    return medians


def product(dtype: str, side: int | None = None) -> tuple[Timed, int, str]:
    """A large product of square matrices of this type, with its FLOPs and the types of its operands and its result.

    Of the results that XLA offers, this type and float32, it is the faster one.
    """
    side = side or SIDES[_kind()]
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)  # a GPU multiplies constants 13 % faster
    ways: dict[str, Timed] = {}
    for result in dict.fromkeys((dtype, "float32")):
        program = jax.jit(jnp.matmul, static_argnames="preferred_element_type")
        ways[result] = program.lower(a, a, preferred_element_type=result).compile(), (a, a)
    seconds = {result: min(times) for result, times in interleaved_seconds(ways, 3).items()}
    best = min(seconds, key=seconds.__getitem__)
    return ways[best], 2 * side**3, f"{dtype} to {best}"


def copy(size: int | None = None) -> tuple[Timed, int]:
    """A copy of a large array by XLA's threads, and the bytes that it reads and writes."""
    size = size or COPIED[_kind()]
    # The negation makes XLA copy by a loop on its threads. Writing over the donated array maps no new pages.
    program = jax.jit(lambda old, new: -new, donate_argnums=0, keep_unused=True)
    arrays = [jnp.zeros(size // 4, jnp.float32), jnp.ones(size // 4, jnp.float32)]

    def run() -> jax.Array:
        old, new = arrays
        arrays[:] = new, program(old, new)
        return arrays[1]

    return (run, ()), 2 * (size // 4 * 4)


def _kind() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def ratio_quartiles(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile over rounds of seconds / reference."""
    return np.quantile(np.divide(seconds, reference), (0.25, 0.5, 0.75)).tolist()


def machine() -> dict[str, Any]:
    """The device and the versions that a suite ran with."""
    device = jax.devices()[0].device_kind
    return {"device": device, "cores": cores(), "python": platform.python_version(), "jax": jax.__version__}
