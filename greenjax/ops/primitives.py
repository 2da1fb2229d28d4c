"""Products at the processor's rate, and operations with gradients of their own.

Those of JAX and XLA are slow or take much memory: XLA recomputes norms and the error function inside the fused loops
of the backward pass, turns every gather into a scatter-add, and writes a transposed copy of the incoming gradient for
the gradient of every kernel.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from greenjax.runtime.processor import multiplies_bfloat16


def product(spec: str, x: Array, y: Array, bias: Array | None = None) -> Array:
    """jnp.einsum(spec, x, y) + bias in the type of x and y. A CPU with bfloat16 products rounds the sum once.

    XLA for CPUs has products of bfloat16 numbers with float32 results only. It widens the operands of any other, and
    of those whose operands are not stored in the order of their axes or whose x is not summed over its last axis.
    """

    def in_type(x: Array, y: Array, bias: Array | None) -> Array:
        return _plus(jnp.einsum(spec, x, y), bias)

    def in_float32(x: Array, y: Array, bias: Array | None) -> Array:
        return _plus(jnp.einsum(spec, x, y, preferred_element_type=jnp.float32), bias).astype(x.dtype)

    if x.dtype != jnp.bfloat16 or not multiplies_bfloat16():
        return in_type(x, y, bias)
    return jax.lax.platform_dependent(x, y, bias, cpu=in_float32, default=in_type)


def _plus(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias.astype(x.dtype)


def stored(x: Array) -> Array:
    """x, a transposed array, stored in the order of its axes where `product` needs that. Without it, XLA would leave
    the transposition to the product."""
    if x.dtype != jnp.bfloat16 or not multiplies_bfloat16():
        return x  # in float32, it gains nothing

    def flattened(x: Array) -> Array:  # no product reads a flat array
        return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)

    return jax.lax.platform_dependent(x, cpu=flattened, default=_itself)


@jax.custom_vjp
def matmul(
    x: Float[Array, "*b c"], kernel: Float[Array, "c d"], bias: Float[Array, " d"] | None = None
) -> Float[Array, "*b d"]:
    """x @ kernel + bias, in the type of x. The gradient of the kernel is one matrix product over all leading axes of
    x, those of jax.vmap included."""
    y = product("nc,cd->nd", _rows(x), kernel, None if bias is None else bias[None])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _matmul_fwd(x, kernel, bias):
    return matmul(x, kernel, bias), _saved(x, kernel, bias)


def _saved(x, kernel, bias):
    return x, kernel, None if bias is None else bias[:0]


def _matmul_bwd(saved, dy):
    x, kernel, bias = saved
    return _d_inputs(dy, kernel, x.shape), _d_kernel(x, dy, kernel), _d_bias(dy, bias)


def _d_inputs(dy, kernel, shape):
    return product("nd,cd->nc", _rows(dy), kernel).reshape(shape)


def _d_bias(dy, bias):
    # In float32: XLA for CPUs is many times slower at sums in bfloat16, and rounds every partial sum.
    return None if bias is None else _rows(dy).astype(bias.dtype).sum(axis=0)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


@custom_vmap
def _d_kernel(x, dy, kernel):
    """The gradient of the kernel. Whether `kernel` is mapped tells jax.vmap over models from jax.vmap over inputs."""
    del kernel
    return product("cn,nd->cd", stored(_rows(x).T), _rows(dy))


@_d_kernel.def_vmap
def _d_kernel_of_all(axis_size, mapped, x, dy, kernel):
    x, dy = (a if is_mapped else jnp.broadcast_to(a, (axis_size, *a.shape)) for a, is_mapped in zip((x, dy), mapped))
    if mapped[2]:
        return jax.vmap(_d_kernel.fun)(x, dy, kernel), True
    # An unmapped result is the sum over the mapped axis.
    return _d_kernel.fun(x, dy, kernel), False


@jax.custom_vjp
def permute(x: Float[Array, "b n c"], index: Int[Array, " s"], inverse: Int[Array, " n"]) -> Float[Array, "b s c"]:
    """y[:, i] = x[:, index[i]], and zeros where index[i] is n; inverse[j] is the place of x[:, j] in y.

    Every row of x stands in y at most once, so the gradient is a gather by the inverse, not a scatter-add.
    """
    del inverse
    return jnp.take(x, index, axis=1, mode="fill", fill_value=0, unique_indices=True)


def _permute_fwd(x, index, inverse):
    return permute(x, index, inverse), (index, inverse)


def _permute_bwd(saved, dy):
    index, inverse = saved
    # Without `hold`, XLA gathers into the transposed layout of the next product.
    return hold(permute(dy, inverse, index)), None, None


permute.defvjp(_permute_fwd, _permute_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> Float[Array, "*b c"]:
    """Normalises the last axis in float32 (bfloat16 would lose the variance) and returns x's dtype."""
    return _layer_norm_fwd(x, scale, bias, epsilon)[0]


