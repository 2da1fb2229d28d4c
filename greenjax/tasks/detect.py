"""Training a detector, Mask R-CNN, on images with objects, and judging one: the story, top to bottom."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from greenjax.config import KEYS, flatten, resolve
from greenjax.config.checks import UNUSED
from greenjax.data.detection.batches import ObjectBatch, blank_object_batch, object_batches
from greenjax.data.loader import Batches
from greenjax.data.open import open_objects
from greenjax.data.overlap import warn_of_overlap
from greenjax.data.sources.objects import WithObjects
from greenjax.errors import InputError, listed
from greenjax.interop.heads import initial_head
from greenjax.runtime.console import say
from greenjax.runtime.files import unless_unwritable
from greenjax.runtime.placement import Placement
from greenjax.tasks.detections import DetectionJudge, Judged, report_detections
from greenjax.tasks.evaluate import assumed_classes, eval_sets, given_model
from greenjax.tasks.report import in_file_names
from greenjax.tasks.summary import end_lines, run_time, say_listing, start_lines
from greenjax.tasks.weights import given_weights
from greenjax.training.loop import Hook, train
from greenjax.training.metrics import MetricsWriter
from greenjax.training.sharding import make_mesh
from greenjax.training.start import HELD_OUT, TRAINING, Run, begin
from greenjax.training.state import Params, State, model_graph
from greenjax.training.step import Extras, Task
from greenjax.training.together import holding_workdir, same_data


@holding_workdir
def detect(config: ConfigDict, workdir: Path) -> State:
    """Trains a resolved configuration, task "detect", to its last step, and returns the state.

    The encoder comes from `config.init`, a pre-training, a classifier, a detector or a file of weights, or is fresh.
    Leaves metrics, checkpoints, classes.json, results.json, detections as COCO's JSON and pictures of them on
    `data.eval_split` in `workdir`. Raises InputError for a configuration that cannot run here, before anything
    expensive starts, and DivergedError as pre-training does.
    """
    mesh = make_mesh(config)
    say_listing(config)
    source, held_out, config = opened(config)
    task, blank = detection(config), blank_object_batch(config)
    weights = partial(given_weights, config, source.classes)
    sources = {TRAINING: source, HELD_OUT: held_out}
    run, state = begin(task, workdir, mesh, blank, sources, weights, source.classes)  # compiles the update in a thread
    say(*start_lines(run))
    own = Placement(mesh).own(config.data.batch_size)

    def batches(position: int) -> Batches[ObjectBatch]:
        return object_batches(config, source, position, own, run.undecodable)

    state = train(run, state, batches, held_out_hooks(run, held_out))
    say(*end_lines(workdir, run_time(run)))
    return state


def opened(config: ConfigDict) -> tuple[WithObjects, WithObjects | None, ConfigDict]:
    """The training images, the held-out images, and the configuration with as many classes as the images have."""
    source = open_objects(config, config.data.split, training=True)
    count = config.model.num_classes or len(source.classes)
    if len(source.classes) > count:
        found = f"the {len(source.classes)} classes of the data, {listed(source.classes)}"
        raise InputError(f"model.num_classes is {count}: expected at least {found}")
    config = resolve(flatten(config) | {"model.num_classes": count})
    if not config.data.eval_split:
        return source, None, config
    held_out = open_objects(config, config.data.eval_split, source.classes)
    warn_of_overlap(config.data, source, held_out)
    return source, held_out, config


def detection(config: ConfigDict) -> Task[ObjectBatch, tuple]:
    """The sum of Mask R-CNN's five losses, which are metrics, too.

    They are means over the samples of a part of the update, as those of torchvision are over a device's.
    """
    graphdef = model_graph(config)

    def prepare(batch: ObjectBatch, step: Array) -> tuple[ObjectBatch, Key[Array, " b"]]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        return batch, jax.random.split(key, len(batch.images))

    def loss(params: Params, part: tuple) -> tuple[Array, Extras]:
        model, ((batch, keys), _) = nnx.merge(graphdef, params), part
        # One key a part: it draws for each of its images.
        losses = model.training_losses(batch.images, batch.targets, batch.sizes, keys[0])
        return jnp.sum(jnp.stack(list(losses.values()))), Extras({}, losses)

    return Task(config, graphdef, loss, config.seed, prepare)


def held_out_hooks(run: Run, held_out: WithObjects | None) -> list[Hook]:
    """The average precision on held-out images, and pictures of the first of them."""
    if held_out is None:
        return []
    config, name = run.config, run.config.data.eval_split
    judge = DetectionJudge(config, run.task.graphdef, run.mesh, run.undecodable)

    def measure(step: int, state: State, writer: MetricsWriter) -> None:
        if step == 0 < run.total:  # nothing is learnt yet
            return
        writer.phase("measuring the average precision on held-out images")
        found = judge.evaluate(state.weights, held_out)
        writer.write(step, {f"eval_{key}": value for key, value in found.metrics.items()})
        if step == run.total:
            report_detections(config, run.workdir, name, found, step)

    def draw(step: int, state: State, writer: MetricsWriter) -> None:
        writer.phase("drawing detections")
        picture = run.workdir / "detections" / f"{step:08d}.png"
        judge.draw(picture, state.weights, held_out)
        writer.image(step, picture)

    return [Hook(config.log.eval_every, measure), Hook(config.log.picture_every, draw)]


@holding_workdir
def evaluate_detector(config: ConfigDict, workdir: Path) -> dict[str, Judged]:
    """Task "eval" of a detector: that of `config.init` on every set; results.json, detections and pictures."""
    mesh, found = make_mesh(config), {}
    # A recipe for classifiers may be what says where the images are.
    unused = (*UNUSED["detect"], "optim.name", "epochs", "optim.warmup_epochs", "optim.warmup_steps")
    as_detector = {key: KEYS[key].default for key in unused} | {"task": "detect", "steps": 1}
    detector = flatten(config) | as_detector
    head, sources = initial_head(resolve(detector)), {}
    if head.outputs is None:
        raise InputError(f"init {config.init!r} has no predictors of a detector: expected a run or a file with them")
    classes = head.classes
    for each in eval_sets(config):
        own = resolve(detector | {f"data.{key}": value for key, value in each.data.items()} | as_detector)
        sources[each.name] = source = open_objects(own, each.split, classes)
        classes = classes or assumed_classes(config.init, head.outputs, each.name, source.classes)
    same_data({f"images of {name}": source for name, source in sources.items()})
    graphdef, params = given_model(resolve(detector), mesh)
    judge = DetectionJudge(resolve(detector), graphdef, mesh)
    for name, source in sources.items():
        say(f"evaluating on {len(source):,} images of {name} ...")
        found[name] = judge.evaluate(params, source)
        report_detections(config, workdir, name, found[name])
        with unless_unwritable(f"pictures of {name}"):
            judge.draw(workdir / "detections" / f"{in_file_names(name)}.png", params, source)
    say(*end_lines(workdir, "done"))
    return found
