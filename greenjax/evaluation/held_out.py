"""What is watched on held-out images: the loss under masks that never change, what to compare it with, pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.data.encoded import Images
from greenjax.data.loader import Batch, eval_batches
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.checks import Place
from greenjax.evaluation.pictures.reconstruct import draw_reconstructions
from greenjax.planning import Planner
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import gathered, leads

FITTED_VALUES = 1 << 25  # target values that the constant prediction is fitted to: 128 MB
PICTURES = 8  # images in a grid


class HeldOut:
    """The held-out images of one run."""

    def __init__(
        self,
        config: ConfigDict,
        source: Images,
        planner: Planner,
        graphdef: nnx.GraphDef,
        place: Placement,
        undecodable: Undecodable | None = None,
    ):
        """Images that cannot be used are left out, and told to `undecodable`."""
        self.config, self.source, self.planner, self.place = config, source, planner, place
        self.undecodable = undecodable
        self.own = place.own(config.mask.groups)

        @jax.jit
        def losses(params: Any, batch: Batch) -> Float[Array, "m b"]:
            model = nnx.merge(graphdef, params)
            # The axes over which `place` spreads the mask groups: spconv's callbacks stay on their device.
            axes = jax.sharding.get_abstract_mesh().axis_names or None
            by_group = jax.vmap(lambda images, plan: model.forward(images, plan).losses, spmd_axis_name=axes)
            return by_group(batch.images, batch.plan)

        @jax.jit
        def targets(params: Any, batch: Batch) -> Float[Array, "m b u p"]:
            return jax.vmap(nnx.merge(graphdef, params).masked_target)(batch.images, batch.plan)

        self._losses, self._targets = losses, targets

    def batches(self) -> Iterator[Batch]:
        """This process's held-out images, in parts as large as those of a training step: they fit where it fits."""
        part = len(self.own) // self.config.optim.accumulation
        for batch in eval_batches(self.config, self.source, self.planner, self.own, self.undecodable):
            for first in range(0, len(self.own), part):
                yield jax.tree.map(lambda leaf, first=first: leaf[first : first + part], batch)

    def loss(self, params: Any) -> float:
        """Mean over all held-out images, each counted once."""
        total, count = 0.0, 0
        for batch in self.batches():
            losses, valid = gathered((self._losses(params, self.place(batch)), batch.valid))
            total, count = total + losses[valid].sum(dtype=np.float64), count + valid.sum()
        if not count:
            raise InputError("no held-out image can be used: expected at least 1 (warnings name them)")
        return float(total / count)

    def best_constant(self, params: Any) -> float:
        """The loss of the one unit that fits all held-out targets best: what a model that sees nothing can reach.

        The mean unit for a squared error, the median one for an absolute error, over the first FITTED_VALUES values
        of the targets. Parameters do not matter.
        """
        seen: list[np.ndarray] = []
        for batch in self.batches():
            targets, valid = gathered((self._targets(params, self.place(batch)), batch.valid))
            seen.append(targets[valid].reshape(-1, targets.shape[-1]))
            if sum(units.size for units in seen) >= FITTED_VALUES:
                break
        units = np.concatenate(seen)[: FITTED_VALUES // seen[0].shape[-1]].astype(np.float64)
        if self.config.method == "simmim":
            return float(np.abs(units - np.median(units, axis=0)).mean())
        return float(np.square(units - units.mean(axis=0)).mean())


class Pictures:
    """Reconstructions of the same few images under the same masks, drawn again as training goes on."""

    def __init__(self, config: ConfigDict, batch: Batch, graphdef: nnx.GraphDef, place: Place):
        """Takes the first images of a whole batch, all of a small one; every mask group gives equally many.

        `place` puts a copy on every device.
        """
        groups = min(PICTURES, len(batch.images))
        each = min(-(-PICTURES // groups), batch.images.shape[1])
        few = jax.tree.map(lambda leaf: leaf[:groups], batch)
        few = few._replace(images=few.images[:, :each], valid=few.valid[:, :each])
        self.config, self.batch, self.shown = config, place(few), few.valid.ravel()
        self.images = few.images.reshape(-1, *few.images.shape[2:])
        visible = np.zeros((groups, each, np.prod(token_grid(config).units)), bool)
        for group, units in enumerate(few.plan.visible_units):
            visible[group, :, units] = True
        self.visible = visible.reshape(-1, *token_grid(config).units)

        @jax.jit
        def predict(params: Any, batch: Batch) -> Float[Array, "m b units pixels"]:
            model = nnx.merge(graphdef, params)
            return jax.vmap(lambda images, plan: model.forward(images, plan).prediction)(batch.images, batch.plan)

        self._predict = predict

    def draw(self, path: Path, params: Any) -> None:
        """Writes a PNG: original, visible part, reconstruction. All processes take part, one writes."""
        prediction = gathered(self._predict(params, self.batch))
        if not leads():
            return
        prediction = prediction.reshape(len(self.images), *prediction.shape[2:])
        draw_reconstructions(
            path,
            self.images[self.shown],
            self.visible[self.shown],
            prediction[self.shown],
            unit=token_grid(self.config).unit,
            mean=self.config.data.mean,
            std=self.config.data.std,
            normalised=self.config.method == "green",
        )
