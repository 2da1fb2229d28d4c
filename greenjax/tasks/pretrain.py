"""Pre-training by masked image modelling: the story, top to bottom."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict, FrozenConfigDict

from greenjax.backbones.geometry import make_planner, token_grid
from greenjax.config import flatten, resolve
from greenjax.data.loader import Batch, Batches, blank_batch, eval_batches, train_batches
from greenjax.data.open import open_source
from greenjax.data.overlap import warn_of_overlap
from greenjax.data.sources import unread
from greenjax.evaluation.held_out import HeldOut, Pictures
from greenjax.evaluation.monitor import Monitor
from greenjax.evaluation.pictures.curve import draw_loss_curve, held_out_line
from greenjax.evaluation.views import ViewsMonitor
from greenjax.models.mim import image_weights, predicts_normalised
from greenjax.runtime.console import say
from greenjax.runtime.files import read_metrics, unless_unwritable
from greenjax.runtime.placement import BATCH_AXES, Placement
from greenjax.runtime.processes import leads
from greenjax.tasks.summary import end_lines, run_time, say_listing, start_lines
from greenjax.tasks.weights import given_weights
from greenjax.training.loop import Hook, train
from greenjax.training.metrics import MetricsWriter
from greenjax.training.optim import run_length
from greenjax.training.sharding import make_mesh
from greenjax.training.start import HELD_OUT, TRAINING, Run, begin
from greenjax.training.state import Params, State, abstract_model
from greenjax.training.step import Extras, Task
from greenjax.training.together import holding_workdir


@holding_workdir
def pretrain(config: ConfigDict, workdir: Path) -> State:
    """Trains a resolved configuration from where `workdir` stands to its last step, and returns the state.

    Leaves metrics, pictures and checkpoints in `workdir`. Raises InputError for a configuration that cannot run here,
    before anything expensive starts, and DivergedError when more than `optim.max_skipped` updates in a row are not
    finite, or the loss rises too far.
    """
    mesh, task = make_mesh(config), pretraining(config)
    say_listing(config)
    sources, monitor = opened(config, mesh, task)
    source, held_out = sources[TRAINING], sources[HELD_OUT]
    run_length(config, len(source))  # refuses a run without a whole batch before masks are planned
    say("planning masks ...")
    planner = make_planner(config)

    blank = blank_batch(config, planner.example(config.mask.groups))
    run, state = begin(task, workdir, mesh, blank, sources, partial(given_weights, config))  # compiles in a thread
    say(*start_lines(run))
    own, undecodable = Placement(mesh).own(config.mask.groups), run.undecodable

    def batches(position: int) -> Batches[Batch]:
        return train_batches(config, source, planner, position, own, undecodable)

    def held_out_batches() -> Batches[Batch]:
        return eval_batches(config, held_out, planner, own, undecodable)

    def first_batch() -> Batch:
        shown = source if held_out is None else held_out
        return next(eval_batches(config, shown, planner, undecodable=undecodable, patient=True))

    hooks = [*held_out_hooks(run, held_out_batches), *monitor_hooks(run, monitor), pictures_hook(run, first_batch)]
    state = train(run, state, batches, hooks, partial(pool_use, config, planner.mask_ids, len(source)))
    if leads():
        lines = read_metrics(workdir)
        with unless_unwritable("loss.png"):
            draw_loss_curve(workdir / "loss.png", lines)
        say(held_out_line(lines, described_start(config.init, run.last)))
        say(*end_lines(workdir, run_time(run)))
    return state


def opened(config: ConfigDict, mesh: Mesh, task: Task) -> tuple[dict[str, Any], Monitor | ViewsMonitor | None]:
    """All sets of images, by the names that errors give them, and the monitor that has some of them."""
    source = open_source(config.data, config.data.split)
    held_out = open_source(config.data, config.data.eval_split) if config.data.eval_split else None
    if held_out is not None:
        warn_of_overlap(config.data, source, held_out)
    sources = {TRAINING: source, HELD_OUT: held_out}
    if config.monitor == "none":
        return sources, None
    if config.monitor == "views":
        return sources, ViewsMonitor(config, source, task.graphdef, Placement(mesh))
    monitor = Monitor(config, monitor_data(config), task.graphdef, Placement(mesh))
    others = {"images of the monitor": monitor.train, "held-out images of the monitor": monitor.held_out}
    return sources | others, monitor


def monitor_data(config: ConfigDict) -> ConfigDict:
    """`config.data` for the monitor's sets: a `data.monitor_KEY` that is given replaces `data.KEY`."""
    keys = ("source", "path", "name", "split", "eval_split")
    given = {f"data.{key}": config.data[f"monitor_{key}"] for key in keys if config.data[f"monitor_{key}"]}
    return resolve(flatten(config) | unread(given.get("data.source", config.data.source)) | given).data


