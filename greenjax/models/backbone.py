"""`Backbone`: from images to the tokens of an encoder; and the dense feature pyramid."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key, Num
from ml_collections import ConfigDict, FrozenConfigDict

from greenjax.backbones.geometry import stage_channels, stage_specs, token_grid
from greenjax.backbones.registry import family_of
from greenjax.data.centre_views import centre_views
from greenjax.errors import InputError
from greenjax.planning import Plan, dense_plan
from greenjax.planning.tokens import to_grid, to_unit_major

Images = Num[Array | np.ndarray, "b h w c"]  # integers are raw pixels; floats are normalised, see `floats_are_raw`

EMBEDDED = 64  # images of one call of the encoder


class Backbone(nnx.Module):
    """Normalises images, cuts them into units, and encodes them. All models extend it.

    `classes` are the names of a classifier's outputs, or of a detector's labels from 1 on; () if there are none, or if
    they are unknown. Arrays of floats are colour-normalised by the caller, unless `floats_are_raw`: then they are
    pixels from files, as arrays of integers.
    """

    classes: tuple[str, ...] = ()
    floats_are_raw = False

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        """`config` is resolved. The model keeps it: exported files describe the model by it."""
        self.config = FrozenConfigDict(config)
        self.grid = token_grid(config)
        self.specs = stage_specs(config)
        self.mean, self.std = tuple(config.data.mean), tuple(config.data.std)
        self.encoder = family_of(config.model.name).encoder(config, rngs=rngs)
        self.latent_dim = stage_channels(config)[-1]

    def dense(
        self, images: Images, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b tokens latent"], tuple[Float[Array, "b _ _"], ...]]:
        """The normed tokens of the last stage and the tokens of every stage, unit-major, with every unit visible.

        A class token stands behind the normed tokens.
        Where the grid is not whole, tokens that do not exist have values without a meaning; the last stage has none."""
        return self._encoded(self._normalise(jnp.asarray(images)), key)

    def _encoded(self, normal: Float[Array, "b h w c"], key: Key[Array, ""] | None) -> tuple[Any, tuple[Any, ...]]:
        """As `dense`, of colour-normalised images."""
        plan = dense_plan(self.grid, self.specs)
        return self.encoder(self._embedded(self._units(normal), plan), plan, key)

    def feature_maps(self, images: Images, key: Key[Array, ""] | None = None) -> list[Float[Array, "b _ _ _"]]:
        """The tokens of every stage on its grid, with every unit visible."""
        return self._on_grids(self.dense(images, key)[1])

    def _on_grids(self, stages: tuple[Array, ...]) -> list[Float[Array, "b _ _ _"]]:
        maps = []
        for stage, x in enumerate(stages):
            rows, columns = self.grid.shape(stage)
            maps.append(to_grid(x, self.grid.units, self.grid.side(stage))[:, :rows, :columns])
        return maps

    def pooled(self, images: Images, key: Key[Array, ""] | None = None) -> Float[Array, "b latent"]:
        """The mean over the tokens of the last stage, with every unit visible, normed before or after it, or the normed
        class token, as the family states; float32."""
        family, (normed, stages) = family_of(self.config.model.name), self.dense(images, key)
        if family.reads_token(self.config.model):
            return widened(normed[:, -1])
        if family.norms_pooled:
            return self.encoder.norm(widened(stages[-1]).mean(axis=1))
        return widened(normed).mean(axis=1)

    def embed(self, images: Any) -> Float[np.ndarray, "*n latent"]:
        """The pooled features of one image [latent], or of several [n, latent], float32, as `greenjax embed` has them.

        An image is a PIL image, pixels [h, w] or [h, w, c] as in files, or the bytes of a file; several are a sequence,
        or an array [n, h, w, c], or [n, h, w] of grey ones. They are resized and cropped as in evaluation. Raises
        InputError for an image that cannot be used.
        """
        pixels, single = centre_views(self.config, images)
        graphdef, params = nnx.split(self.for_files())
        batches = (pixels[first : first + EMBEDDED] for first in range(0, len(pixels), EMBEDDED))
        vectors = np.concatenate([np.asarray(_pooled(graphdef, params, batch)) for batch in batches])
        return vectors[0] if single else vectors

    def for_files(self) -> Any:
        """A copy that takes pixels as in files, floats too."""
        own = nnx.merge(*nnx.split(self))
        own.floats_are_raw = True
        return own

    def check_images(self, images: Any) -> tuple[int, ...]:
        """The shape of `images`. Raises InputError for images that the model cannot take."""
        shape, dtype = np.shape(images), getattr(images, "dtype", np.dtype(float))
        expected = (self.grid.height, self.grid.width, len(self.mean))
        if len(shape) != 4 or shape[1:] != expected or shape[0] < 1:
            raise InputError(f"images: found shape {shape}, expected (b, h, w, c) with (h, w, c) = {expected}")
        if dtype not in (np.uint8, np.uint16, np.int16) and not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"images: found {dtype}, expected uint8, uint16, int16, or colour-normalised floats")
        return shape

    def _units(self, images: Images) -> Array:
        """[b, units, unit * unit * c], with unchanged pixels. Zeros fill up a grid that is not whole."""
        if not self.grid.whole:
            rows, columns = (side * self.grid.patch for side in self.grid.shape(0))
            beyond = ((0, side * self.grid.unit - length) for side, length in zip(self.grid.units, (rows, columns)))
            images = jnp.pad(images[:, :rows, :columns], ((0, 0), *beyond, (0, 0)))
        return jnp.asarray(to_unit_major(images, self.grid.unit, self.grid.unit))[:, :, 0]

    def _normalise(self, pixels: Array) -> Float[Array, "..."]:
        """Pixels -> colour-normalised float32, in which values without data are the mean, 0.

        The last axis holds whole pixels.
        """
        normal, there = self._normal(pixels), self._there(pixels)
        return normal if there is None else jnp.where(there, normal, 0)

    def _normal(self, pixels: Array) -> Float[Array, "..."]:
        integers = jnp.issubdtype(pixels.dtype, jnp.integer)
        if not (integers or self.floats_are_raw):
            return widened(pixels)
        scale = self.config.data.scale or (jnp.iinfo(pixels.dtype).max if integers else 1)
        shape = (1,) * (pixels.ndim - 1) + (pixels.shape[-1],)
        mean, std = (np.resize(np.asarray(v, np.float32), shape) for v in (self.mean, self.std))
        return (pixels.astype(jnp.float32) / scale - mean) / std

    def _there(self, pixels: Array) -> Bool[Array, "..."] | None:
        """Which values were measured, by `data.no_data`; None where all were."""
        no_data = self.config.data.no_data
        if no_data == "none":
            return None
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            return pixels != int(float(no_data))
        measured = ~jnp.isnan(pixels)
        return measured & (pixels != float(no_data)) if self.floats_are_raw else measured

    def _embedded(self, units: Array, plan: Plan) -> Float[Array, "b n c"]:
        """The plan's visible units, colour-normalised -> the tokens that the encoder takes."""
        b, u, _ = units.shape
        pixels = units.reshape(b, u, self.grid.unit, self.grid.unit, len(self.mean))
        return self.encoder.patch_embed(pixels, plan)


@partial(jax.jit, static_argnames="graphdef")
def _pooled(graphdef: nnx.GraphDef, params: Any, images: Array) -> Array:
    return nnx.merge(graphdef, params).pooled(images)


@partial(jax.jit, static_argnames="graphdef")
def _feature_maps(graphdef: nnx.GraphDef, params: Any, images: Array) -> list[Array]:
    return nnx.merge(graphdef, params).feature_maps(images)


def features(model: Backbone, images: Any) -> list[Float[Array, "b _ _ _"]]:
    """The dense feature pyramid: every stage's output on its grid, before merging and, unless stages end with norms of
    their own, without the final norm."""
    model.check_images(images)
    return _feature_maps(*nnx.split(model), jnp.asarray(images))


def widened(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Casts to float32, or leaves float64: losses are not summed in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