def _layer_norm_fwd(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = hold(wide.mean(axis=-1, keepdims=True))
    variance = hold(jnp.square(wide - mean).mean(axis=-1, keepdims=True))
    inverse_deviation = jax.lax.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse_deviation * _like(scale, x) + _like(bias, x)).astype(x.dtype)
    # Without `hold`, every consumer would compute y again.
    return hold(y), (x, mean, inverse_deviation, scale)


def _layer_norm_bwd(epsilon, saved, dy):
    del epsilon
    x, mean, inverse_deviation, scale = saved
    dy = dy.astype(mean.dtype)
    normalised = (after(x.astype(mean.dtype), dy) - mean) * inverse_deviation
    rows = tuple(range(dy.ndim - 1))
    d_normalised = dy * _like(scale, dy)
    d_mean, projected = (total / x.shape[-1] for total in row_sums(d_normalised, d_normalised * normalised))
    dx = inverse_deviation * (d_normalised - d_mean - normalised * projected)
    d_scale, d_bias = (dy * normalised).sum(axis=rows), dy.sum(axis=rows)
    dx = hold(dx.astype(x.dtype))
    return dx, d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def hold(x: Any) -> Any:
    """x, a tree of arrays. On a CPU, XLA stores them instead of computing them again in each of their users.

    On a GPU, XLA's own choice moves fewer bytes than a barrier.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=_itself)


def _itself(x: Any) -> Any:  # not a lambda: JAX traces one function once for equal arrays
    return x


def after(x: Float[Array, "*b c"], done: Float[Array, "..."]) -> Float[Array, "*b c"]:
    """x, with a dependence on `done`: computations from x start after `done`.

    The backward pass recomputes from such an x. Otherwise XLA merges the recomputation with that of the forward pass
    and stores its result, or runs it long before; both cost the memory that recomputing saves.
    """
    first = jax.lax.slice(done, (0,) * done.ndim, (1,) * done.ndim)
    return x + (0 * first).astype(x.dtype)


def row_sums(a: Float[Array, "*b c"], b: Float[Array, "*b c"]) -> tuple[Float[Array, "*b 1"], Float[Array, "*b 1"]]:
    """Sums of two arrays over the last axis, in one pass.

    On the CPU, XLA's single reductions take several times as long when their summands are computed in the same loop.
    """
    zero = jnp.zeros((), a.dtype)
    sums = jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (a.ndim - 1,))
    return sums[0][..., None], sums[1][..., None]


def token_sums(x: Float[Array, "b n c"]) -> Float[Array, "b 1 c"]:
    """Sums over the tokens of each image: a product, because XLA's sum over a middle axis takes ten times as long on a
    CPU."""
    return jnp.einsum("bn,bnc->bc", jnp.ones(x.shape[:2], x.dtype), x, precision="highest")[:, None]


def _like(vector: Array, x: Array) -> Array:
    """The vector with leading axes of size 1, as many as x has."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


@jax.custom_vjp
def gelu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """The exact GELU, x times the normal distribution function of x."""
    return _gelu_fwd(x)[0]


def _gelu_fwd(x):
    return hold(_gelu_and_slope(x)[0].astype(x.dtype)), x


def _gelu_bwd(x, dy):
    return (hold((dy * _gelu_and_slope(after(x, dy))[1]).astype(x.dtype)),)


def _gelu_and_slope(x):
    """The GELU and its derivative, at least in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    distribution = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * jnp.pi) ** -0.5
    return wide * distribution, distribution + wide * density


gelu.defvjp(_gelu_fwd, _gelu_bwd)


@jax.custom_vjp
def gelu_matmul(
    x: Float[Array, "*b c"], kernel: Float[Array, "c d"], bias: Float[Array, " d"] | None = None
) -> Float[Array, "*b d"]:
    """gelu(x) @ kernel + bias. The backward pass computes gelu(x) again, beside its derivative.

    Stored, it would be a quarter of the memory of a transformer block.
    """
    return matmul(gelu(x), kernel, bias)


def _gelu_matmul_fwd(x, kernel, bias):
    return gelu_matmul(x, kernel, bias), _saved(x, kernel, bias)


def _gelu_matmul_bwd(saved, dy):
    x, kernel, bias = saved
    d_value, d_bias = _d_inputs(dy, kernel, x.shape), _d_bias(dy, bias)
    value, slope = _gelu_and_slope(after(x, d_value))
    dx, value = hold(((d_value * slope).astype(x.dtype), value.astype(x.dtype)))
    return dx, _d_kernel(value, dy, kernel), d_bias


gelu_matmul.defvjp(_gelu_matmul_fwd, _gelu_matmul_bwd)
