"""Masked image models: green MIM (the encoder sees visible units only) and its baseline, SimMIM."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Num
from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_channels
from greenjax.backbones.initial import token_normal
from greenjax.backbones.layers import linear
from greenjax.errors import InputError
from greenjax.models.backbone import Backbone, Images, widened
from greenjax.models.decoder import Decoder
from greenjax.planning import Plan, dense_plan, exact_plan
from greenjax.planning.tokens import to_unit_major

TARGET_EPSILON = 1e-6  # added to the variance of a patch


class Output(NamedTuple):
    """What a masked image model returns.

    `prediction` holds every patch in raster order, each (row, column, channel), in the space of the target: normalised
    pixels of each patch, or colour-normalised pixels (`predicts_normalised`). A patch is the square of a token of the
    last stage, which is a unit in most models. `latent` is what the decoder gets: it follows the final norm, and has no
    class token; tokens of a unit are neighbours. `stages` are the tokens at the end of each stage, before merging or
    embedding for the next.
    """

    loss: Float[Array, ""]  # mean over the masked values that count in all images; 0 where there are none
    losses: Float[Array, " b"]  # the same mean in each image
    prediction: Float[Array, "b patches pixels"]
    latent: Float[Array, "b v latent"]
    stages: tuple[Float[Array, "b _ _"], ...]


def predicts_normalised(config: Any) -> bool:
    """Does the model of a config of pre-training predict the pixels of a patch less their mean, over their deviation?

    Otherwise it predicts colour-normalised pixels.
    """
    return config.method == "green" and config.decoder.norm_pixels


class MaskedImageModel(Backbone):
    """Targets, and the call with any masks; `GreenMIM` and `SimMIM` extend it."""

    plans_windows = True  # False: plans have visible units only, and the encoder takes all tokens

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.patch_pixels = self.grid.pixels**2 * config.model.in_channels
        self.predicts_normalised = predicts_normalised(config)

    def __call__(self, images: Any, visible: Any) -> Output:
        """Images under one mask, or under m masks with m dividing b, each for b / m images in turn.

        `images` [b, h, w, c] are floats, colour-normalised, where NaN is no data if `data.no_data` is given, or
        integers as in files. `visible` is a NumPy bool array [h / unit, w / unit] or [m, h / unit, w / unit], True =
        the encoder sees the unit; any number of units from one to all, equally many in each mask. Plans are made on the
        spot, with layouts that fit these masks exactly. Tokens of `stages` come in raster order. With nothing masked
        the loss is 0. Raises InputError for other shapes.
        """
        visible = self._checked(visible, self.check_images(images)[0])
        m = len(visible)
        specs = self.specs if self.plans_windows else ()
        plan = exact_plan(self.grid, specs, visible)
        by_mask = rearrange(jnp.asarray(images), "(m b) h w c -> m b h w c", m=m)
        out = _forward_by_mask(*nnx.split(self), by_mask, jax.tree.map(jnp.asarray, plan))
        out = out._replace(stages=self._raster(out.stages, plan))
        return Output(out.loss, *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tuple(out[1:])))

    def forward(self, images: Images, plan: Plan, key: Key[Array, ""] | None = None) -> Output:
        """Images that share one planned mask; tokens of `stages` stay unit-major. Without a key: no drop-path."""
        raise NotImplementedError

    def target(self, pixels: Float[Array, "b u p"], there: Bool[Array, "b u p"] | None) -> Float[Array, "b u p"]:
        """The target of the prediction, of colour-normalised patches; `there`: the values that count, None for all."""
        raise NotImplementedError

    def masked_target(self, images: Images, plan: Plan) -> Float[Array, "b u p"]:
        """The targets of the patches of the masked units; NaN for values without data, and in patches with fewer than
        two values."""
        patches, counting = self._masked_patches(images, plan), self._counting(images, plan)
        target = self.target(self._normalise(patches), self._there(patches))
        return target if counting is None else jnp.where(counting, target, jnp.nan)

    def counts(self, images: Images, plan: Plan) -> Int[Array, " b"] | None:
        """How many values of the masked units of each image count; None without `data.no_data`, where all do.

        Taken from images that are not cut into units: of whole batches, whose parts alone are cut at a time.
        """
        if (there := self._there(jnp.asarray(images))) is None:
            return None
        side, across = self.grid.pixels, self.grid.side(-1)
        count = reduce(there, "b (h p) (w q) c -> b h w", "sum", p=side, q=side)  # of each patch
        count = reduce(count * (count > 1), "b (h p) (w q) -> b (h w)", "sum", p=across, q=across)  # of each unit
        return jnp.take(count, plan.masked_units, axis=1, unique_indices=True).sum(axis=1)

    def _counting(self, images: Images, plan: Plan) -> Bool[Array, "b u p"] | None:
        """Which values of the masked units count; None without `data.no_data`, where all do."""
        there = self._there(self._masked_patches(images, plan))
        return None if there is None else there & (count_of(there) > 1)

    def losses(
        self, error: Callable[[Array], Array], predicted: Float[Array, "b u p"], images: Images, plan: Plan
    ) -> Float[Array, " b"]:
        """The mean error of each image over the values of its masked units that count; 0 where there are none."""
        difference, counting = widened(predicted) - self.masked_target(images, plan), self._counting(images, plan)
        if counting is None:
            return mean_over_units(error(difference))
        return error(jnp.where(counting, difference, 0)).sum(axis=(1, 2)) / jnp.maximum(1, counting.sum(axis=(1, 2)))

    def _masked_patches(self, images: Images, plan: Plan) -> Num[Array, "b u p"]:
        """The patches of the masked units, with unchanged pixels."""
        units = jnp.take(self._units(images), plan.masked_units, axis=1, unique_indices=True)
        squares = units.reshape(-1, self.grid.unit, self.grid.unit, len(self.mean))
        return to_unit_major(squares, self.grid.unit, self.grid.pixels).reshape(len(units), -1, self.patch_pixels)

    def _checked(self, visible: Any, images: int) -> Bool[np.ndarray, "m uh uw"]:
        h, w = self.grid.units
        try:
            visible = np.asarray(visible)
        except jax.errors.TracerArrayConversionError:
            message = "visible: found a traced array, expected a NumPy array: its plan is made in NumPy"
            raise InputError(message) from None
        if visible.dtype != bool or visible.ndim not in (2, 3) or visible.shape[-2:] != (h, w) or not visible.size:
            raise InputError(
                f"visible: found {visible.dtype} {visible.shape}, expected bool ({h}, {w}) or (m, {h}, {w})"
            )
        visible = visible.reshape(-1, h, w)
        counts = sorted(set(visible.sum(axis=(1, 2)).tolist()))
        if len(counts) > 1 or counts[0] < 1:
            raise InputError(f"visible: found {counts} visible units, expected one number of at least 1 in every mask")
        if images % len(visible):
            raise InputError(f"visible: found {len(visible)} masks, expected a divisor of the {images} images")
        return visible

    def _raster(self, stages: tuple[Array, ...], plan: Plan) -> tuple[Array, ...]:
        """Unit-major tokens [m, b, n, c] of the visible units in raster order of each stage's grid."""
        ordered = []
        for stage, x in enumerate(stages):
            raster = self.grid.raster(stage)
            seen = raster[plan.visible_units] if self.plans_windows else np.stack([raster] * len(x))
            order = np.argsort(seen.reshape(len(x), -1), axis=1)
            ordered.append(jnp.take_along_axis(x, order[:, None, :, None], axis=2))
        return tuple(ordered)


