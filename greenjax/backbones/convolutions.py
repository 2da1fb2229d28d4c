"""Convolutions over visible tokens that several families share.

planning/sites.py says what they read over the border of a mask unit.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_channels, token_grid
from greenjax.backbones.initial import xavier
from greenjax.backbones.layers import constant
from greenjax.backbones.settings import by_stage
from greenjax.ops.sparse_conv import check_backend, strided_conv, submanifold_conv
from greenjax.planning import Plan, TokenGrid
from greenjax.planning.sites import ConvIndex
from greenjax.planning.tokens import block_order


class Backend(NamedTuple):
    """How the tokens of one grid are convolved: options of sparse_conv.py."""

    shape: tuple[int, int]  # rows and columns of the grid
    backend: str = "native"
    callback: str = "pure"


def stage_backends(config: ConfigDict) -> list[Backend]:
    """How a resolved config convolves the tokens of each stage. Raises InputError where spconv is missing."""
    model, grid = config.model, token_grid(config)
    names = by_stage(model.sparse_conv, grid.stages)
    for name in names:
        check_backend(name, model.spconv_callback)
    return [Backend(grid.shape(stage), name, model.spconv_callback) for stage, name in enumerate(names)]


def conv_index(grid: TokenGrid, plan: Plan, stage: int, kernel: int = 0) -> ConvIndex:
    """The index of a submanifold convolution of a stage; `kernel` counts the kernels that the family states for it.

    Coordinates follow from the visible units, so a plan does not hold them.
    """
    of_units = jnp.asarray(grid.coordinates(stage).astype(np.int32))
    coordinates = jnp.take(of_units, jnp.asarray(plan.visible_units), axis=0).reshape(-1, 2)
    return ConvIndex(jnp.asarray(plan.neighbours[stage][kernel]), None, coordinates, coordinates)


def overlapping_index(grid: TokenGrid, plan: Plan, stage: int, kernel: int, stride: int) -> ConvIndex:
    """The index of a convolution, padded by kernel // 2, to the tokens of a stage from those before, or from pixels.

    It reads across the borders of visible units. It follows from which units are visible, so a plan does not hold it.
    """
    side = grid.side(stage)
    outputs = block_order(side).astype(np.int32)
    inputs = block_order(side * stride) if stage else np.indices((grid.unit, grid.unit)).reshape(2, -1).T
    inputs, visible = inputs.astype(np.int32), jnp.asarray(plan.visible_units)
    corners = jnp.asarray(np.indices(grid.units, np.int32).reshape(2, -1).T)[visible, None]
    reads, writes = (
        (corners * stride * side + inputs[None]).reshape(-1, 2),
        (corners * side + outputs[None]).reshape(-1, 2),
    )
    reach = np.indices((kernel, kernel), np.int32).reshape(2, -1).T[None] - kernel // 2
    taps = _tokens_at(grid, visible, inputs, writes[:, None] * stride + reach)
    site, rest = jnp.divmod(reads[:, None] - reach, stride)
    uses = jnp.where((rest == 0).all(axis=-1), _tokens_at(grid, visible, outputs, site), len(writes))
    return ConvIndex(taps, uses, reads, writes)


def _tokens_at(
    grid: TokenGrid, visible: Int[Array, " v"], places: Int[np.ndarray, "t 2"], sites: Int[Array, "n taps 2"]
) -> Int[Array, "n taps"]:
    """Which token of the visible units is at each site; v * t: none. `places` are those of the tokens in a unit."""
    (rows, columns), side, v = grid.units, math.isqrt(len(places)), len(visible)
    token = np.zeros((side, side), np.int32)
    token[tuple(places.T)] = np.arange(len(places))
    number = jnp.full(rows * columns, v, jnp.int32).at[visible].set(jnp.arange(v, dtype=jnp.int32), unique_indices=True)
    row, column = jnp.moveaxis(sites, -1, 0)
    inside = (row >= 0) & (row < rows * side) & (column >= 0) & (column < columns * side)
    unit = jnp.where(inside, number[row // side * columns + column // side], v)
    return jnp.minimum(unit * len(places) + jnp.asarray(token)[row % side, column % side], v * len(places))


class OverlappingEmbed(nnx.Module):
    """The tokens of a stage by a convolution whose kernel is larger than its stride, padded by kernel // 2.

    It takes the tokens [b, n, c] of the stage before, or, for the first stage, the pixels of units.
    """

    def __init__(self, config: ConfigDict, stage: int, kernel: int, *, rngs: nnx.Rngs):
        """`kernel`: an odd side. The stride is 2, and model.patch for the first stage."""
        model, self.grid, self.stage = config.model, token_grid(config), stage
        self.stride, self.dtype = 2 if stage else model.patch, model.dtype
        before = stage_backends(config)[max(stage - 1, 0)]
        self.backend = before if stage else before._replace(shape=config.image_size)
        inputs, outputs = (model.in_channels, *stage_channels(config))[stage : stage + 2]
        weights = xavier(rngs.params(), (kernel * kernel * inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(weights.reshape(kernel, kernel, inputs, outputs))
        self.bias = nnx.Param(constant(0, outputs))

    def __call__(self, x: Float[Array, "b *places c"], plan: Plan) -> Float[Array, "b m d"]:
        kernel, stride = self.kernel[...], self.stride
        x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(self.dtype)
        index = overlapping_index(self.grid, plan, self.stage, len(kernel), stride)
        options = dict(self.backend._asdict(), stride=stride, padding=len(kernel) // 2)
        return strided_conv(x, kernel, self.bias[...], index, **options)


class DepthwiseConv(nnx.Module):
    """A depth-wise submanifold convolution, side x side."""

    def __init__(self, dim: int, side: int, backend: Backend, *, rngs: nnx.Rngs):
        # Each channel is a map of side * side values to one, drawn as Xavier's matrices with as many inputs as outputs.
        bound = (6 / (2 * side**2)) ** 0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (side, side, 1, dim), jnp.float32, -bound, bound))
        self.bias = nnx.Param(constant(0, dim))
        self.backend = backend

    def __call__(self, x: Float[Array, "b n c"], index: ConvIndex) -> Float[Array, "b n c"]:
        options = dict(self.backend._asdict(), groups=x.shape[2])
        return submanifold_conv(x, self.kernel[...], self.bias[...], index, **options)
