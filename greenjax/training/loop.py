"""The loop of every training task: updates, hooks at the steps that are due, checkpoints, rollbacks, interruptions."""

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from greenjax.config import flatten
from greenjax.data.loader import Batches
from greenjax.data.workers import look_after_workers
from greenjax.errors import InterruptedRun
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.files import unless_unwritable
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import agree, gathered, leads
from greenjax.training.guard import DivergedError, Guard, Rollbacks
from greenjax.training.interrupt import Interruption
from greenjax.training.learning import warn_if_nothing_is_learnt
from greenjax.training.meter import Meter
from greenjax.training.metrics import MetricsWriter
from greenjax.training.start import Run
from greenjax.training.state import State, abstract_state
from greenjax.training.step import Metrics
from greenjax.training.trackers import trackers_of

BatchesFrom = Callable[[int], Batches]  # a position in the stream -> this process's part of each batch from there on
CountsAt = Callable[[int], dict[str, int]]  # a position in the stream -> more numbers of a line of metrics

UNFINISHED = ".unfinished"  # a file in the workdir from before the last step is saved until its hooks are done


class Hook(NamedTuple):
    """`call(step, state, writer)` is due at the first and the last step, and every `every` steps (0: at no other)."""

    every: int
    call: Callable[[int, State, MetricsWriter], None]

    def due(self, step: int, total: int) -> bool:
        return step in (0, total) or (self.every > 0 and step % self.every == 0)


def train(
    run: Run, state: State, batches: BatchesFrom, hooks: Sequence[Hook], counts: CountsAt = lambda _: {}
) -> State:
    """The state after the last step. Leaves metrics and checkpoints in the workdir.

    The hooks are called before the first step and after each step at which they are due. Those of the last step come
    after its checkpoint, and again where an earlier process ended in them. A run that diverges goes back to the last
    checkpoint before that, and on with other data, at most `guard.rollbacks` times; then it raises DivergedError.
    Raises InterruptedRun after a signal, with the last step saved, and SaveError where the last state of a complete run
    could not be saved.
    """
    rollbacks = Rollbacks(run.workdir)
    if run.start == 0:
        rollbacks.forget()
    while int(state.step) < run.total:
        try:
            state = _to_the_end(run, state, rollbacks, batches, hooks, counts)
        except DivergedError as error:
            checkpointer = Checkpointer(run.workdir)
            good = [step for step in checkpointer.steps() if step < error.since]
            if len(rollbacks.made) >= run.config.guard.rollbacks or not good:
                raise
            checkpointer.forget_after(good[-1])
            state = checkpointer.restore(abstract_state(run.config, run.mesh))
            agree({"gone back to step": int(state.step)})
            rollbacks.add(error, int(state.step))
    if run.start == run.total and gathered(np.array([leads() and (run.workdir / UNFINISHED).exists()])).any():
        with _writer(run, run.total) as writer, jax.transfer_guard("disallow"), jax.set_mesh(run.mesh):
            _finish(run, Watch(run, writer), state, (), hooks)
    return state


def _writer(run: Run, start: int) -> MetricsWriter:
    """The metrics of a run from a step on."""
    return MetricsWriter(run.workdir, run.total, start, trackers_of(run.config.log.to), flatten(run.config))


