"""Where a run starts: at its last checkpoint, or with its first weights, given or fresh."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.config.flags import DETERMINISTIC
from greenjax.config.inherit import ENCODER
from greenjax.data.listing import listing
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.models import Backbone
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.classes import Classes, refuse_other_classes, write_classes
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.console import say
from greenjax.runtime.files import replace_text
from greenjax.runtime.lock import held
from greenjax.runtime.processes import leads
from greenjax.training.guard import Rollbacks
from greenjax.training.optim import learning_rate, run_length
from greenjax.training.record import record_config, refuse_other
from greenjax.training.sharding import batch_shapes, make_mesh
from greenjax.training.state import Params, State, abstract_state, init_state, parameters
from greenjax.training.step import Task, make_update
from greenjax.training.together import same_start
from greenjax.training.trackers import trackers_of

TRAINING, HELD_OUT = "training images", "held-out images"  # keys of Run.sources


@dataclass(frozen=True)
class Run:
    """A training run between its set-up and its end: what the stories of tasks/ and the loop know of it."""

    task: Task
    workdir: Path
    mesh: Mesh
    sources: Mapping[str, Any]  # its sets of images, by the names that errors give them; None: there is no such set
    classes: Classes | None  # of a classifier's images
    total: int  # updates, `warmup` of them with a rising rate
    warmup: int
    last: int | None  # the step of the last checkpoint when this process began; None: there was none
    update: BackgroundJit
    undecodable: Undecodable
    began: float  # monotonic seconds

    @property
    def config(self) -> ConfigDict:
        return self.task.config

    @property
    def start(self) -> int:
        """Updates that were done before this process."""
        return self.last or 0


def begin(
    task: Task,
    workdir: Path,
    mesh: Mesh,
    batch: Any,
    sources: Mapping[str, Any],
    weights: Callable[[], Params | None],
    classes: Classes | None = None,
) -> tuple[Run, State]:
    """A run and its state, at the last checkpoint or before the first step; its update compiles in a thread.

    `batch` has the shapes of a batch of all processes. `weights()` reads the weights that a new run begins with; None:
    it draws them. Raises InputError where the workdir holds another run.
    """
    began, config, images = monotonic(), task.config, sources[TRAINING]
    if config.deterministic and jax.default_backend() == "gpu" and DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise InputError(f"config.deterministic: XLA_FLAGS lacks {DETERMINISTIC}, to be set before JAX starts")
    trackers_of(config.log.to)  # may lack their libraries
    total, warmup = run_length(config, len(images))
    checkpointer = Checkpointer(workdir)
    last = checkpointer.latest_intact_step()
    start = last or 0
    if classes is not None and last is not None:
        refuse_other_classes(workdir, classes)
    if last == 0:  # converted weights: a start that is refused must not overwrite their config.json
        refuse_other(workdir, config, ENCODER)
        checkpointer.check(abstract_state(config, mesh), last)
    given = weights() if last is None else None  # before any file is written: they may be wrong
    same_start(last, start + Rollbacks(workdir).skipped(start), sources)
    record_config(workdir, config, len(images), start > 0, listing(images))
    if classes is not None and leads():
        write_classes(workdir, classes)
    undecodable = Undecodable(workdir, resuming=start > 0, writes=leads())
    update = BackgroundJit(make_update(task, mesh, learning_rate(config, total, warmup)))
    run = Run(task, workdir, mesh, sources, classes, total, warmup, last, update, undecodable, began)
    return run, _first_state(run, checkpointer, batch, given)


def _first_state(run: Run, checkpointer: Checkpointer, batch: Any, given: Params | None) -> State:
    """Starts to compile the update; meanwhile restores the state, or makes it of the first weights."""
    config, last = run.config, run.last
    shapes = abstract_state(config, run.mesh)
    if run.start < run.total:
        folder = jax.config.values["jax_compilation_cache_dir"]
        kept = f"; later starts find it in {folder}" if folder else ""
        say(f"compiling the update in a thread (minutes for a large model{kept}) ...")
        run.update.start(shapes, batch_shapes(batch, run.mesh))
    if last is None:
        if given is None:
            say("drawing the first weights ...")
        return init_state(config, run.mesh, given)
    if last:
        done = f"finished: {run.total} steps were done before"
        say(f"going on at step {last} of {run.total}" if last < run.total else done)
    return checkpointer.restore(shapes, last)


def check_new(workdir: Path) -> None:
    """Raises InputError where a run stands already."""
    if steps := Checkpointer(workdir).steps():
        raise InputError(f"workdir {str(workdir)!r} has checkpoints of steps {steps}: expected a new folder")


def write_start(workdir: Path, model: Backbone, config: ConfigDict) -> None:
    """Makes a workdir whose checkpoint of step 0 holds the weights of a model: a run there begins with them."""
    mesh = make_mesh(config)
    with held(workdir, "--workdir"), Checkpointer(workdir) as checkpointer:
        check_new(workdir)
        replace_text(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        if model.classes:
            write_classes(workdir, model.classes)
        checkpointer.save(0, init_state(config, mesh, parameters(model)))
        checkpointer.wait()