def pretraining(config: ConfigDict) -> Task[Batch, tuple[Batch, Array | None]]:
    """The mean loss of the mask groups, each under its own mask; with `data.no_data`, over all values that count.

    Weights of images [m, b] come from the whole batch: parts of an update may differ in the number of such values.
    """
    graphdef, shapes = abstract_model(FrozenConfigDict(config))

    def prepare(batch: Batch, step: Array) -> tuple[Batch, Array | None]:
        counts = jax.vmap(nnx.merge(graphdef, shapes).counts)(batch.images, batch.plan)
        return batch, None if counts is None else image_weights(counts)

    def loss(params: Params, part: tuple[tuple[Batch, Array | None], Array | None]) -> tuple[Array, Extras]:
        (batch, weights), keys = part
        # spmd_axis_name keeps the mask groups of sharded computations inside (shard_map) on their devices.
        by_group = jax.vmap(nnx.merge(graphdef, params).forward, spmd_axis_name=BATCH_AXES)
        out = by_group(batch.images, batch.plan, keys)
        return out.loss.mean() if weights is None else (out.losses * weights).mean(), Extras({}, {})

    return Task(config, graphdef, loss, config.seed, prepare)


def held_out_hooks(run: Run, batches: Callable[[], Batches[Batch]]) -> list[Hook]:
    """The held-out loss; before the first step also that of the best constant, to compare both with later."""
    if run.sources[HELD_OUT] is None:
        return []
    held_out = HeldOut(run.config, run.task.graphdef, Placement(run.mesh), batches)

    def measure(step: int, state: State, writer: MetricsWriter) -> None:
        writer.phase("measuring the held-out loss")
        losses = {"held_out_loss": held_out.loss(state.weights)}
        if step == 0:
            losses["best_constant_loss"] = held_out.best_constant(state.weights)
        writer.write(step, losses)

    return [Hook(run.config.log.eval_every, measure)]


def monitor_hooks(run: Run, monitor: Monitor | ViewsMonitor | None) -> list[Hook]:
    """The accuracy of frozen features, in classes or in finding an image again."""
    if monitor is None:
        return []

    def measure(step: int, state: State, writer: MetricsWriter) -> None:
        writer.phase("measuring the accuracy of frozen features")
        writer.write(step, monitor.measure(state.weights, run.undecodable))

    return [Hook(run.config.log.monitor_every, measure)]


def pictures_hook(run: Run, batch: Callable[[], Batch]) -> Hook:
    """Reconstructions of the first images of a batch."""
    say("reading the images of the pictures ...")
    grid, everywhere = token_grid(run.config), Placement(run.mesh).everywhere
    pictures = Pictures(run.config, batch(), run.task.graphdef, everywhere, grid, predicts_normalised(run.config))

    def draw(step: int, state: State, writer: MetricsWriter) -> None:
        writer.phase("drawing reconstructions")
        picture = run.workdir / "reconstructions" / f"{step:08d}.png"
        pictures.draw(picture, state.weights)
        writer.image(step, picture)

    return Hook(run.config.log.picture_every, draw)


def pool_use(
    config: ConfigDict, mask_ids: Callable[[int, int], list[int]], images: int, position: int
) -> dict[str, int]:
    """How many different masks of the pool an epoch has used up to a position; nothing where every mask is new.

    `mask_ids(position, groups)` are the masks of a batch, `images` the length of an epoch.
    """
    if not config.mask.pool:
        return {}
    first = (position - 1) * config.data.batch_size // images * images // config.data.batch_size
    drawn = (mask_ids(each, config.mask.groups) for each in range(first, position))
    return {"distinct_masks": len(set(chain.from_iterable(drawn)))}


def described_start(init: str, last: int | None) -> str:
    """What the model was before its first step, as far as `init` and the checkpoint that the run began with tell."""
    if init != "none":
        return f"at the start (from {init})"
    return "untrained model" if last is None else "at the start"  # a workdir may be made of converted weights
