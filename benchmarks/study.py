"""Accuracy with labels of a pre-trained encoder, compared with the same encoder without pre-training.

    python -m benchmarks study --config configs/finetune_digits.py --config.init=runs/digits --workdir runs/labels

Both encoders are judged frozen, by a linear probe and by k-NN, and after fine-tuning. For the random encoder that is
training from scratch: the same updates at a rate of its own. Each is done with all labels and with the labels of
`data.per_class` images a class. A seed fixes the random encoder, the head, the order and augmentation of the images,
and which of them have labels; `config.seed` is the first. docs/digits.md explains the figures.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from benchmarks.tables import seeds_table
from greenjax.config import flatten, resolve
from greenjax.config.flags import folder, positive
from greenjax.data.labels import Chosen, LabelledSource, check_classes, first_of_each_class
from greenjax.data.loader import labelled_batches
from greenjax.data.open import open_labelled
from greenjax.errors import InputError
from greenjax.evaluation.classify import accuracy
from greenjax.evaluation.knn import knn_scores
from greenjax.evaluation.monitor import check_neighbours
from greenjax.evaluation.outputs import Features, pooled_forward, source_features
from greenjax.evaluation.probe import linear_scores
from greenjax.evaluation.results import write_results
from greenjax.interop.loading import initial_model
from greenjax.models import build
from greenjax.runtime.cache import keep_compiled
from greenjax.runtime.console import say
from greenjax.runtime.files import read_json, replace_text
from greenjax.runtime.lock import held
from greenjax.runtime.placement import Placement
from greenjax.tasks.classify import classification, held_out_images, with_head
from greenjax.tasks.report import Judge
from greenjax.training.optim import learning_rate, run_length
from greenjax.training.record import HARMLESS as RESUMABLE
from greenjax.training.record import record_config
from greenjax.training.sharding import make_mesh
from greenjax.training.start import check_new
from greenjax.training.state import State, init_state, model_graph
from greenjax.training.step import Metrics, make_update

RANDOM, PRETRAINED, SCRATCH, FINETUNED = "random encoder", "pre-trained encoder", "from scratch", "fine-tuned"
PROBE, KNN, FINETUNE = "linear probe", "k-NN", "fine-tuning"
# How the names of settings begin that change neither a training nor its judgement by a benchmark.
HARMLESS = tuple(part for part in RESUMABLE if part not in ("knn.", "data.eval"))

FLAGS = {
    "--workdir": dict(required=True, type=folder, help="where the table and the numbers go"),
    "--seeds": dict(type=positive, default=3, help="how many"),
    "--scratch-lr": dict(type=float, help="optim.base_lr from scratch; default: the config's"),
}

Row = dict[str, Any]


def run(config: ConfigDict, workdir: Path, seeds: int, scratch_lr: float | None) -> dict[str, Any]:
    """Prints the table of a study, and returns its rows."""
    keep_compiled()
    with held(workdir, "--workdir"):
        return {"rows": study(config, workdir, seeds, scratch_lr)}


def study(config: ConfigDict, workdir: Path, seeds: int, scratch_lr: float | None = None) -> list[Row]:
    """A row for each set of labels, encoder and seed; prints their table.

    `scratch_lr`: the `optim.base_lr` from scratch, where it is another. Leaves results.json, table.txt and the settings
    in `workdir`. Raises InputError for a configuration that cannot be studied, before anything expensive starts.
    """
    if scratch_lr is not None and not 0 < scratch_lr < math.inf:
        raise InputError(f"--scratch-lr is {scratch_lr}: expected a number above 0")
    bench = Bench(config)
    check_new(workdir)
    record_config(workdir, config, len(bench.images), resuming=False)
    (workdir / "results.json").unlink(missing_ok=True)
    rows: list[Row] = []
    for row in measure(bench, range(config.seed, config.seed + seeds), scratch_lr):
        name = f"{row['labels']} labels, {row['encoder']}, seed {row['seed']}"
        numbers = ", ".join(f"{key} {row[key]:.4f}" for key in (PROBE, KNN, FINETUNE) if key in row)
        say(f"{name}: {numbers}")
        write_results(workdir, name, row)
        rows.append(row)
    table = seeds_table(rows, ("labels", "encoder"), (PROBE, KNN, FINETUNE))
    replace_text(workdir / "table.txt", table + "\n")
    say(f"\nTop-1 on {config.data.eval_split!r}, mean and standard deviation over seeds:\n\n{table}")
    return rows


def measure(bench: "Bench", seeds: Sequence[int], scratch_lr: float | None = None) -> Iterator[Row]:
    """Yields the rows of a study, with top-1 on the held-out images."""
    fresh, pretrained = bench.fresh, bench.pretrained
    judged = partial(bench.finetuned, base_lr=scratch_lr)
    ways = (
        (RANDOM, fresh, bench.frozen),
        (PRETRAINED, pretrained, bench.frozen),
        (SCRATCH, fresh, judged),
        (FINETUNED, pretrained, bench.finetuned),
    )
    for per_class in dict.fromkeys((0, bench.config.data.per_class)):
        labels = f"{per_class} a class" if per_class else "all"
        for encoder, weights_by, found_by in ways:
            for seed in seeds:
                found = found_by(weights_by(seed), bench.labelled(per_class, seed), seed)
                yield {"labels": labels, "encoder": encoder, "seed": seed} | found


class Bench:
    """The parts that all rows of a study share: images, pre-trained weights, compiled programs."""

    def __init__(self, config: ConfigDict):
        """Raises InputError for a configuration that cannot be studied."""
        for key, given in (("init", config.init != "none"), ("data.eval_split", config.data.eval_split)):
            if not given:
                raise InputError(f"{key} is not given: expected one, for a study")
        if config.task != "finetune":
            raise InputError(f"task is {config.task!r}: expected 'finetune', for a study")
        self.images = open_labelled(changed(config, {"data.per_class": 0}).data, config.data.split)
        config = with_head(config, self.images)
        self.config, self.mesh = config, make_mesh(config)
        check_classes(config, self.images)
        found = held_out_images(config, self.images)
        assert found is not None
        self.held_out = found.source
        fewest = self.labelled(config.data.per_class, config.seed)  # raises where a class has fewer
        check_neighbours(config, len(fewest), config.data.split)
        self.total, warmup = run_length(config, len(self.images))
        self.place = Placement(self.mesh)
        graphdef = model_graph(config)
        self.judge, self.pooled = Judge(config, graphdef, self.mesh), pooled_forward(graphdef)
        schedule = learning_rate(config, self.total, warmup)

        @partial(jax.jit, donate_argnums=0)
        def update(state: State, batch: Any, seed: Array, scale: Array) -> tuple[State, Metrics]:
            """The update of fine-tuning; seed and rate are arguments, so that all runs share one program."""
            task = classification(config, seed)
            return make_update(task, self.mesh, lambda step: scale * schedule(step))(state, batch)

        self.update = update

    def fresh(self, seed: int) -> Any:
        """The weights of a new encoder under a new head."""
        return parameters(build(self.config, seed))

    def pretrained(self, seed: int) -> Any:
        """The weights of `config.init` under a new head."""
        found = initial_model(changed(self.config, {"seed": seed, "new_head": True}))
        assert found is not None
        return parameters(found[0])

    def labelled(self, per_class: int, seed: int) -> LabelledSource:
        """All training images, or `per_class` of each class."""
        return draw_of_each_class(self.images, per_class, seed, self.config.data.split) if per_class else self.images

    def frozen(self, params: Any, labelled: LabelledSource, seed: int) -> dict[str, float]:
        """Accuracies of the pooled features under a linear probe and the first k of k-NN."""
        return self.scored(self.features(params, labelled), self.features(params, self.held_out), seed)

    def features(self, params: Any, source: LabelledSource) -> Features:
        with jax.set_mesh(self.mesh):  # kernels want to know it: ops/fused_attention.py
            return source_features(self.config, self.pooled, params, source, self.place)

    def scored(self, bank: Features, queries: Features, seed: int) -> dict[str, float]:
        """Accuracies on `queries` of a linear probe and the first k of k-NN that learn from `bank`."""
        return frozen_top1(self.config, bank, queries, len(self.images.classes), seed)

    def finetuned(
        self, params: Any, labelled: LabelledSource, seed: int, base_lr: float | None = None
    ) -> dict[str, float]:
        """Accuracy of the classifier that the config's recipe makes of these weights."""
        state = self.train(params, labelled, seed, base_lr)
        with jax.set_mesh(self.mesh):  # as above
            return {FINETUNE: self.judge.evaluate(state.weights, self.held_out).metrics["top1"]}

    def train(self, params: Any, labelled: LabelledSource, seed: int, base_lr: float | None = None) -> State:
        state = init_state(self.config, self.mesh, params)
        batches = labelled_batches(changed(self.config, {"seed": seed}), labelled)
        scale = np.float32((base_lr or self.config.optim.base_lr) / self.config.optim.base_lr)
        for _ in range(self.total):
            state, _ = self.update(state, self.place(next(batches)), np.uint32(seed), scale)
        return state


