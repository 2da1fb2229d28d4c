"""The loop of every training task: updates, hooks at the steps that are due, checkpoints, rollbacks, interruptions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from greenjax.config import flatten
from greenjax.data.loader import Batches
from greenjax.data.workers import look_after_workers
from greenjax.errors import InterruptedRun, NotFinite
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

UNFINISHED = ".unfinished"  # a file in the workdir: the step that was saved and whose hooks are not done


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

    The hooks are called before the first step and after each step at which they are due. Those of a step that is saved
    come after its checkpoint, and again where an earlier process ended in them. A run that diverges goes back to the
    last checkpoint before that, and on with other data, at most `guard.rollbacks` times; then it raises DivergedError.
    Raises InterruptedRun after a signal, with the last step saved, and SaveError where the last state of a complete run
    could not be saved.
    """
    rollbacks, interruption = Rollbacks(run.workdir), Interruption(Placement(run.mesh))
    if run.start == 0:
        rollbacks.forget()
    rollbacks.back_to(run.start)
    finished = run.start == run.total and _noted(run.workdir) != run.total
    while not finished:
        try:
            if int(state.step) < run.total:
                state = _to_the_end(run, state, rollbacks, interruption, batches, hooks, counts)
            else:
                with _writer(run, run.total, again=True) as writer, jax.set_mesh(run.mesh):
                    _repeat(run, Watch(run, writer, state), interruption, state, hooks)
            finished = True
        except DivergedError as error:
            checkpointer = Checkpointer(run.workdir)
            good = [step for step in checkpointer.steps() if step < error.since]
            if len(rollbacks.made) >= run.config.guard.rollbacks or not good:
                raise
            checkpointer.forget_after(good[-1])
            state = checkpointer.restore(abstract_state(run.config, run.mesh))
            agree({"gone back to step": int(state.step)})
            rollbacks.add(error, int(state.step))
            if run.start == run.total:  # nothing is ready for training
                raise InterruptedRun(f"back at step {int(state.step)}: the same command goes on from there") from error
    return state


def _writer(run: Run, start: int, again: bool) -> MetricsWriter:
    """The metrics of a run from a step on; `again`: its hooks are called again."""
    trackers = trackers_of(run.config.log.to)
    return MetricsWriter(run.workdir, run.total, start, trackers, flatten(run.config), again)


def _to_the_end(
    run: Run,
    state: State,
    rollbacks: Rollbacks,
    interruption: Interruption,
    batches: BatchesFrom,
    hooks: Sequence[Hook],
    counts: CountsAt,
) -> State:
    """The state after the last step, unless the run diverges on the way."""
    log, place, start, total = run.config.log, Placement(run.mesh), int(state.step), run.total
    skipped, again = rollbacks.skipped(start), _noted(run.workdir) == start
    with (
        Checkpointer(run.workdir, log.keep, log.keep_every) as checkpointer,
        _writer(run, start, again) as writer,
        jax.transfer_guard("disallow"),
        jax.set_mesh(run.mesh),  # for callbacks: ops/spconv_bridge.py
        closing(batches(start + skipped)) as stream,  # closing ends the workers
    ):
        checkpointer.forget_after(start)  # damaged ones
        watch = Watch(run, writer, state)
        lines = _lines(run, watch, lambda step: counts(step + skipped) | rollbacks.counts())
        saves = _saves(run, checkpointer)
        with _compiled_beside(run.update, writer):
            if again:
                _repeat(run, watch, interruption, state, hooks)
            elif start == 0:
                watch.look(0, state, hooks)
        writer.phase("waiting for the first batch")
        watch.meter.start()
        with interruption:  # before this a signal ends the run at once: nothing is lost
            for step in range(start + 1, total + 1):
                batch = place(watch.meter.waiting_for(stream))
                state, metrics = run.update(state, batch)
                watch.dispatched(step, metrics)
                stopping = interruption.asked()
                watch.look(step, state, (lines, saves._replace(every=1) if stopping else saves))
                if stopping:
                    checkpointer.wait()
                    raise InterruptedRun(f"stopped by {interruption.by} after step {step} of {total}, which is saved")
                watch.look(step, state, hooks)
                if saves.due(step, total):
                    _forget_note(run.workdir)
            checkpointer.wait()
    return state


