"""The layers that every model here is made of.

`layer_norm`, `gelu` and `permute` bring their own gradients. XLA would otherwise compute norms and the error function
again and again inside the fused loops of the backward pass, and turn every gather into a scatter-add.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

# One program a shape: as single operations, or all in one program, they would take many times longer to compile.
_compiled = partial(jax.jit, static_argnums=(1, 2))
xavier = _compiled(nnx.initializers.xavier_uniform())
small_normal = _compiled(nnx.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0))  # in effect not truncated
token_normal = _compiled(nnx.initializers.normal(0.02))

Kept = TypeVar("Kept")
KEPT = jax.checkpoint_policies.save_only_these_names("kept")


def linear(
    inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs, use_bias: bool = True, init: Callable[..., Array] = xavier
) -> nnx.Linear:
    """A dense layer with float32 parameters, Xavier-uniform by default, that computes in `dtype`."""
    return nnx.Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, kernel_init=init, rngs=rngs)


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
    # The barrier keeps XLA from gathering straight into the transposed layout that the product behind it wants.
    return jax.lax.optimization_barrier(permute(dy, inverse, index)), None, None


permute.defvjp(_permute_fwd, _permute_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> Float[Array, "*b c"]:
    """Normalises the last axis in float32 (bfloat16 would lose the variance) and returns x's dtype."""
    return _layer_norm_fwd(x, scale, bias, epsilon)[0]


def _layer_norm_fwd(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axis=-1, keepdims=True)
    inverse_deviation = jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    mean, inverse_deviation = kept((mean, inverse_deviation))
    y = ((wide - mean) * inverse_deviation * _like(scale, x) + _like(bias, x)).astype(x.dtype)
    # The barriers keep XLA from computing all this again in every consumer.
    return jax.lax.optimization_barrier(y), (x, mean, inverse_deviation, scale)


def _layer_norm_bwd(epsilon, saved, dy):
    del epsilon
    x, mean, inverse_deviation, scale = saved
    normalised = (x.astype(mean.dtype) - mean) * inverse_deviation
    dy = dy.astype(mean.dtype)
    rows = tuple(range(dy.ndim - 1))
    d_normalised = dy * _like(scale, dy)
    d_mean, projected = (total / x.shape[-1] for total in row_sums(d_normalised, d_normalised * normalised))
    dx = inverse_deviation * (d_normalised - d_mean - normalised * projected)
    d_scale, d_bias = (dy * normalised).sum(axis=rows), dy.sum(axis=rows)
    dx = jax.lax.optimization_barrier(dx.astype(x.dtype))
    return dx, d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def row_sums(a: Float[Array, "*b c"], b: Float[Array, "*b c"]) -> tuple[Float[Array, "*b 1"], Float[Array, "*b 1"]]:
    """Sums over the last axis, of two arrays in one pass.

    XLA's library for a single sum on the CPU takes several times as long where the summands are still to be computed.
    """
    zero = jnp.zeros((), a.dtype)
    sums = jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (a.ndim - 1,))
    return sums[0][..., None], sums[1][..., None]


def _like(vector: Array, x: Array) -> Array:
    """A vector over the last axis, with the other axes of x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


@jax.custom_vjp
def gelu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """The exact GELU, x times the normal distribution function of x."""
    return _gelu_fwd(x)[0]


def _gelu_fwd(x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.lax.optimization_barrier((wide * _normal_distribution(wide)).astype(x.dtype)), x


def _gelu_bwd(x, dy):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * jnp.pi) ** -0.5
    derivative = _normal_distribution(wide) + wide * density
    return (jax.lax.optimization_barrier((dy * derivative).astype(x.dtype)),)


def _normal_distribution(x):
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


gelu.defvjp(_gelu_fwd, _gelu_bwd)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis."""

    def __init__(self, dim: int, *, epsilon: float, rngs: nnx.Rngs):
        del rngs  # starts as the identity
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class Mlp(nnx.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, *, dtype: Any, rngs: nnx.Rngs):
        self.fc1 = linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2(gelu(kept(self.fc1(x))))


class PatchEmbed(nnx.Module):
    """A convolution whose kernel equals its stride, on cut patches [b, n, patch * patch * c], and a norm.

    Source: Swin Transformer (arXiv 2103.14030), section 3.1.
    """

    def __init__(self, inputs: int, dim: int, *, epsilon: float, dtype: Any, rngs: nnx.Rngs):
        self.proj = linear(inputs, dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, epsilon=epsilon, rngs=rngs)

    def __call__(self, patches: Float[Array, "b n p"]) -> Float[Array, "b n c"]:
        return self.norm(self.proj(patches))


def drop_path(x: Float[Array, "b n c"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
    """Drops the residual branch of whole images with probability `rate`; without a key it drops none.

    Source: Deep Networks with Stochastic Depth (arXiv 1603.09382); kept branches are scaled up, as timm does.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class Block(nnx.Module):
    """A transformer block: attention and an MLP, each behind a norm and beside an identity."""

    def __init__(
        self,
        attention: nnx.Module,
        dim: int,
        hidden: int,
        *,
        drop_path: float,
        epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.drop_path = drop_path
        self.norm1 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.attn = attention
        self.norm2 = LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.mlp = Mlp(dim, hidden, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], where: Any, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
        """`where`: what the attention wants to know of the tokens' places."""
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = kept(x + drop_path(self.attn(self.norm1(x), where), self.drop_path, attention_key))
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, mlp_key)


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """The rate of every block, by stage: from 0 at the first, linearly, to `last`."""
    rates = np.linspace(0, last, sum(depths)).tolist()
    return [rates[end - depth : end] for depth, end in zip(depths, accumulate(depths))]


def by_stage(value: float | tuple[float, ...], stages: int) -> tuple[float, ...]:
    """One value a stage, where a single one stands for all."""
    return value if isinstance(value, tuple) else (value,) * stages


def kept(x: Kept) -> Kept:
    """Marks what the backward pass of a `checkpointed` call reads; all else is computed again there."""
    return checkpoint_name(x, "kept")


def checkpointed(module: nnx.Module, call: Callable[..., Array], remat: bool) -> Callable[..., Array]:
    """`call(module, *args)` as a function of args, which stores no more for the backward pass than it has to.

    Stored are args and what is `kept`: the inputs of matrix products that cost a matrix product. What is cheap, norms
    and activation functions, is computed again. With `remat` all is.
    """
    graphdef, params = nnx.split(module)
    return partial(_checkpointed(graphdef, call, remat), params)


@cache
def _checkpointed(graphdef: nnx.GraphDef, call: Callable[..., Array], remat: bool) -> Callable[..., Array]:
    """The same function for all modules of one structure: JAX traces equal blocks once, where it knows it again."""
    policy = jax.checkpoint_policies.nothing_saveable if remat else KEPT
    return jax.checkpoint(lambda params, *args: call(nnx.merge(graphdef, params), *args), policy=policy)


def merge_heads(x: Float[Array, "b g k s d"]) -> Float[Array, "b g s k*d"]:
    return rearrange(x, "b g k s d -> b g s (k d)")
