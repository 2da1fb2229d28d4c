"""Convolutions over visible tokens that several families share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.layers import constant
from greenjax.ops.sparse_conv import check_backend, submanifold_conv
from greenjax.planning import Plan, TokenGrid
from greenjax.planning.sites import ConvIndex


class Backend(NamedTuple):
    """How the tokens of one grid are convolved: options of sparse_conv.py."""

    shape: tuple[int, int]  # rows and columns of the grid
    backend: str = "native"
    callback: str = "pure"


def stage_backends(config: ConfigDict) -> list[Backend]:
    """How a resolved config convolves the tokens of each stage. Raises InputError where spconv is missing."""
    model, grid = config.model, token_grid(config)
    check_backend(model.sparse_conv, model.spconv_callback)
    return [Backend(grid.shape(stage), model.sparse_conv, model.spconv_callback) for stage in range(grid.stages)]


def conv_index(grid: TokenGrid, plan: Plan, stage: int, kernel: int = 0) -> ConvIndex:
    """The index of a submanifold convolution of a stage; `kernel` counts the kernels that the family states for it.

    Coordinates follow from the visible units, so a plan does not hold them.
    """
    of_units = jnp.asarray(grid.coordinates(stage).astype(np.int32))
    coordinates = jnp.take(of_units, jnp.asarray(plan.visible_units), axis=0).reshape(-1, 2)
    return ConvIndex(jnp.asarray(plan.neighbours[stage][kernel]), None, coordinates, coordinates)


class DepthwiseConv(nnx.Module):
    """A depth-wise submanifold convolution, side x side: it reads visible neighbours, and zeros for masked ones."""

    def __init__(self, dim: int, side: int, backend: Backend, *, rngs: nnx.Rngs):
        # Each channel is a map of side * side values to one, drawn as Xavier's matrices with as many inputs as outputs.
        bound = (6 / (2 * side**2)) ** 0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (side, side, 1, dim), jnp.float32, -bound, bound))
        self.bias = nnx.Param(constant(0, dim))
        self.backend = backend

    def __call__(self, x: Float[Array, "b n c"], index: ConvIndex) -> Float[Array, "b n c"]:
        options = dict(self.backend._asdict(), groups=x.shape[2])
        return submanifold_conv(x, self.kernel[...], self.bias[...], index, **options)
