"""The loop of every training task: updates, metrics, what is watched on the way, checkpoints, and what may go wrong."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.data.loader import Batches
from greenjax.data.workers import look_after_workers
from greenjax.errors import InterruptedRun
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.cost import peak_flops, peak_memory
from greenjax.runtime.files import read_metrics, unless_full
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import agree, leads
from greenjax.training.guard import DivergedError, Guard, Rollbacks
from greenjax.training.interrupt import Interruption
from greenjax.training.learning import nothing_learnt, time_to_tell
from greenjax.training.metrics import MetricsWriter, hours_so_far
from greenjax.training.state import State
from greenjax.training.step import Metrics

Watch = Callable[[int, State, MetricsWriter], None]


def train(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    state: State,
    total: int,
    *,
    warmup: int,
    update: BackgroundJit,
    batches: Callable[[int], Batches],
    watch: Watch,
    watch_every: tuple[int, ...],
    extra: Callable[[int], dict[str, Any]] = lambda position: {},
) -> State:
    """The state after step `total`, `warmup` of them with a rising rate. Leaves metrics and checkpoints in `workdir`.

    `batches(position)` are those from there on in the stream, this process's part of each. `watch(step, state, writer)`
    is called at the first and the last step and where one of `watch_every` is due; the devices and the clock stand
    still meanwhile. `extra(position)` gives more numbers for a line of metrics.

    A run that diverges goes back to the last checkpoint before that, and on with other data, `guard.rollbacks` times at
    most; then DivergedError ends it. InterruptedRun: a signal did, and what was done is saved. SaveError: it was done
    to the end, and its last state could not be saved.
    """
    run = _Run(config, workdir, mesh, total, warmup, update, batches, watch, watch_every, extra)
    rollbacks = Rollbacks(workdir)
    if int(state.step) == 0:
        rollbacks.forget()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    while True:
        try:
            return run(state, rollbacks)
        except DivergedError as error:
            checkpointer = Checkpointer(workdir)
            good = [step for step in checkpointer.steps() if step < error.since]
            if len(rollbacks.made) >= config.guard.rollbacks or not good:
                raise
            checkpointer.forget_after(good[-1])
            state = checkpointer.restore(shapes)
            agree({"gone back to step": int(state.step)})
            rollbacks.add(error, int(state.step))


class _Run:
    """A run from some state to its last step, unless it diverges on the way."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        mesh: Mesh,
        total: int,
        warmup: int,
        update: BackgroundJit,
        batches: Callable[[int], Batches],
        watch: Watch,
        watch_every: tuple[int, ...],
        extra: Callable[[int], dict[str, Any]],
    ):
        self.config, self.workdir, self.mesh, self.total, self.update = config, workdir, mesh, total, update
        self.batches, self.watch, self.extra, self.place = batches, watch, extra, Placement(mesh)
        self.look_every = (*watch_every, config.log.checkpoint_every)
        self.tell_at = time_to_tell(total, warmup)

    def __call__(self, state: State, rollbacks: Rollbacks) -> State:
        config, total, log, place = self.config, self.total, self.config.log, self.place
        start = int(state.step)
        ahead = rollbacks.skipped(start)
        guard = Guard(config.optim.max_skipped, config.guard.spike)
        meter = Meter(config, self.mesh, self.update, guard, hours_so_far(self.workdir) if start else 0.0)
        with (
            Checkpointer(self.workdir, log.keep, log.keep_every) as checkpointer,
            MetricsWriter(self.workdir, total, start) as writer,
            jax.transfer_guard("disallow"),
            jax.set_mesh(self.mesh),  # callbacks want to know it: ops/spconv_bridge.py
            # Closing ends the workers; a finished run starts none.
            closing(self.batches(start + ahead)) if start < total else nullcontext(iter(())) as batches,
        ):
            checkpointer.forget_after(start)  # damaged ones

            def look(step: int) -> None:
                if not any(due(step, every, total) for every in self.look_every):
                    return
                meter.pause()
                with unless_full(f"step {step}"):
                    self.watch(step, state, writer)
                if step and due(step, log.checkpoint_every, total):
                    checkpointer.save(step, state)
                meter.resume()

            # XLA times kernels on a GPU to choose among them: nothing else may run there meanwhile.
            if alone := jax.default_backend() == "gpu":
                self.await_update(start, writer)
            if start == 0:
                look(0)
            if not alone:
                self.await_update(start, writer)
            if start < total:
                writer.phase("waiting for the first batch")
            meter.start()
            untold = start < self.tell_at
            with Interruption(place) as interruption:  # before this a signal ends the run at once: nothing is lost
                # A step's metrics are read after the next step is dispatched, so that the devices never wait.
                for step in range(start + 1, total + 1):
                    batch = place(meter.waiting_for(batches))
                    state, metrics = self.update(state, batch)
                    meter.add(step, metrics)
                    writer.moved(step - 1, meter.so_far)
                    if step % log.every == 0 or step == total:
                        writer.write(step, meter.line() | self.extra(step + ahead) | rollbacks.told())
                        if untold and step >= self.tell_at:
                            untold = False
                            self.tell_if_nothing_is_learnt()
                    look(step)
                    if interruption.asked() and step < total:
                        meter.pause()
                        checkpointer.save(step, state)
                        checkpointer.wait()
                        why = interruption.signal or "another process"
                        raise InterruptedRun(f"stopped by {why} after step {step} of {total}, which is saved")
                if start < total:
                    writer.phase("saving the last checkpoint")
                checkpointer.wait()
        return state

    def await_update(self, start: int, writer: MetricsWriter) -> None:
        if start < self.total:
            writer.phase("waiting for the update to be compiled")
            while not self.update.compiled_within(1.0):
                look_after_workers()
            self.update.wait()

    def tell_if_nothing_is_learnt(self) -> None:
        if leads() and (text := nothing_learnt(self.config, read_metrics(self.workdir), self.total)):
            logging.warning("%s", text)


