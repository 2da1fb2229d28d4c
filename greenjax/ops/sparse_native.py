"""Sparse convolution by gathering visible tokens and multiplying: the native backend of sparse_conv.py.

The gradients gather too, by the inverse index: XLA's own gradient of a gather is a scatter-add, slow on a CPU and
contended on a GPU.
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Tokens = Float[Array, "b n c"]

# `unroll` of loops over a kernel. The benchmark sets True: XLA's cost analysis counts the body of a loop once.
UNROLL: int | bool = 1


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def conv(
    groups: int,
    most_uses: int,
    x: Tokens,
    kernel: Float[Array, "kh kw i o"],
    bias: Float[Array, " o"] | None,
    taps: Int[Array, "n_out kh*kw"],
    uses: Int[Array, "n kh*kw"],
) -> Float[Array, "b n_out o"]:
    """y[n_out] = bias + sum over taps of x[taps[n_out, tap]] kernel[tap].

    `uses` is the inverse of `taps` (planning/sites.py), and `most_uses` how many taps at most read one token.
    """
    del most_uses, uses
    y = _correlate(x, kernel, taps, groups)
    return y if bias is None else y + bias.astype(y.dtype)[None, None]


def _conv_fwd(groups, most_uses, x, kernel, bias, taps, uses):
    return conv(groups, most_uses, x, kernel, bias, taps, uses), (x, kernel, bias, taps, uses)


def _conv_bwd(groups, most_uses, saved, dy):
    x, kernel, bias, taps, uses = saved
    dx = _d_tokens(dy, kernel, uses, groups, most_uses)
    # A loop over taps, or rows of the kernel: XLA would otherwise write all gathered copies of x to memory at once.
    if _is_depthwise(kernel, groups):
        d_kernel = _map(lambda reads: (_take(x, reads) * dy).sum(axis=(0, 1), dtype=_wide(x)), taps.T)
    else:
        by_group, wide = _split(dy, groups), dict(preferred_element_type=_wide(x))
        d_row = lambda reads: jnp.einsum("bntgi,bngo->tigo", _patches(x, reads, groups), by_group, **wide)  # noqa: E731
        d_kernel = _map(d_row, _by_row(taps, kernel))
    d_bias = None if bias is None else dy.sum(axis=(0, 1), dtype=_wide(x)).astype(bias.dtype)
    return dx, d_kernel.reshape(kernel.shape).astype(kernel.dtype), d_bias, None, None


conv.defvjp(_conv_fwd, _conv_bwd)


def _correlate(x: Tokens, kernel: Array, reads: Int[Array, "m taps"], groups: int) -> Float[Array, "b m o"]:
    """y[m] = sum over taps of x[reads[m, tap]] kernel[tap], with zeros for missing tokens."""
    kernel = kernel.astype(x.dtype)
    if _is_depthwise(kernel, groups):
        return _depthwise(x, kernel.reshape(-1, groups), reads)

    # A loop over the rows of the kernel: all at once would copy x once a tap, and take longer.
    def add_row(y: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        reads, weights = row
        patches, weights = _patches(x, reads, groups), _split(weights, groups)
        return y + jnp.einsum("bntgi,tigo->bngo", patches, weights, preferred_element_type=y.dtype), None

    shape = (x.shape[0], reads.shape[0], groups, kernel.shape[3] // groups)
    y, _ = jax.lax.scan(add_row, jnp.zeros(shape, _wide(x)), (_by_row(reads, kernel), kernel), unroll=UNROLL)
    return y.reshape(*shape[:2], -1).astype(x.dtype)


def _depthwise(x: Tokens, weights: Float[Array, "taps c"], reads: Int[Array, "m taps"]) -> Float[Array, "b m c"]:
    def at_once(x: Tokens) -> Array:
        terms = (_take(x, tap).astype(_wide(x)) * weight for tap, weight in zip(reads.T, weights[:, None, None]))
        return reduce(add, terms).astype(x.dtype)

    # On a CPU, image by image: XLA stores the result of a loop. Any other it computes again, all taps of it, in each
    # of the loops of the norm that reads it.
    def by_image(x: Tokens) -> Array:
        return _map(lambda image: at_once(image[None])[0], x)

    return jax.lax.platform_dependent(x, cpu=by_image, default=at_once)


def _d_tokens(dy: Array, kernel: Array, uses: Int[Array, "n taps"], groups: int, most_uses: int) -> Tokens:
    """dx[n] = sum over taps of dy[uses[n, tap]] kernel[tap]^T."""
    kh, kw, i, _ = kernel.shape
    if most_uses >= kh * kw or _is_depthwise(kernel, groups):
        transposed = _split(kernel, groups).transpose(0, 1, 4, 3, 2).reshape(kh, kw, -1, groups * i)
        return _correlate(dy, transposed, uses, groups)
    # Few taps of a strided kernel read a given token: multiply once at the outputs, then gather products.
    products = jnp.einsum("bngo,hwigo->bnhwgi", _split(dy, groups), _split(kernel.astype(dy.dtype), groups))
    (b, n_out), count = dy.shape[:2], kh * kw
    products = products.reshape(b, n_out * count, groups * i)
    place = jnp.where(uses < n_out, uses * count + jnp.arange(count)[None], n_out * count)
    # Sorting moves the few real uses to the front.
    places = jnp.sort(place, axis=1)[:, :most_uses]
    return reduce(add, [_take(products, reads).astype(_wide(dy)) for reads in places.T]).astype(dy.dtype)


def _map(f: Callable[[Array], Array], xs: Array) -> Array:
    return jax.lax.scan(lambda _, x: (None, f(x)), None, xs, unroll=UNROLL)[1]


def _by_row(reads: Int[Array, "m taps"], kernel: Array) -> Int[Array, "kh m kw"]:
    return reads.reshape(-1, *kernel.shape[:2]).swapaxes(0, 1)


def _take(x: Array, index: Int[Array, " m"]) -> Array:
    """x[:, index], and 0 where index is x.shape[1]."""
    return jnp.take(x, index, axis=1, mode="fill", fill_value=0)


def _patches(x: Tokens, reads: Int[Array, "m taps"], groups: int) -> Float[Array, "b m taps g i"]:
    return _take(x, reads.reshape(-1)).reshape(x.shape[0], *reads.shape, groups, -1)


def _split(x: Array, groups: int) -> Array:
    """The last axis as (groups, channels of a group)."""
    return x.reshape(*x.shape[:-1], groups, -1)


def _is_depthwise(kernel: Array, groups: int) -> bool:
    return kernel.shape[2] == 1 and kernel.shape[3] == groups and groups > 1


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