class GreenMIM(MaskedImageModel):
    """Encodes visible units only, decodes with mask tokens, predicts normalised pixels of each patch.

    Source: paper, sections 3.1 and 4.1; target and loss as in MAE (arXiv 2111.06377), which this is with a ViT.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.decoder = Decoder(config, self.patch_pixels, rngs=rngs)

    def forward(self, images: Images, plan: Plan, key: Key[Array, ""] | None = None) -> Output:
        units = self._units(images)
        # Masked pixels are cut out before any computation.
        visible = jnp.take(units, plan.visible_units, axis=1, unique_indices=True)
        tokens, stages = self.encoder(self._embedded(self._normalise(visible), plan), plan, key)
        if self.config.decoder.fusion:
            tokens = self.encoder.norm(self.decoder.fused(stages))
        seen, predicted = self.decoder(tokens, plan.visible_units, plan.masked_units)
        losses = self.losses(jnp.square, predicted, images, plan)
        units = jnp.concatenate([plan.visible_units, plan.masked_units])
        order = jnp.argsort(jnp.take(jnp.asarray(self.grid.raster(-1)), units, axis=0).ravel())
        prediction = widened(jnp.concatenate([seen, predicted], axis=1))[:, order]
        loss = mean_over_images(losses, self.counts(images, plan))
        return Output(loss, losses, prediction, tokens[:, : seen.shape[1]], stages)

    def target(self, pixels: Float[Array, "b u p"], there: Bool[Array, "b u p"] | None) -> Float[Array, "b u p"]:
        """Normalised pixels (`normalised`); without `decoder.norm_pixels`, the pixels as they are."""
        return normalised(pixels, there) if self.predicts_normalised else pixels


class SimMIM(MaskedImageModel):
    """Encodes all tokens, mask tokens at the masked ones, and predicts pixels by one linear layer; L1 on masked pixels.

    Source: SimMIM (arXiv 2111.09886), section 3. The dense baseline of the paper, on the same encoder.
    """

    plans_windows = False

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.mask_token = nnx.Param(token_normal(rngs.params(), (stage_channels(config)[0],), jnp.float32))
        self.pixel_head = linear(self.latent_dim, self.patch_pixels, dtype=config.model.dtype, rngs=rngs)

    def forward(self, images: Images, plan: Plan, key: Key[Array, ""] | None = None) -> Output:
        units, dense = self._units(images), dense_plan(self.grid, self.specs)
        masked = jnp.ones(units.shape[1], bool).at[plan.visible_units].set(False, unique_indices=True)
        # A stem that overlaps its neighbours reads masked pixels as zeros.
        x = self._embedded(jnp.where(masked[None, :, None], 0, self._normalise(units)), dense)
        masked_tokens = jnp.repeat(masked, self.grid.tokens_per_unit(0))[None, :, None]
        x = jnp.where(masked_tokens, self.mask_token[...].astype(x.dtype)[None, None], x)
        tokens, stages = self.encoder(x, dense, key)
        raster = self.grid.raster(-1)
        latent = tokens[:, : raster.size]
        prediction = widened(self.pixel_head(latent))
        by_unit = prediction.reshape(len(units), *raster.shape, -1)
        predicted = jnp.take(by_unit, plan.masked_units, axis=1).reshape(len(units), -1, self.patch_pixels)
        losses = self.losses(jnp.abs, predicted, images, plan)
        loss = mean_over_images(losses, self.counts(images, plan))
        return Output(loss, losses, prediction[:, np.argsort(raster.ravel())], latent, stages)

    def target(self, pixels: Float[Array, "b u p"], there: Bool[Array, "b u p"] | None) -> Float[Array, "b u p"]:
        return pixels


@partial(jax.jit, static_argnames="graphdef")
def _forward_by_mask(graphdef: nnx.GraphDef, params: Any, images: Array, plan: Plan) -> Output:
    """[m, b, h, w, c] images, a plan a mask; the loss is that of all. Op by op, a first call would take far longer."""
    model = nnx.merge(graphdef, params)
    out = jax.vmap(lambda images, plan: model.forward(images, plan))(images, plan)
    return out._replace(loss=mean_over_images(out.losses, jax.vmap(model.counts)(images, plan)))


def normalised(pixels: Float[Array, "b u p"], there: Bool[Array, "b u p"] | None) -> Float[Array, "b u p"]:
    """Every patch with mean 0 and (unbiased) variance 1 over the values that count, all for None; flat ones become 0.

    Source: MAE (arXiv 2111.06377), section 4.1.
    """
    if there is None:
        centred = pixels - pixels.mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(pixels.var(axis=-1, ddof=1, keepdims=True) + TARGET_EPSILON)
    count = count_of(there)  # other values are 0
    centred = jnp.where(there, pixels - pixels.sum(axis=-1, keepdims=True) / jnp.maximum(count, 1), 0)
    variance = jnp.square(centred).sum(axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    return centred * jax.lax.rsqrt(variance + TARGET_EPSILON)


def count_of(there: Bool[Array, "b u p"]) -> Int[Array, "b u 1"]:
    """The number of values of each patch that count."""
    return there.sum(axis=-1, keepdims=True)


def mean_over_units(errors: Float[Array, "b u p"]) -> Float[Array, " b"]:
    """The mean of each image; 0 where no unit is masked."""
    return errors.sum(axis=(1, 2)) / max(1, errors.shape[1] * errors.shape[2])


def mean_over_images(losses: Float[Array, "*s"], counts: Int[Array, "*s"] | None) -> Float[Array, ""]:
    """The mean over the values that count in all images, from the means of images; 0 where none does."""
    return losses.mean() if counts is None else (losses * image_weights(counts)).mean()


def image_weights(counts: Int[Array, "*s"]) -> Float[Array, "*s"]:
    """Weights of images by how many of their values count. Their mean is 1, or 0 where no value counts."""
    share = counts.astype(jnp.float32)  # the sum over a batch may exceed int32
    return share * (share.size / jnp.maximum(1, share.sum()))
