"""NNX layers that all models share."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from greenjax.backbones.initial import xavier
from greenjax.backbones.settings import by_stage
from greenjax.errors import InputError
from greenjax.ops.primitives import after, gelu_matmul, layer_norm, matmul
from greenjax.planning import Plan, TokenGrid
from greenjax.planning.tokens import to_unit_major


class Keys(nnx.Rngs):
    """The keys of nnx.Rngs(seed), counted in Python: a traced counter would take most of the time to build a model."""

    def __init__(self, seed: int):
        self._key, self._drawn = jax.random.key(seed, impl="threefry2x32"), 0

    def params(self) -> Key[Array, ""]:
        """The next key."""
        self._drawn += 1
        return jax.random.fold_in(self._key, self._drawn - 1)


def constant(value: int, shape: int | Sequence[int]) -> np.ndarray:
    """A parameter's initial value, as a NumPy array: JAX would compile or load a program for every shape."""
    return np.full(shape, value, np.float32)


def _zeros(key: Any, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An initialiser of biases, with the signature that nnx.Linear calls."""
    del key, dtype
    return constant(0, shape)


class Linear(nnx.Linear):
    """A dense layer with float32 parameters that computes in `dtype`, with the gradients of `matmul`."""

    def __call__(self, inputs: Float[Array, "*b c"], out_sharding: None = None) -> Float[Array, "*b d"]:
        del out_sharding
        return matmul(*self._operands(inputs))

    def of_gelu(self, inputs: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """The layer of gelu(inputs), which is not stored for the backward pass."""
        return gelu_matmul(*self._operands(inputs))

    def _operands(self, inputs: Array) -> tuple[Any, ...]:
        bias = None if self.bias is None else self.bias[...]
        return inputs.astype(self.dtype), self.kernel[...].astype(self.dtype), bias


def linear(
    inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs, use_bias: bool = True, init: Callable[..., Array] = xavier
) -> Linear:
    """A dense layer, Xavier-uniform by default."""
    return Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, kernel_init=init, bias_init=_zeros, rngs=rngs)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis."""

    def __init__(self, dim: int, *, epsilon: float, rngs: nnx.Rngs):
        del rngs  # starts as the identity
        self.scale = nnx.Param(constant(1, dim))
        self.bias = nnx.Param(constant(0, dim))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


class Mlp(nnx.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, *, dtype: Any, rngs: nnx.Rngs):
        self.fc1 = linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2.of_gelu(self.fc1(x))


class PatchEmbed(nnx.Module):
    """A convolution of the pixels of units whose kernel equals its stride, and a norm where `epsilon` is given.

    Source: Swin Transformer (arXiv 2103.14030), section 3.1.
    """

    def __init__(self, patch: int, inputs: int, dim: int, *, epsilon: float | None, dtype: Any, rngs: nnx.Rngs):
        self.patch = patch
        self.proj = linear(patch**2 * inputs, dim, dtype=dtype, rngs=rngs)
        self.norm = None if epsilon is None else LayerNorm(dim, epsilon=epsilon, rngs=rngs)

    def __call__(self, units: Float[Array, "b u side side c"], plan: Plan) -> Float[Array, "b n d"]:
        b, _, side, _, c = units.shape
        patches = to_unit_major(units.reshape(-1, side, side, c), side, self.patch)
        x = self.proj(patches.reshape(b, -1, self.patch**2 * c))
        return x if self.norm is None else self.norm(x)


def filled_up(x: Float[Array, "b n c"], grid: TokenGrid, stage: int) -> Float[Array, "b n c"]:
    """Dense tokens of a stage, and zeros in place of tokens that do not exist: an odd grid is merged with zeros."""
    return x if grid.whole else jnp.where(grid.exists(stage).reshape(1, -1, 1), x, 0)


def drop_path(x: Float[Array, "b n c"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "b n c"]:
    """Drops the residual branch of whole images with probability `rate`; without a key it drops none.

    Source: Deep Networks with Stochastic Depth (arXiv 1603.09382); kept branches are scaled up, as timm does.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, jnp.float32(1 - rate), (x.shape[0], 1, 1))
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
        """`where`: where the tokens are, in the form that the attention takes, such as a Grouping."""
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attn(self.norm1(x), where), self.drop_path, attention_key)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, mlp_key)


def block_keys(key: Key[Array, ""] | None, stage: int, blocks: int) -> list[Key[Array, ""] | None]:
    """A drop-path key for every block of a stage; without a key, None for each."""
    if key is None:
        return [None] * blocks
    keys = jax.random.split(jax.random.fold_in(key, stage), blocks)
    return [keys[i] for i in range(blocks)]


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """The rate of every block, by stage: it rises linearly from 0 at the first block to `last`."""
    rates = np.linspace(0, last, sum(depths)).tolist()
    return [rates[end - depth : end] for depth, end in zip(depths, accumulate(depths))]


def hidden_channels(ratio: float | tuple[float, ...], channels: Sequence[int]) -> list[int]:
    """The hidden channels of the MLPs of every stage: its channels times `ratio`, one number or one a stage."""
    return [round(ratio * width) for ratio, width in zip(by_stage(ratio, len(channels)), channels, strict=True)]


def transformers_ratio(ratio: float | tuple[float, ...], channels: Sequence[int]) -> float:
    """The ratio of a model in transformers, which rounds down. Raises InputError for other `hidden_channels` here."""
    one = by_stage(ratio, len(channels))[0]
    if hidden_channels(ratio, channels) != [int(one * width) for width in channels]:
        expected = "one ratio for all stages with layout 'hf', and no hidden channels rounded up"
        raise InputError(f"model.mlp_ratio is {ratio}: expected {expected}")
    return one


def traced_once(module: Callable[..., Array]) -> Callable[..., Array]:
    """A function with the values and gradients of `module`, traced once for equal modules, shapes and types.

    This halves the time to trace a deep model. The compiler gets the same program.
    """
    graphdef, params = nnx.split(module)
    return lambda x, *args: _run(graphdef, params, x, args)


def checkpointed(module: Callable[..., Array]) -> Callable[..., Array]:
    """`traced_once` that stores only its arguments for the backward pass, which runs the module again.

    The second run waits for the incoming gradient. With jax.checkpoint, which promises no order, XLA on the CPU starts
    it long before, and saves no memory.
    """
    graphdef, params = nnx.split(module)
    return lambda x, *args: _run_again(graphdef, params, x, args)


@partial(jax.jit, static_argnums=0)
def _run(graphdef: nnx.GraphDef, params: Any, x: Array, args: tuple) -> Array:
    return nnx.merge(graphdef, params)(x, *args)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_again(graphdef: nnx.GraphDef, params: Any, x: Array, args: tuple) -> Array:
    return _run(graphdef, params, x, args)


def _run_again_fwd(graphdef: nnx.GraphDef, params: Any, x: Array, args: tuple) -> tuple[Array, Any]:
    return _run(graphdef, params, x, args), (params, x, args)


def _run_again_bwd(graphdef: nnx.GraphDef, saved: Any, dy: Array) -> tuple[Any, Array, None]:
    params, x, args = saved
    _, pull = jax.vjp(lambda params, x: _run(graphdef, params, x, args), params, after(x, dy))
    return *pull(dy), None


_run_again.defvjp(_run_again_fwd, _run_again_bwd)
