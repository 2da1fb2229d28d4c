"""Training a classifier on labels, all of it or its head on a frozen encoder: the story, top to bottom."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.data.labels import LabelledSource, Matched, check_classes, check_several, matched
from greenjax.data.loader import Batches, LabelledBatch, blank_labelled_batch, labelled_batches
from greenjax.data.open import open_labelled
from greenjax.data.overlap import warn_of_overlap
from greenjax.evaluation.classify import reported_accuracies
from greenjax.evaluation.pictures.curve import draw_accuracy_curve
from greenjax.runtime.console import say
from greenjax.runtime.files import read_metrics, unless_unwritable
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import leads
from greenjax.tasks.mix import mix, one_hot
from greenjax.tasks.report import Judge, report
from greenjax.tasks.summary import end_lines, run_time, say_listing, start_lines
from greenjax.tasks.weights import given_weights
from greenjax.training.loop import Hook, train
from greenjax.training.metrics import MetricsWriter
from greenjax.training.sharding import make_mesh
from greenjax.training.start import HELD_OUT, TRAINING, begin
from greenjax.training.state import Params, State, model_graph
from greenjax.training.step import Extras, Task
from greenjax.training.together import holding_workdir


@holding_workdir
def finetune(config: ConfigDict, workdir: Path) -> State:
    """Trains a resolved configuration, task "finetune" or "linear", to its last step, and returns the state.

    The weights come from `config.init`, or are fresh: the same recipe from scratch. The head has an output for each
    class of the training split, unless `model.num_classes` says how many. Leaves metrics, checkpoints, classes.json,
    results.json and pictures of the mistakes on `data.eval_split` in `workdir`. Raises InputError for a configuration
    that cannot run here, before anything expensive starts, and DivergedError as pre-training does.
    """
    mesh = make_mesh(config)
    say_listing(config)
    source = open_labelled(config.data, config.data.split)
    config = with_head(config, source)
    check_classes(config, source)
    held_out = held_out_images(config, source)
    sources = {TRAINING: source, HELD_OUT: held_out and held_out.source}

    task, blank = classification(config), blank_labelled_batch(config)
    weights = partial(given_weights, config, source.classes)
    run, state = begin(task, workdir, mesh, blank, sources, weights, source.classes)  # compiles the update in a thread
    say(*start_lines(run))
    judge = Judge(config, task.graphdef, mesh, run.undecodable)
    own = Placement(mesh).own(config.data.batch_size)
    reported: list[int] = []

    def measure(step: int, state: State, writer: MetricsWriter) -> None:
        """Accuracy on the held-out split; of the averaged weights where there are any."""
        assert held_out is not None
        writer.phase("measuring the accuracy on held-out images")
        found = judge.evaluate(state.weights, held_out.source, predictions=step == run.total)
        numbers = reported_accuracies(found.metrics, len(source.classes)) | {"loss": found.metrics["loss"]}
        writer.write(step, {f"eval_{name}": value for name, value in numbers.items()})
        if step == run.total:
            report(config, workdir, config.data.eval_split, found, held_out, step)
            reported.append(step)

    def batches(position: int) -> Batches[LabelledBatch]:
        return labelled_batches(config, source, position, own, run.undecodable)

    state = train(run, state, batches, [Hook(config.log.eval_every, measure)] if held_out else [])
    if leads():
        with unless_unwritable("accuracy.png"):
            draw_accuracy_curve(workdir / "accuracy.png", read_metrics(workdir))
    if held_out is not None and not reported:  # another eval_split or log.predictions may have been asked for
        found = judge.evaluate(state.weights, held_out.source, predictions=True)
        report(config, workdir, config.data.eval_split, found, held_out, run.total)
    say(*end_lines(workdir, run_time(run)))
    return state


def classification(config: ConfigDict, seed: int | Array | None = None) -> Task[LabelledBatch, tuple]:
    """The mean cross-entropy of images with labels; "linear" trains the head alone.

    Images are mixed before the batch is split into parts, so accumulation does not change who is mixed with whom.
    `seed` stands in for the config's: runs that share one compiled update trace it.
    """
    graphdef, own = model_graph(config), config.seed if seed is None else seed
    data, classes, smoothing = config.data, config.model.num_classes, config.optim.label_smoothing

    def prepare(batch: LabelledBatch, step: Array) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(own), step)
        targets = one_hot(jnp.asarray(batch.labels), classes, smoothing)
        options = dict(mixup=data.mixup, cutmix=data.cutmix, prob=data.mix_prob, switch=data.mix_switch)
        return mix(jnp.asarray(batch.images), targets, jax.random.fold_in(key, 1), **options)

    def loss(params: Params, part: tuple) -> tuple[Array, Extras]:
        model, ((images, targets), keys) = nnx.merge(graphdef, params), part
        if config.task == "linear":
            logits, statistics = model.probe(images)
            extras = Extras({"batch_norm": statistics}, {})
        else:
            # One key a part: it draws for each of its images.
            logits, extras = model.forward(images, None if keys is None else keys[0]), Extras({}, {})
        return optax.softmax_cross_entropy(logits, targets).mean(), extras

    return Task(config, graphdef, loss, own, prepare)


def with_head(config: ConfigDict, source: LabelledSource) -> ConfigDict:
    """The configuration with an output for each class, where it does not say how many; InputError for one class."""
    check_several(source.classes, f"split {config.data.split!r}")
    if config.model.num_classes:
        return config
    return resolve(flatten(config) | {"model.num_classes": len(source.classes)})


def held_out_images(config: ConfigDict, train: LabelledSource) -> Matched | None:
    """The images of `data.eval_split` under the labels of the training; says which classes only one of them has."""
    if not config.data.eval_split:
        return None
    held_out = open_labelled(config.data, config.data.eval_split)
    warn_of_overlap(config.data, train, held_out)
    found = matched(held_out, train.classes, config.data.eval_split)
    say(*found.lines(config.data.eval_split))
    return found
