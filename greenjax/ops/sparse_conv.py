"""Convolution over visible tokens (paper, section 3.2): one signature, three backends.

    native    greenjax's own (sparse_native.py): gathers visible tokens and multiplies; reads and writes nothing else
    spconv    the spconv library through a JAX callback (spconv_bridge.py)
    masked    tokens put on their dense grid, zeros elsewhere, and XLA's dense convolution: the reference

All backends take tokens [b, n, cin], kernels [kh, kw, cin / groups, cout] and a `ConvIndex` (planning/sites.py), and
give the same numbers, so a checkpoint trained with one runs with another. `shape` is the grid's rows and columns;
native does not need it. Kernel and bias are cast to the dtype of x; sums are float32 at least.

spconv has no groups. With the spconv backend, native computes convolutions with groups > 1, such as depth-wise ones,
and 1x1 convolutions, which are matrix products.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from greenjax.errors import InputError
from greenjax.ops import sparse_native
from greenjax.ops.primitives import matmul
from greenjax.planning.sites import ConvIndex, Footprint, Pair, pair, submanifold
from greenjax.planning.tokens import to_unit_major

BACKENDS = ("native", "spconv", "masked")

Tokens = Float[Array, "b n c"]
Kernel = Float[Array, "kh kw i o"]
Bias = Float[Array, " o"]
Grid = tuple[int, int]


def submanifold_conv(
    x: Tokens,
    kernel: Kernel,
    bias: Bias | None,
    index: ConvIndex,
    *,
    backend: str = "native",
    groups: int = 1,
    shape: Grid | None = None,
    callback: str = "pure",
) -> Float[Array, "b n o"]:
    """A convolution whose output sites are its input sites; the kernel's sides are odd. `callback`: spconv_bridge."""
    return _conv(
        x, kernel, bias, index, submanifold((kernel.shape[0], kernel.shape[1])), backend, groups, shape, callback
    )


def strided_conv(
    x: Tokens,
    kernel: Kernel,
    bias: Bias | None,
    index: ConvIndex,
    *,
    stride: Pair,
    padding: Pair = 0,
    backend: str = "native",
    groups: int = 1,
    shape: Grid | None = None,
    callback: str = "pure",
) -> Float[Array, "b n_out o"]:
    """A convolution to the output sites of `index` only, though the kernel may reach others."""
    footprint = Footprint((kernel.shape[0], kernel.shape[1]), pair(stride), pair(padding))
    return _conv(x, kernel, bias, index, footprint, backend, groups, shape, callback)


def block_conv(
    x: Tokens,
    kernel: Kernel,
    bias: Bias | None,
    sites: Int[Array | np.ndarray, "n 2"] | None = None,
    *,
    backend: str = "native",
    shape: Grid | None = None,
    callback: str = "pure",
) -> Float[Array, "b n//(kh*kw) o"]:
    """A convolution with kernel == stride = s, a power of two, of unit-major tokens: s * s tokens in turn give one.

    In native it is a reshape and a matrix product. `sites`, row and column of every token, and `shape` are for the
    other backends only.
    """
    s = kernel.shape[0]
    if kernel.shape[:2] != (s, s) or s & (s - 1):
        raise InputError(f"kernel of a block convolution is {kernel.shape[:2]}: expected a square, a power of two")
    if _checked(backend) == "native" or s == 1:
        blocks = x.reshape(x.shape[0], x.shape[1] // s**2, s**2 * x.shape[2])
        # A transposition, whose gradient is one too; the gradient of an index would be a scatter.
        flat = to_unit_major(kernel.reshape(1, s, s, -1), s).reshape(s**2 * x.shape[2], kernel.shape[3])
        return _plus(matmul(blocks, flat.astype(x.dtype)), bias)
    if sites is None:
        raise InputError(f"sites is None: the {backend} backend needs the row and column of every token")
    index = ConvIndex(None, None, sites, sites[:: s**2] // s)
    return _conv(x, kernel, bias, index, Footprint((s, s), (s, s)), backend, 1, shape, callback)


def check_backend(backend: str, callback: str = "pure") -> None:
    """Raises InputError for an unknown backend, and where spconv or its callback is missing."""
    if _checked(backend) == "spconv":
        from greenjax.ops import spconv_bridge

        spconv_bridge.check_callback(callback)


def _conv(
    x: Tokens,
    kernel: Kernel,
    bias: Bias | None,
    index: ConvIndex,
    footprint: Footprint,
    backend: str,
    groups: int,
    shape: Grid | None,
    callback: str,
) -> Array:
    if kernel.shape[2] * groups != x.shape[2] or kernel.shape[3] % groups:
        raise InputError(
            f"kernel is {kernel.shape} with groups {groups}:"
            f" expected (kh, kw, {x.shape[2]} / groups, a multiple of groups)"
        )
    if _checked(backend) == "masked":
        return _plus(_masked(x, kernel.astype(x.dtype), index, footprint, groups, shape), bias)
    if backend == "spconv" and groups == 1 and footprint.kernel != (1, 1):
        from greenjax.ops import spconv_bridge  # imports torch and spconv

        sites = jnp.asarray(_given(index.inputs, "inputs")), jnp.asarray(_given(index.outputs, "outputs"))
        return spconv_bridge.conv(x, kernel, bias, *sites, footprint, _given(shape, "shape"), callback)
    taps = jnp.asarray(index.taps)
    if taps.shape[-1] != math.prod(kernel.shape[:2]):
        raise InputError(f"kernel is {kernel.shape}: expected the {taps.shape[-1]} taps of its index")
    uses = _uses(index, footprint.submanifold)
    return sparse_native.conv(groups, footprint.uses, x, kernel, bias, taps, uses)


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise InputError(f"model.sparse_conv is {backend!r}: expected {' or '.join(BACKENDS)}")
    return backend


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise InputError(f"{name} is None: this backend of the sparse convolution needs it")
    return value


def _uses(index: ConvIndex, is_submanifold: bool) -> Int[Array, "n taps"]:
    if index.uses is None and is_submanifold:
        return jnp.asarray(index.taps)[:, ::-1]
    return jnp.asarray(_given(index.uses, "uses"))


def _plus(y: Array, bias: Bias | None) -> Array:
    return y if bias is None else y + bias.astype(y.dtype)[None, None]


def _masked(
    x: Tokens, kernel: Kernel, index: ConvIndex, footprint: Footprint, groups: int, shape: Grid | None
) -> Array:
    grid = _on_grid(x, index.inputs, shape)
    layout = ("NHWC", "HWIO", "NHWC")
    pads = [(p, p) for p in footprint.padding]
    y = jax.lax.conv_general_dilated(
        grid, kernel, footprint.stride, pads, dimension_numbers=layout, feature_group_count=groups
    )
    return _from_grid(y, index.outputs)


def _on_grid(x: Tokens, sites: Any, shape: Grid | None) -> Float[Array, "b h w c"]:
    row, column = jnp.asarray(_given(sites, "inputs")).T
    grid = jnp.zeros((x.shape[0], *_given(shape, "shape"), x.shape[2]), x.dtype)
    return grid.at[:, row, column].set(x, unique_indices=True)


def _from_grid(y: Float[Array, "b h w o"], sites: Any) -> Float[Array, "b n_out o"]:
    row, column = jnp.asarray(_given(sites, "outputs")).T
    return y[:, row, column]
