"""Held-out images in pre-training: the loss under masks that never change, the best constant, reconstructions."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from greenjax.data.loader import Batch
from greenjax.data.reading import scale_of
from greenjax.errors import InputError
from greenjax.evaluation.checks import Place
from greenjax.evaluation.pictures.reconstruct import Colours, sheet
from greenjax.runtime.processes import gathered, leads

FITTED_VALUES = 1 << 25  # target values that the constant prediction is fitted to: 128 MB
PICTURES = 8  # images in a grid


class HeldOut:
    """The masked loss on the held-out images of a run, and the loss of the best constant."""

    def __init__(
        self, config: ConfigDict, graphdef: nnx.GraphDef, place: Place, batches: Callable[[], Iterable[Batch]]
    ):
        """`batches()` yields this process's mask groups of every held-out batch, the same at each call."""
        self.config, self.place, self.batches = config, place, batches

        @jax.jit
        def losses(params: Any, batch: Batch) -> tuple[Float[Array, "m b"], Int[Array, "m b"] | None]:
            model = nnx.merge(graphdef, params)
            # The axes over which `place` spreads the mask groups: spconv's callbacks stay on their device.
            axes = jax.sharding.get_abstract_mesh().axis_names or None
            by_group = jax.vmap(lambda images, plan: model.forward(images, plan).losses, spmd_axis_name=axes)
            return by_group(batch.images, batch.plan), jax.vmap(model.counts)(batch.images, batch.plan)

        @jax.jit
        def targets(params: Any, batch: Batch) -> Float[Array, "m b u p"]:
            return jax.vmap(nnx.merge(graphdef, params).masked_target)(batch.images, batch.plan)

        self._losses, self._targets = losses, targets

    def parts(self) -> Iterator[Batch]:
        """Parts of the batches, as large as the parts of a training step: they fit into memory where those fit."""
        for batch in self.batches():
            size = len(batch.images) // self.config.optim.accumulation
            for first in range(0, len(batch.images), size):
                yield jax.tree.map(lambda leaf, first=first, size=size: leaf[first : first + size], batch)

    def loss(self, params: Any) -> float:
        """The mean over all held-out images, weighed by their masked values that count, as in `best_constant`."""
        total, count = 0.0, 0
        for batch in self.parts():
            (losses, counts), valid = gathered((self._losses(params, self.place(batch)), batch.valid))
            weights = np.ones(valid.sum(), int) if counts is None else counts[valid]
            total, count = total + (losses[valid].astype(np.float64) * weights).sum(), count + weights.sum()
        if not count:
            raise InputError("no held-out image can be used (see warnings): expected at least 1 with data to predict")
        return float(total / count)

    def best_constant(self, params: Any) -> float:
        """The loss of the one unit that fits all held-out targets best: a model that sees nothing can reach it.

        The mean unit for a squared error, the median unit for an absolute error. Of more targets than FITTED_VALUES
        every second unit counts, or every fourth, and so on. The result does not depend on the parameters.
        """
        seen, every = list[np.ndarray](), 1
        for batch in self.parts():
            targets, valid = gathered((self._targets(params, self.place(batch)), batch.valid))
            seen.append(targets[valid].reshape(-1, targets.shape[-1])[::every])
            while sum(units.size for units in seen) > max(FITTED_VALUES, len(seen) * targets.shape[-1]):
                seen, every = [units[::2].copy() for units in seen], 2 * every
        units: Any = np.concatenate(seen).astype(np.float64)
        median = np.median
        if self.config.data.no_data != "none":  # values that do not count are NaN
            units, median = np.ma.masked_invalid(units), np.ma.median
        if self.config.method == "simmim":
            return float(np.abs(units - median(units, axis=0)).mean())
        return float(np.square(units - units.mean(axis=0)).mean())


class Pictures:
    """Draws reconstructions of the same few images under the same masks again and again."""

    def __init__(
        self, config: ConfigDict, batch: Batch, graphdef: nnx.GraphDef, place: Place, grid: Any, normalised: bool
    ):
        """Takes the first images of a whole batch, equally many of each of as many mask groups as there are images for.

        `place` puts a copy on every device. `grid`: of the model. `normalised`: as in `paste`.
        """

        def found(groups: int) -> int:
            return min(PICTURES, int(batch.valid[:groups, : -(-PICTURES // groups)].sum()))

        groups = max(range(1, min(PICTURES, len(batch.images)) + 1), key=lambda groups: (found(groups), groups))
        each = min(-(-PICTURES // groups), batch.images.shape[1])
        few = jax.tree.map(lambda leaf: leaf[:groups], batch)
        few = few._replace(images=few.images[:, :each], valid=few.valid[:, :each])
        self.config, self.batch, self.shown, self.patch = config, place(few), few.valid.ravel(), grid.pixels
        self.normalised = normalised
        self.images = few.images.reshape(-1, *few.images.shape[2:])
        visible = np.zeros((groups, each, math.prod(grid.units)), bool)
        for group, units in enumerate(few.plan.visible_units):
            visible[group, :, units] = True
        self.visible = visible.reshape(-1, *grid.units)

        @jax.jit
        def predict(params: Any, batch: Batch) -> Float[Array, "m b patches pixels"]:
            model = nnx.merge(graphdef, params)
            return jax.vmap(lambda images, plan: model.forward(images, plan).prediction)(batch.images, batch.plan)

        self._predict = predict

    def draw(self, path: Path, params: Any) -> None:
        """Writes a PNG: original, visible part, reconstruction. All processes take part, one writes."""
        prediction = gathered(self._predict(params, self.batch))
        if not leads():
            return
        data, prediction = self.config.data, prediction.reshape(len(self.images), *prediction.shape[2:])
        colours = Colours(data.mean, data.std, scale_of(data), data.no_data, self.config.log.picture_channels)
        shown = (array[self.shown] for array in (self.images, self.visible, prediction))
        sheet(*shown, patch=self.patch, colours=colours, normalised=self.normalised).save(path)
