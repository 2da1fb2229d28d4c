"""The feature pyramid. Source: FPN (arXiv 1612.03144), section 3."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from greenjax.models.detection.convolutions import Conv, kaiming_uniform


class FeaturePyramid(nnx.Module):
    """Brings every stage to `dim` channels and adds the coarser levels to the finer ones, top-down."""

    def __init__(self, stage_dims: Sequence[int], dim: int, *, dtype: Any, rngs: nnx.Rngs):
        options = dict(init=kaiming_uniform, dtype=dtype, rngs=rngs)
        self.inner_blocks = nnx.List(Conv(stage_dim, dim, 1, **options) for stage_dim in stage_dims)
        self.layer_blocks = nnx.List(Conv(dim, dim, 3, **options) for _ in stage_dims)

    def __call__(self, stages: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ c"]]:
        """A level a stage, and one above: every second pixel of the last, as torchvision's `LastLevelMaxPool`."""
        levels, above = [], None
        for x, inner, layer in reversed(list(zip(stages, self.inner_blocks, self.layer_blocks, strict=True))):
            x = inner(x)
            if above is not None:  # an odd side has no second copy of the last row
                x = x + jnp.repeat(jnp.repeat(above, 2, axis=1), 2, axis=2)[:, : x.shape[1], : x.shape[2]]
            above = x
            levels.insert(0, layer(above))
        return [*levels, levels[-1][:, ::2, ::2]]