def _lines(run: Run, watch: "Watch", more: CountsAt) -> Hook:
    """Writes the lines of training in metrics.jsonl; `more(step)` gives numbers that the loop does not know."""

    def line(step: int, state: State, writer: MetricsWriter) -> None:
        writer.write(step, watch.meter.line() | {"undecodable": len(run.undecodable)} | more(step))
        warn_if_nothing_is_learnt(run.config, run.workdir, step, run.total, run.warmup)

    return Hook(run.config.log.every, line)


def _saves(run: Run, checkpointer: Checkpointer) -> Hook:
    """Saves a step, and notes that its other hooks are to come."""

    def save(step: int, state: State, writer: MetricsWriter) -> None:
        _note(run.workdir, step)
        checkpointer.save(step, state)
        if step == run.total:  # an error or a kill in the last hooks loses no training
            writer.phase("saving the last checkpoint")
            checkpointer.settle()

    return Hook(run.config.log.checkpoint_every, save)


def _repeat(run: Run, watch: "Watch", interruption: Interruption, state: State, hooks: Sequence[Hook]) -> None:
    """Calls the hooks of a step in which an earlier process ended. A signal stops the run after its next step."""
    with interruption, jax.transfer_guard("disallow"):
        watch.look(int(state.step), state, hooks)
        _forget_note(run.workdir)


def _note(workdir: Path, step: int) -> None:
    """Notes that the hooks of a step, which is being saved, are not done."""
    with suppress(OSError):
        if leads():
            (workdir / UNFINISHED).write_text(str(step))


def _noted(workdir: Path) -> int:
    """The step in the note, -1 if there is none; the same in all processes."""
    step = -1
    with suppress(OSError, ValueError):
        step = int((workdir / UNFINISHED).read_text()) if leads() else step
    return int(gathered(np.array([step])).max())


def _forget_note(workdir: Path) -> None:
    with suppress(OSError):
        if leads():
            (workdir / UNFINISHED).unlink(missing_ok=True)


class Watch:
    """Reads the metrics of each update once the next one is dispatched, so that the devices never wait; calls hooks."""

    def __init__(self, run: Run, writer: MetricsWriter, state: State):
        self.meter = Meter(run.config, run.mesh, run.update, writer.hours_before)
        self._guard = Guard(run.config.optim.max_skipped, run.config.guard.spike)
        self._total, self._writer = run.total, writer
        self._under_way: tuple[int, Metrics] | None = None
        self._skipped = int(jax.device_get(state.counts.skipped_in_a_row))  # up to the last update that was read

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
            self._skipped = int(values["skipped_in_a_row"])
            self._guard.look(step, values["loss"], self._skipped)

    def look(self, step: int, state: State, hooks: Sequence[Hook]) -> None:
        """Calls the hooks that are due after a step. The devices and the clock of the training stand still for them.

        Raises DivergedError where one meets values that are not finite while updates are skipped for such values.
        """
        if now := [hook for hook in hooks if hook.due(step, self._total)]:
            self.settle()
            with self.meter.paused():
                try:
                    for hook in now:
                        with unless_unwritable(f"step {step}"):
                            hook.call(step, state, self._writer)
                except NotFinite as error:
                    if not self._skipped:
                        raise
                    raise DivergedError(str(error), step, since=step - self._skipped + 1) from error


@contextmanager
def _compiled_beside(update: BackgroundJit, writer: MetricsWriter) -> Iterator[None]:
    """XLA compiles the update beside the block. On a GPU before it: XLA times kernels there, beside nothing else."""
    if jax.default_backend() == "gpu":
        await_update(update, writer)
    yield
    await_update(update, writer)


def await_update(update: BackgroundJit, writer: MetricsWriter) -> None:
    """Waits until XLA has compiled the update. Raises WorkerDied as soon as a data worker ends."""
    writer.phase("waiting for the update to be compiled")
    while not update.compiled_within(1.0):
        look_after_workers()
    update.wait()