def due(step: int, every: int, total: int) -> bool:
    """At the first and the last step, and at multiples of `every` (0: at none)."""
    return step in (0, total) or (every > 0 and step % every == 0)


class Meter:
    """Averages the loss and measures speed and cost between two lines of the log; hands losses to the guard."""

    def __init__(self, config: ConfigDict, mesh: Mesh, update: BackgroundJit, guard: Guard, hours: float):
        """`hours`: of all devices, spent on this run before."""
        self._update, self._guard = update, guard
        self._batch_size, self._devices, self._hours = config.data.batch_size, mesh.size, hours
        self._peak = peak_flops(mesh.devices.flat[0].device_kind, config.model.dtype)
        self._pending: tuple[int, Metrics] | None = None
        self._last: dict[str, float] = {}
        self._losses: list[float] = []
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0
        self._began = self._since = time.perf_counter()

    def start(self) -> None:
        """Training begins: what comes before it is no part of its speed."""
        self._seconds, self._waited = 0.0, 0.0
        self.resume()

    def waiting_for(self, batches: Iterator[Any]) -> Any:
        """The next batch."""
        since = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - since
        return batch

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was just dispatched, and reads those of the step before."""
        self._read()
        self._pending = (step, metrics)
        self._steps += 1

    def line(self) -> dict[str, Any]:
        """The last metrics, with the loss, speed and cost of the time since the last line."""
        self.pause()
        loss, cost = self._loss(), self._cost()
        self._losses, self._seconds, self._waited, self._steps = [], 0.0, 0.0, 0
        self.resume()
        return {key: value for key, value in self._last.items() if key != "loss"} | loss | cost

    def so_far(self) -> dict[str, Any]:
        """Loss and speed of the steps that have been read since the last line; waits for none."""
        seconds = self._seconds + time.perf_counter() - self._since
        return self._loss() | {"images_per_second": len(self._losses) * self._batch_size / seconds}

    def pause(self) -> None:
        """Waits for the steps under way; time from here to `resume` does not count, being no training."""
        self._read()
        self._seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        self._since = time.perf_counter()

    def _loss(self) -> dict[str, float]:
        finite = [loss for loss in self._losses if np.isfinite(loss)]
        return {"loss": sum(finite) / len(finite)} if finite else {}

    def _cost(self) -> dict[str, Any]:
        speed = self._steps / self._seconds
        hours = self._hours + (time.perf_counter() - self._began) * self._devices / 3600
        cost: dict[str, Any] = {
            "images_per_second": speed * self._batch_size,
            "flops_per_second": speed * self._update.flops,
            "waited": self._waited / self._seconds,
            "device_hours": hours,
        }
        if self._peak:
            cost["mfu"] = speed * self._update.flops / self._devices / self._peak
        memory = peak_memory()
        return cost if memory is None else cost | {"device_memory_peak": memory}

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending, self._last = None, {k: v.item() for k, v in jax.device_get(metrics).items()}
        self._losses.append(self._last["loss"])
        self._guard.look(step, self._last["loss"], int(self._last["skipped_in_a_row"]))
