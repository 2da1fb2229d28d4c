"""A jitted function that XLA compiles in a background thread, while weights are drawn and data workers start."""

import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled, Wrapped

from greenjax.runtime.cost import matmul_flops

_COMPILATIONS: weakref.WeakSet[Future] = weakref.WeakSet()


def compiling() -> bool:
    """Whether a compilation is under way. The interpreter waits for its end before it exits, for minutes perhaps."""
    return not all(each.done() for each in _COMPILATIONS)


class _Traced(NamedTuple):
    flops: int
    compiled: Future[Compiled]


class BackgroundJit:
    """A jitted function that is compiled once: after `start` or a call it refuses other shapes and shardings."""

    def __init__(self, jitted: Wrapped):
        self._jitted = jitted
        self._traced: _Traced | None = None

    def start(self, *shapes: Any) -> None:
        """Traces the function for arguments of these shapes and shardings; XLA compiles it while the caller goes on.

        `shapes`: trees of jax.ShapeDtypeStruct, all on the same devices.
        """
        traced = self._jitted.trace(*shapes)
        pool = ThreadPoolExecutor(max_workers=1)
        self._traced = _Traced(matmul_flops(traced.jaxpr), pool.submit(traced.lower().compile))
        _COMPILATIONS.add(self._traced.compiled)
        pool.shutdown(wait=False)  # the thread ends with the compilation

    def compiled_within(self, seconds: float) -> bool:
        """Waits for the compilation, at most so many seconds; whether it has ended."""
        return bool(wait([self._started().compiled], seconds).done)

    def wait(self) -> Compiled:
        """Waits for the compilation and returns the executable."""
        return self._started().compiled.result()

    def __call__(self, *arguments: Any) -> Any:
        """Runs the executable. Compiles it for these arguments where `start` was not called."""
        if self._traced is None:
            self.start(*jax.tree.map(_shape, arguments))
        return self.wait()(*arguments)

    @property
    def flops(self) -> int:
        """FLOPs of all matrix products of one call, on all devices together."""
        return self._started().flops

    def _started(self) -> _Traced:
        if self._traced is None:
            raise RuntimeError("the function was neither started nor called")
        return self._traced


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
