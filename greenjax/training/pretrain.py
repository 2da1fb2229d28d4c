"""Pre-training by masked image modelling: the story, top to bottom."""

import os
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from greenjax.checkpoint import Checkpointer
from greenjax.config import flatten, resolve
from greenjax.data import Batch, Source, open_source, train_batches
from greenjax.errors import InputError
from greenjax.evaluation import HeldOut, Pictures, draw_loss_curve, read_metrics, result
from greenjax.planning import Planner
from greenjax.training.metrics import MetricsWriter, record_config
from greenjax.training.optim import learning_rate, make_optimizer, run_length
from greenjax.training.sharding import batch_sharding, make_mesh
from greenjax.training.start import first_state
from greenjax.training.state import State, abstract_state, model_graph
from greenjax.training.step import Metrics, make_train_step

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # main.py sets it


class DivergedError(RuntimeError):
    """Too many updates in a row were not finite."""


def pretrain(config: ConfigDict, workdir: Path) -> State:
    """Trains a resolved configuration from where `workdir` stands to its last step, and returns the state.

    Leaves metrics, pictures and checkpoints in `workdir`. Raises InputError for a configuration that cannot run here,
    before anything expensive starts, and DivergedError when more than `optim.max_skipped` updates in a row are not
    finite.
    """
    # Whatever is wrong with the configuration, the data or the devices is found here.
    mesh = make_mesh(config)
    source = open_source(config.data, config.data.split)
    held_out_source = open_source(config.data, config.data.eval_split) if config.data.eval_split else None
    total, warmup = run_length(config, len(source))
    planner = Planner.from_config(config)

    checkpointer = Checkpointer(workdir, config.log.keep)
    latest = checkpointer.latest_step()
    start = latest or 0
    record_config(workdir, config, len(source), resuming=start > 0)

    if config.deterministic and jax.default_backend() == "gpu" and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise InputError(f"config.deterministic: XLA_FLAGS lacks {DETERMINISTIC}, to be set before JAX starts")

    # The state is born on its devices, or comes back from the last checkpoint.
    graphdef, tx = model_graph(config), make_optimizer(config)
    if latest is None:
        state = first_state(config, tx, mesh)
    else:
        state = checkpointer.restore(abstract_state(config, tx, mesh))
        print(f"going on at step {start} of {total}" if start < total else f"finished: {total} steps were done before")

    # What is watched on the way.
    place = partial(jax.device_put, device=batch_sharding(mesh))
    held_out = HeldOut(config, held_out_source, planner, graphdef, place) if held_out_source is not None else None
    shown = next(held_out.batches()) if held_out else first_batch(config, source, planner)
    pictures = Pictures(config, shown, graphdef, partial(jax.device_put, device=NamedSharding(mesh, P())))
    log = config.log

    def watch(step: int) -> None:
        """Held-out loss, pictures and checkpoint at the steps at which they are due."""
        tasks = (log.eval_every, log.picture_every, log.checkpoint_every)
        if not any(due(step, every, total) for every in tasks):
            return
        meter.pause()
        if held_out and due(step, log.eval_every, total):
            writer.write(step, held_out_losses(held_out, step, state.params))
        if due(step, log.picture_every, total):
            picture = workdir / "reconstructions" / f"{step:08d}.png"
            pictures.draw(picture, state.params)
            writer.image(step, picture)
        if step and due(step, log.checkpoint_every, total):
            checkpointer.save(step, state)
        meter.resume()

    # The loop. A step's metrics are read after the next step is dispatched, so that the devices never wait.
    update = make_train_step(graphdef, tx, learning_rate(config, total, warmup), config, mesh)
    batches = train_batches(config, source, planner, start)
    meter = Meter(config)
    with (
        checkpointer,
        MetricsWriter(workdir, total, start) as writer,
        jax.transfer_guard("disallow"),
        jax.set_mesh(mesh),  # callbacks want to know it: models/spconv_bridge.py
    ):
        if start == 0:
            watch(0)
        for step in range(start + 1, total + 1):
            state, metrics = update(state, place(next(batches)))
            meter.add(step, metrics)
            if step % log.every == 0 or step == total:
                writer.write(step, meter.line() | pool_use(config, planner, step, len(source)))
            watch(step)
    lines = read_metrics(workdir)
    draw_loss_curve(workdir / "loss.png", lines)
    print(result(lines))
    return state


def first_batch(config: ConfigDict, source: Source, planner: Planner) -> Batch:
    """The first training batch, without starting worker processes for it."""
    alone = resolve(flatten(config) | {"data.workers": 0})
    return next(train_batches(alone, source, planner, 0))


def due(step: int, every: int, total: int) -> bool:
    """At the first and the last step, and at multiples of `every` (0: at none)."""
    return step in (0, total) or (every > 0 and step % every == 0)


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
    drawn = (planner.mask_ids(config.seed, t, config.mask.groups) for t in range(first, step))
    return {"distinct_masks": len(set(chain.from_iterable(drawn)))}


class Meter:
    """Averages the loss and measures the speed between two lines of the log."""

    def __init__(self, config: ConfigDict):
        self.batch_size, self.max_skipped = config.data.batch_size, config.optim.max_skipped
        self._pending: tuple[int, Metrics] | None = None
        self._last: dict[str, float] = {}
        self._losses: list[float] = []
        self._seconds, self._steps, self._since = 0.0, 0, time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was just dispatched, and reads those of the step before."""
        self._read()
        self._pending = (step, metrics)
        self._steps += 1

    def line(self) -> dict[str, float]:
        """The last metrics, with the loss and the images a second of the time since the last line."""
        self.pause()
        finite = [loss for loss in self._losses if np.isfinite(loss)]
        loss = {"loss": sum(finite) / len(finite)} if finite else {}
        speed = self._steps * self.batch_size / self._seconds
        self._losses, self._seconds, self._steps = [], 0.0, 0
        self.resume()
        return {key: value for key, value in self._last.items() if key != "loss"} | loss | {"images_per_second": speed}

    def pause(self) -> None:
        """Waits for the steps under way; time from here to `resume` does not count, being no training."""
        self._read()
        self._seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        self._since = time.perf_counter()

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending, self._last = None, {k: v.item() for k, v in jax.device_get(metrics).items()}
        self._losses.append(self._last["loss"])
        if self._last["skipped_in_a_row"] > self.max_skipped:
            raise DivergedError(
                f"step {step}: {self._last['skipped_in_a_row']} updates in a row had a loss or gradient that is not"
                f" finite (the last loss: {self._last['loss']}); optim.max_skipped allows {self.max_skipped}"
            )