def frozen_top1(config: ConfigDict, bank: Features, queries: Features, classes: int, seed: int = 0) -> dict[str, float]:
    """Accuracies on `queries` of a linear probe and the first k of k-NN that learn from `bank`."""
    k, temperature = config.knn.k[0], config.knn.temperature
    scores = {
        PROBE: linear_scores(bank, queries, classes, seed=seed),
        KNN: knn_scores(*bank, queries.values, classes, k=(k,), temperature=temperature)[k],
    }
    return {name: accuracy(of_all, queries.labels)["top1"] for name, of_all in scores.items()}


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    return resolve(flatten(config) | changes)


def remember(workdir: Path, configs: dict[str, ConfigDict], *free: str) -> None:
    """Writes down the configs of a workdir. Raises InputError where it already has others.

    `free`: settings that may differ all the same; so may HARMLESS ones.
    """
    file = workdir / "configs.json"
    found = read_json(file, dict, "expected configs; take another --workdir") if file.exists() else {}
    new = configs.keys() - found.keys()
    for flag, config in configs.items():
        values = json.loads(json.dumps(flatten(config)))
        for key, value in found.setdefault(flag, values).items():
            if not key.startswith((*HARMLESS, *free)) and values.get(key) != value:
                raise InputError(
                    f"{key} of {flag} is {values.get(key)!r}: {file} has {value!r}; take another --workdir"
                )
    if new:  # several processes share a workdir
        replace_text(file, json.dumps(found, indent=1) + "\n")


def parameters(model: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def draw_of_each_class(source: LabelledSource, count: int, seed: int, split: str) -> LabelledSource:
    """`count` images of every class, drawn by `seed`; `split` names the source in errors."""
    shuffled = Chosen(source, np.random.default_rng(seed).permutation(len(source)))
    return Chosen(shuffled, first_of_each_class(shuffled, count, split))
