"""The loop of every training task: updates, metrics, what is watched on the way, checkpoints."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.checkpoint import Checkpointer
from greenjax.training.metrics import MetricsWriter
from greenjax.training.sharding import batch_sharding
from greenjax.training.state import State
from greenjax.training.step import Metrics, Update

Watch = Callable[[int, State, MetricsWriter], None]


class DivergedError(RuntimeError):
    """Too many updates in a row were not finite."""


def train(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    state: State,
    total: int,
    *,
    update: Update,
    batches: Iterator[Any],
    watch: Watch,
    watch_every: tuple[int, ...],
    extra: Callable[[int], dict[str, Any]] = lambda step: {},
) -> State:
    """The state after step `total`. Leaves metrics and checkpoints in `workdir`.

    `watch(step, state, writer)` is called at the first and the last step and where one of `watch_every` is due; the
    devices and the clock stand still meanwhile. `extra(step)` gives more numbers for a line of metrics.
    """
    start, log, meter = int(state.step), config.log, Meter(config)
    place = partial(jax.device_put, device=batch_sharding(mesh))
    with (
        Checkpointer(workdir, log.keep) as checkpointer,
        MetricsWriter(workdir, total, start) as writer,
        jax.transfer_guard("disallow"),
        jax.set_mesh(mesh),  # callbacks want to know it: models/spconv_bridge.py
    ):

        def look(step: int) -> None:
            if not any(due(step, every, total) for every in (*watch_every, log.checkpoint_every)):
                return
            meter.pause()
            watch(step, state, writer)
            if step and due(step, log.checkpoint_every, total):
                checkpointer.save(step, state)
            meter.resume()

        if start == 0:
            look(0)
        # A step's metrics are read after the next step is dispatched, so that the devices never wait.
        for step in range(start + 1, total + 1):
            state, metrics = update(state, place(next(batches)))
            meter.add(step, metrics)
            if step % log.every == 0 or step == total:
                writer.write(step, meter.line() | extra(step))
            look(step)
    return state


def due(step: int, every: int, total: int) -> bool:
    """At the first and the last step, and at multiples of `every` (0: at none)."""
    return step in (0, total) or (every > 0 and step % every == 0)


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
