"""Random initial values, bit for bit those of nnx.initializers, drawn by one compiled program for all shapes.

XLA needs 0.3 s to compile an initialiser, for every shape again: a Swin-B has 28. But each value depends on the key and
on its place in the flat array alone, by the threefry generator that JAX has by default. So a program draws CHUNK values
from any place on, and arrays are put together from such chunks on the host.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Key, UInt32

CHUNK = 1 << 16
FAR = 100.0  # deviations at which `small_normal` is cut off: in effect it is not


def _uniform(key: Key[Array, ""], first: UInt32[Array, ""]) -> Float[Array, " chunk"]:
    """The values jax.random.uniform(key, shape, minval=-1) at the flat indices from `first` on."""
    index = first + jnp.arange(CHUNK, dtype=jnp.uint32)
    words = threefry_2x32(jax.random.key_data(key), jnp.concatenate([jnp.zeros_like(index), index]))
    mantissa = (words[:CHUNK] ^ words[CHUNK:]) >> 9 | 0x3F800000  # of a float in [1, 2)
    return 2 * (jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1) - 1


def _normal(key: Key[Array, ""], first: UInt32[Array, ""]) -> Float[Array, " chunk"]:
    """The values jax.random.truncated_normal(key, -FAR, FAR, shape) at the flat indices from `first` on."""
    normal = np.float32(np.sqrt(2)) * jax.lax.erf_inv(_uniform(key, first))
    return jnp.clip(normal, *(np.nextafter(np.float32(end), np.float32(0)) for end in (-FAR, FAR)))


def _initializer(draw: Callable[..., Array], scale: Callable[[Sequence[int]], Any], reference: Any) -> Any:
    """An initialiser: values of `draw`, times the scale of a shape; in a trace, or in float64, those of `reference`."""
    draw, reference = jax.jit(draw), jax.jit(reference, static_argnums=(1, 2))

    def initial(key: Key[Array, ""], shape: Sequence[int], dtype: Any) -> Any:
        if isinstance(key, Tracer) or dtype != jnp.float32:
            return reference(key, shape, dtype)
        size = math.prod(shape)
        chunks = [draw(key, np.uint32(first)) for first in range(0, size, CHUNK)]
        return np.concatenate(chunks)[:size].reshape(shape) * np.float32(scale(shape))

    return initial


xavier = _initializer(
    _uniform, lambda shape: np.sqrt(np.float32(3) * np.float32(2 / sum(shape))), nnx.initializers.xavier_uniform()
)
small_normal = _initializer(_normal, lambda shape: 0.02, nnx.initializers.truncated_normal(0.02, lower=-FAR, upper=FAR))
token_normal = partial(jax.jit, static_argnums=(1, 2))(nnx.initializers.normal(0.02))


def scaled_uniform(scale: Callable[[Sequence[int]], float]) -> Any:
    """Values spread evenly between -s and s, where s is the scale of the array's shape."""
    return _initializer(
        _uniform, scale, lambda key, shape, dtype: scale(shape) * jax.random.uniform(key, shape, dtype, -1)
    )


def scaled_normal(scale: Callable[[Sequence[int]], float]) -> Any:
    """Normal values; their deviation is the scale of the array's shape."""

    def reference(key: Any, shape: Sequence[int], dtype: Any) -> Array:
        return scale(shape) * jax.random.truncated_normal(key, -FAR, FAR, shape, dtype)

    return _initializer(_normal, scale, reference)
