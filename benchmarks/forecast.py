"""Matrix products and memory of an update of green MIM with a Swin, from the configuration alone.

Per image, with n visible tokens and c channels in a stage, groups x slots by its layout, and u units in all:

    projections, MLP      24 n c^2 a block (mlp_ratio 4): proportional to the visible tokens
    attention             4 groups slots^2 c a block: proportional to them too, as long as windows keep their size
    decoder               24 u d^2 + 4 u^2 d a block: by all units, whatever the mask ratio

Backward takes twice that. The gradient of the position bias is taken once for all images that share a mask. A test
holds these sums to the products that JAX traces.

Memory: the backward pass of a block reads (`backbones/layers.py`, `checkpointed`) tensors proportional to the visible
tokens as well; gradients take the bytes of the parameters, whatever is computed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.geometry import make_planner, stage_channels
from greenjax.backbones.layers import hidden_channels
from greenjax.models import build
from greenjax.planning import Planner

PASSES = 3  # forward, and two products backward for each of its products


class Forecast(NamedTuple):
    """Of one update."""

    tokens: int  # visible, of the first stage, all images
    flops: int  # of matrix products
    kept: int  # bytes that the backward pass reads
    gradients: int  # bytes


class Attention(NamedTuple):
    """The shape of the attention of one block."""

    tokens: int
    channels: int
    heads: int
    hidden: int  # of the MLP
    slots: int
    groups: int
    window: int


def forecast(config: ConfigDict) -> Forecast:
    """The forecast of a resolved configuration of green MIM with a Swin, without recomputation (model.remat)."""
    planner = make_planner(config)
    images = config.data.batch_size
    blocks = list(encoder_blocks(config, planner))
    encoder = sum(block_flops(block) for block in blocks)
    shared = sum(bias_flops(block) for block in blocks)
    flops = images * (PASSES * encoder + sum(d_bias_flops(block) for block in blocks) + joints_flops(config, planner))
    flops += config.mask.groups * shared
    kept = images * (sum(block_kept(block) for block in blocks) + decoder_kept(config, planner))
    tokens = images * planner.visible * planner.grid.tokens_per_unit(0)
    return Forecast(tokens, flops, kept * jnp.dtype(config.model.dtype).itemsize, gradient_bytes(config))


def encoder_blocks(config: ConfigDict, planner: Planner) -> Iterator[Attention]:
    model = config.model
    widths = stage_channels(config)
    hidden = hidden_channels(model.mlp_ratio, widths)
    for stage, (partitions, layouts) in enumerate(zip(planner.partitions, planner.layouts, strict=True)):
        tokens = planner.visible * planner.grid.tokens_per_unit(stage)
        for partition, layout in zip(partitions, layouts, strict=True):
            rows, _, _, blocks = partition.windows
            shape = Attention(tokens, widths[stage], model.num_heads[stage], hidden[stage], *layout, rows)
            yield from [shape] * blocks


def block_flops(block: Attention) -> int:
    """Forward, one image: four projections, two layers of the MLP, two products of attention."""
    linear = 2 * block.tokens * block.channels * (4 * block.channels + 2 * block.hidden)
    return linear + 4 * block.groups * block.slots**2 * block.channels


def d_bias_flops(block: Attention) -> int:
    """Backward, one image: the sum over images that gives the gradient of the bias is a product, too."""
    return 2 * block.groups * block.heads * block.slots**2


def bias_flops(block: Attention) -> int:
    """Backward, one mask: products with one-hot positions take that gradient to the table."""
    area = block.window**2
    return 2 * block.groups * block.heads * block.slots * area * (block.slots + area)


def joints_flops(config: ConfigDict, planner: Planner) -> int:
    """All else, one image, forward and backward: patch embedding, merging and the decoder."""
    model, grid, visible = config.model, planner.grid, planner.visible
    widths, dim = stage_channels(config), config.decoder.dim
    pixels, units = model.in_channels, grid.units[0] * grid.units[1]
    embed = 2 * visible * grid.tokens_per_unit(0) * grid.patch**2 * pixels * widths[0]
    merging = sum(
        2 * visible * grid.tokens_per_unit(stage + 1) * 4 * width * 2 * width for stage, width in enumerate(widths[:-1])
    )
    block = block_flops(Attention(units, dim, config.decoder.num_heads, 4 * dim, units, 1, 0))
    head = 2 * dim * grid.unit**2 * pixels
    decoder = 2 * visible * widths[-1] * dim + config.decoder.depth * block + (units - visible) * head
    # Nothing asks for the gradient of pixels, and none for the prediction of visible units.
    return (PASSES - 1) * embed + PASSES * (merging + decoder)


def block_kept(block: Attention) -> int:
    """Numbers, one image: the residual stream and its norm, both twice, queries, keys, values, weights, what is
    projected, and the hidden layer before its activation function."""
    by_token = block.tokens * (5 * block.channels + block.hidden)
    return by_token + block.groups * block.slots * (3 * block.channels + block.heads * block.slots)


def decoder_kept(config: ConfigDict, planner: Planner) -> int:
    units, dim = int(np.prod(planner.grid.units)), config.decoder.dim
    return config.decoder.depth * block_kept(Attention(units, dim, config.decoder.num_heads, 4 * dim, units, 1, 0))


def gradient_bytes(config: ConfigDict) -> int:
    """As many as the parameters have."""
    params: Any = jax.tree.leaves(jax.eval_shape(lambda: jax.tree.leaves(build(config, config.seed))))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in params)
