"""How programs are timed, and on what; what the machine can do at best."""

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

# Larger than any cache, and long enough on a GPU, too, that starting a kernel does not count.
SIDES = {"cpu": 2048, "gpu": 8192}  # of the matrices whose product sets the limit of matrix products
COPIED = {"cpu": 2**28, "gpu": 2**31}  # bytes of the array whose copy sets the limit of memory


def interleaved_medians(programs: dict[Any, Timed], repeats: int) -> dict[Any, float]:
    """Median seconds of each compiled program on its arguments, run in turn so that all meet the same disturbances."""
    return {name: statistics.median(times) for name, times in interleaved_seconds(programs, repeats).items()}


def interleaved_seconds(programs: dict[Any, Timed], repeats: int) -> dict[Any, list[float]]:
    """Seconds of each program by round.

    A turn is two runs, of which the second counts, as in a loop: the first one finds memory and caches as another
    program left them. Swin-B's update takes up to twice as long right after one of PyTorch.
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
    """Median seconds of each program after the other; None: the device has too little memory for it.

    For devices that nothing else disturbs, whose memory does not hold what several programs need at once.
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


def product(dtype: str, side: int | None = None) -> tuple[Timed, int]:
    """A large product of square matrices, and its FLOPs."""
    side = side or SIDES[_kind()]
    a = jnp.ones((side, side), dtype)
    return (jax.jit(jnp.matmul).lower(a, a).compile(), (a, a)), 2 * side**3


def copy(size: int | None = None) -> tuple[Timed, int]:
    """A copy of a large array, by as many threads as XLA takes, and the bytes that it reads and writes."""
    size = size or COPIED[_kind()]
    # A sign is changed: what copies is a loop of XLA's own, on as many threads as those take. The donated array is
    # written over, so that no page has to be mapped anew.
    program = jax.jit(lambda old, new: -new, donate_argnums=0, keep_unused=True)
    arrays = [jnp.zeros(size // 4, jnp.float32), jnp.ones(size // 4, jnp.float32)]

    def run() -> jax.Array:
        old, new = arrays
        arrays[:] = new, program(old, new)
        return arrays[1]

    return (run, ()), 2 * (size // 4 * 4)


def _kind() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def ratio_by_round(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """How many times as long as the reference: the median over rounds, each of which met its own disturbance."""
    return ratio_quartiles(seconds, reference)[1]


def ratio_quartiles(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper one of that ratio: how far to trust it."""
    return np.quantile(np.divide(seconds, reference), (0.25, 0.5, 0.75)).tolist()


def machine() -> dict[str, Any]:
    """Where and with what a suite ran."""
    device = jax.devices()[0].device_kind
    return {"device": device, "cores": cores(), "python": platform.python_version(), "jax": jax.__version__}