def _to_the_end(
    run: Run, state: State, rollbacks: Rollbacks, batches: BatchesFrom, hooks: Sequence[Hook], counts: CountsAt
) -> State:
    """The state after the last step, unless the run diverges on the way."""
    log, place, start, total = run.config.log, Placement(run.mesh), int(state.step), run.total
    skipped = rollbacks.skipped(start)  # batches
    with (
        Checkpointer(run.workdir, log.keep, log.keep_every) as checkpointer,
        _writer(run, start) as writer,
        jax.transfer_guard("disallow"),
        jax.set_mesh(run.mesh),  # for callbacks: ops/spconv_bridge.py
        closing(batches(start + skipped)) as stream,  # closing ends the workers
    ):
        checkpointer.forget_after(start)  # damaged ones
        watch = Watch(run, writer)

        def line(step: int, *_: Any) -> None:
            extra = counts(step + skipped) | {"undecodable": len(run.undecodable)} | rollbacks.counts()
            writer.write(step, watch.meter.line() | extra)
            warn_if_nothing_is_learnt(run.config, run.workdir, step, total, run.warmup)

        lines = Hook(log.every, line)
        saves = Hook(log.checkpoint_every, lambda step, state, _: checkpointer.save(step, state))
        alone = jax.default_backend() == "gpu"  # XLA times kernels to choose among them: nothing else may run there
        if alone:
            await_update(run.update, writer)
        if start == 0:
            watch.look(0, state, hooks)
        if not alone:
            await_update(run.update, writer)
        writer.phase("waiting for the first batch")
        watch.meter.start()
        with Interruption(place) as interruption:  # before this a signal ends the run at once: nothing is lost
            for step in range(start + 1, total + 1):
                batch = place(watch.meter.waiting_for(stream))
                state, metrics = run.update(state, batch)
                watch.dispatched(step, metrics)
                if step < total:
                    watch.look(step, state, (lines, *hooks, saves))
                else:
                    writer.phase("saving the last checkpoint")
                    _finish(run, watch, state, (lines, saves, Hook(0, lambda *_: checkpointer.settle())), hooks)
                if interruption.asked() and step < total:
                    watch.settle()
                    checkpointer.save(step, state)
                    checkpointer.wait()
                    why = interruption.signal or "another process"
                    raise InterruptedRun(f"stopped by {why} after step {step} of {total}, which is saved")
            checkpointer.wait()
    return state


def _finish(run: Run, watch: "Watch", state: State, first: Sequence[Hook], hooks: Sequence[Hook]) -> None:
    """Calls the hooks of the last step. The `first` save it: an error or a kill in the others loses no training."""
    mark = run.workdir / UNFINISHED
    with suppress(OSError):
        if leads():
            mark.touch()
    watch.look(run.total, state, first)
    watch.look(run.total, state, hooks)
    with suppress(OSError):
        if leads():
            mark.unlink(missing_ok=True)


class Watch:
    """Reads the metrics of each update once the next one is dispatched, so that the devices never wait; calls hooks."""

    def __init__(self, run: Run, writer: MetricsWriter):
        self.meter = Meter(run.config, run.mesh, run.update, writer.hours_before)
        self._guard = Guard(run.config.optim.max_skipped, run.config.guard.spike)
        self._total, self._writer = run.total, writer
        self._under_way: tuple[int, Metrics] | None = None

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """An update was dispatched: takes its metrics, and reads those of the update before."""
        self.settle()
        self._under_way = step, metrics
        self._writer.moved(step - 1, self.meter.so_far)

    def settle(self) -> None:
        """Waits for the update under way. Raises DivergedError where its loss is a reason to."""
        if self._under_way is not None:
            (step, metrics), self._under_way = self._under_way, None
            values = {name: value.item() for name, value in jax.device_get(metrics).items()}
            self.meter.add(values)
            self._guard.look(step, values["loss"], int(values["skipped_in_a_row"]))

    def look(self, step: int, state: State, hooks: Sequence[Hook]) -> None:
        """Calls the hooks that are due after a step. The devices and the clock of the training stand still for them."""
        if now := [hook for hook in hooks if hook.due(step, self._total)]:
            self.settle()
            with self.meter.paused():
                for hook in now:
                    with unless_unwritable(f"step {step}"):
                        hook.call(step, state, self._writer)


def await_update(update: BackgroundJit, writer: MetricsWriter) -> None:
    """Waits until XLA has compiled the update. Raises WorkerDied as soon as a data worker ends."""
    writer.phase("waiting for the update to be compiled")
    while not update.compiled_within(1.0):
        look_after_workers()
    update.wait()
