"""Pre-training by masked image modelling: the story, top to bottom."""

import os
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax.backbones.geometry import make_planner
from greenjax.config import flatten, resolve
from greenjax.config.flags import DETERMINISTIC
from greenjax.data.encoded import Images
from greenjax.data.listing import listing
from greenjax.data.loader import Batch, Batches, blank_batch, eval_batches, train_batches
from greenjax.data.open import open_source
from greenjax.data.overlap import warn_of_overlap
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.held_out import HeldOut, Pictures
from greenjax.evaluation.monitor import Monitor
from greenjax.evaluation.pictures.curve import draw_loss_curve, held_out_line
from greenjax.planning import Planner
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.console import say
from greenjax.runtime.files import read_metrics, unless_full
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import leads
from greenjax.training.guard import Rollbacks
from greenjax.training.loop import due, train
from greenjax.training.metrics import MetricsWriter, record_config
from greenjax.training.optim import learning_rate, make_optimizer, run_length
from greenjax.training.sharding import make_mesh
from greenjax.training.start import begin
from greenjax.training.state import State, model_graph
from greenjax.training.step import make_train_step
from greenjax.training.summary import end_lines, run_time, say_lines, say_listing, start_lines
from greenjax.training.together import holding_workdir, same_start


@holding_workdir
def pretrain(config: ConfigDict, workdir: Path) -> State:
    """Trains a resolved configuration from where `workdir` stands to its last step, and returns the state.

    Leaves metrics, pictures and checkpoints in `workdir`. Raises InputError for a configuration that cannot run here,
    before anything expensive starts, and DivergedError when more than `optim.max_skipped` updates in a row are not
    finite, or the loss rises too far.
    """
    began = monotonic()
    # Whatever is wrong with the configuration, the data or the devices is found here.
    mesh = make_mesh(config)
    say_listing(config)
    place = Placement(mesh)
    source = open_source(config.data, config.data.split)
    held_out_source = open_source(config.data, config.data.eval_split) if config.data.eval_split else None
    if held_out_source is not None:
        warn_of_overlap(config.data, source, held_out_source)
    monitor = Monitor(config, model_graph(config), place) if config.monitor != "none" else None
    total, warmup = run_length(config, len(source))
    say("planning masks ...")
    planner = make_planner(config)

    checkpointer = Checkpointer(workdir, config.log.keep)
    last = checkpointer.latest_intact_step()
    start = last or 0
    sources = {"training images": source, "held-out images": held_out_source}
    if monitor is not None:
        sources |= {"images of the monitor": monitor.train, "held-out images of the monitor": monitor.held_out}
    same_start(last, start + Rollbacks(workdir).skipped(start), sources)
    record_config(workdir, config, len(source), start > 0, listing(source))
    undecodable = Undecodable(workdir, resuming=start > 0, writes=leads())

    if config.deterministic and jax.default_backend() == "gpu" and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise InputError(f"config.deterministic: XLA_FLAGS lacks {DETERMINISTIC}, to be set before JAX starts")

    graphdef, tx = model_graph(config), make_optimizer(config)
    step = make_train_step(graphdef, tx, learning_rate(config, total, warmup), config, mesh)
    update = BackgroundJit(step)
    batch = blank_batch(config, planner.example(config.mask.groups))
    state = begin(config, mesh, checkpointer, total, update, batch)
    images = {config.data.split: len(source)}
    images |= {config.data.eval_split: len(held_out_source)} if held_out_source is not None else {}
    say_lines(start_lines(config, workdir, mesh, state, images, total, warmup))

    # What is watched on the way.
    held_out = None
    if held_out_source is not None:
        held_out = HeldOut(config, held_out_source, planner, graphdef, place, undecodable)
    say("reading the images of the pictures ...")
    shown = first_batch(config, source, held_out_source, planner, undecodable)
    pictures = Pictures(config, shown, graphdef, place.everywhere)
    log = config.log

    def watch(step: int, state: State, writer: MetricsWriter) -> None:
        """Held-out loss, pictures and the monitor at the steps at which they are due."""
        if held_out and due(step, log.eval_every, total):
            writer.phase("measuring the held-out loss")
            writer.write(step, held_out_losses(held_out, step, state.params))
        if monitor and due(step, log.monitor_every, total):
            writer.phase("measuring the accuracy of frozen features")
            writer.write(step, monitor.measure(state.params, undecodable))
        if due(step, log.picture_every, total):
            writer.phase("drawing reconstructions")
            picture = workdir / "reconstructions" / f"{step:08d}.png"
            pictures.draw(picture, state.params)
            writer.image(step, picture)

    def batches(position: int) -> Batches[Batch]:
        return train_batches(config, source, planner, position, place.own(config.mask.groups), undecodable)

    def extra(position: int) -> dict[str, int]:
        return pool_use(config, planner, position, len(source)) | {"undecodable": len(undecodable)}

    state = train(
        config,
        workdir,
        mesh,
        state,
        total,
        warmup=warmup,
        update=update,
        batches=batches,
        watch=watch,
        watch_every=(log.eval_every, log.picture_every, *((log.monitor_every,) if monitor else ())),
        extra=extra,
    )
    if leads():
        lines = read_metrics(workdir)
        with unless_full("loss.png"):
            draw_loss_curve(workdir / "loss.png", lines)
        say(held_out_line(lines, described_start(config.init, last)))
        say_lines(end_lines(workdir, run_time(start, total, monotonic() - began)))
    return state


def described_start(init: str, last: int | None) -> str:
    """What a run was before its first step, as far as its `init` and the checkpoint that it goes on from tell."""
    if init != "none":
        return f"at the start (from {init})"
    return "untrained model" if last is None else "at the start"  # a workdir may be made of converted weights


def first_batch(
    config: ConfigDict, source: Images, held_out: Images | None, planner: Planner, undecodable: Undecodable
) -> Batch:
    """The first held-out batch, or the first one of training, without starting worker processes for it."""
    if held_out is not None:
        return next(eval_batches(config, held_out, planner, undecodable=undecodable))
    alone = resolve(flatten(config) | {"data.workers": 0})
    return next(train_batches(alone, source, planner, undecodable=undecodable))


def held_out_losses(held_out: HeldOut, step: int, params: Any) -> dict[str, float]:
    """The held-out loss; before the first step also that of the best constant, to compare both with later."""
    losses = {"held_out_loss": held_out.loss(params)}
    if step == 0:
        losses["best_constant_loss"] = held_out.best_constant(params)
    return losses


def pool_use(config: ConfigDict, planner: Planner, step: int, images: int) -> dict[str, int]:
    """How many different masks of the pool this epoch has used so far; nothing to tell where every mask is new."""
    if not config.mask.pool:
        return {}
    first = (step - 1) * config.data.batch_size // images * images // config.data.batch_size
    drawn = (planner.mask_ids(t, config.mask.groups) for t in range(first, step))
    return {"distinct_masks": len(set(chain.from_iterable(drawn)))}
