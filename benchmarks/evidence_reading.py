"""Reads a training: accuracy of its features, frozen and fine-tuned, and signals that need no labels."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.evidence_signals import signals
from benchmarks.programs import memory_of
from benchmarks.study import FINETUNE, Bench, changed, parameters
from greenjax.data.loader import labelled_batches
from greenjax.data.open import open_source
from greenjax.data.overlap import located
from greenjax.evaluation.outputs import Features
from greenjax.evaluation.views import ViewsMonitor
from greenjax.interop.loading import initial_model
from greenjax.runtime.cost import matmul_flops
from greenjax.training.state import init_state, model_graph

ALL, FEW = "all labels", "few labels"
# Settings that say which images there are and how they are read; crops and batches are each recipe's own.
IMAGES = ("source", "path", "name", "image_column", "label_column", "split", "eval_split")
IMAGES += ("dtype", "channels", "alpha", "page", "no_data", "scale", "mean", "std")


class Reader:
    """Judges encoders of one architecture on the splits of a fine-tuning recipe."""

    def __init__(self, recipe: ConfigDict, config: ConfigDict, model: ConfigDict):
        """`recipe`: of fine-tuning; it takes over the images of a pre-training, `config`, and the encoder `model`."""
        kept = ("num_classes", "drop_path")
        encoder = {f"model.{key}": value for key, value in model.items() if key not in kept}
        images = {f"data.{key}": config.data[key] for key in IMAGES}
        later = "the run that is read"  # Bench wants an init; each reading brings its own
        same = encoder | images | {"image_size": config.image_size, "init": later}
        self.bench = Bench(changed(recipe, same))
        self.per_class = {ALL: 0, FEW: recipe.data.per_class}
        graphdef = model_graph(self.bench.config)
        images_alone = open_source(config.data, config.data.split)
        self.views = ViewsMonitor(config, images_alone, graphdef, self.bench.place)
        # Programs of another length are compiled once, too.
        self.lengthened = cache(lambda steps: Bench(changed(self.bench.config, {"steps": steps})))

    def frozen(self, params: Any, seed: int) -> dict[str, float]:
        """Top-1 of a linear probe and k-NN with all and few labels, and the signals."""
        bench = self.bench
        bank, queries = bench.features(params, bench.images), bench.features(params, bench.held_out)
        with jax.set_mesh(bench.mesh):  # as in Bench.features
            views = self.views.features(params)
        found: dict[str, float] = {}
        for labels, per_class in self.per_class.items():
            rows = located(bench.labelled(per_class, seed))[1] if per_class else slice(None)
            scores = bench.scored(Features(bank.values[rows], bank.labels[rows]), queries, seed)
            found |= {f"{way}, {labels}": top1 for way, top1 in scores.items()}
        return found | signals(*views)

    def finetuned(self, params: Any, labels: str, seed: int, rate: float, extra: int = 0) -> dict[str, float]:
        """Top-1 after fine-tuning at `rate` times the recipe's rate, for `extra` updates more than the recipe's."""
        bench = self.bench if not extra else self.lengthened(self.bench.config.steps + extra)
        base_lr = rate * bench.config.optim.base_lr
        found = bench.finetuned(params, bench.labelled(self.per_class[labels], seed), seed, base_lr)
        return {f"{FINETUNE}, {labels}": found[FINETUNE]}

    def weights(self, run: Path | str | None, step: int | None, seed: int) -> Any:
        """The encoder of a run at a step, by default its last, or without a run a random one, under a new head."""
        if run is None:
            return self.bench.fresh(seed)
        found = initial_model(changed(self.bench.config, {"init": str(run), "seed": seed, "new_head": True}), step)
        assert found is not None
        return parameters(found[0])

    def labelled_update(self) -> tuple[Callable[[], Any], int, int]:
        """The update of the recipe on its next batch, as a function without arguments; its FLOPs, and its bytes."""
        bench = self.bench
        state = init_state(bench.config, bench.mesh, bench.fresh(0))
        batches, rest = labelled_batches(bench.config, bench.images), (np.uint32(0), np.float32(1))
        traced = bench.update.trace(state, bench.place(next(batches)), *rest)
        compiled, held = traced.lower().compile(), [state]

        def update() -> Any:
            held[0], metrics = compiled(held[0], bench.place(next(batches)), *rest)
            return metrics

        return update, matmul_flops(traced.jaxpr), memory_of(compiled)[1]
