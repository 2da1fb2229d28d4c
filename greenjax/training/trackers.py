"""Where a run's curves, pictures and settings also go, by `log.to`: TensorBoard, Weights & Biases, MLflow.

A new one is a class with the methods of `Tracker`, its line in `ASIDE`, and its name in the setting.
"""

import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, runtime_checkable

from absl import logging

from greenjax.errors import InputError, in_a_line
from greenjax.runtime.console import say
from greenjax.runtime.files import replace_text
from greenjax.training.growing import Board

PROJECT = "greenjax"  # of W&B and of MLflow, where their own environment variables name no other
PATIENCE = 60.0  # seconds that the end of a run waits for a tracker


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a run."""

    workdir: Path
    start: int  # the step that it goes on from; 0: it begins anew
    settings: Mapping[str, Any]  # flat

    def identity(self, name: str) -> Path:
        """The file that holds the tracker's own name for this run: resumed, a run goes on there."""
        return self.workdir / "trackers" / name

    def before(self, name: str) -> str | None:
        """The tracker's own name for this run where it goes on."""
        path = self.identity(name)
        return path.read_text().strip() if self.start and path.exists() else None


@runtime_checkable
class Tracker(Protocol):
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, tag: str, png: Path) -> None: ...

    def close(self, done: bool) -> None:
        """`done`: the run came to its end."""


class Aside:
    """A tracker in a thread of its own: a run neither waits for it nor ends with it."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self._name, self._failed = name, False
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, args=(make,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._put(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, tag: str, png: Path) -> None:
        self._put(lambda tracker: tracker.image(step, tag, png))

    def close(self, done: bool) -> None:
        self._put(lambda tracker: tracker.close(done))
        self._calls.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            logging.warning("log.to: %s has not taken everything in %g s; the run ends", self._name, PATIENCE)

    def _put(self, call: Callable[[Tracker], None]) -> None:
        if not self._failed:
            self._calls.put(call)

    def _work(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (call := self._calls.get()) is not None:
                call(tracker)
        except BaseException as error:  # whatever a library raises, SystemExit included
            self._failed = True
            logging.warning("log.to: %s failed (%s); the run goes on without it", self._name, in_a_line(error))


class WeightsAndBiases:
    """Its project, mode and server are those of its environment variables, WANDB_PROJECT and the like."""

    def __init__(self, run: Tracked):
        identity = run.before("wandb") or uuid.uuid4().hex[:8]
        wandb: Any = import_module("wandb")  # an extra
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=run.workdir.name,
            resume="allow",
            dir=str(run.workdir),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        replace_text(run.identity("wandb"), identity + "\n")
        # Steps that a resumed run repeats are below W&B's own counter, which never goes back.
        self._run.define_metric("*", step_metric="step")
        if not self._run.offline:
            say(f"W&B: {self._run.url}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, tag: str, png: Path) -> None:
        self._run.log({"step": step, tag: self._wandb.Image(str(png))})

    def close(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


class MLflow:
    """Its server and experiment are those of MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: Tracked):
        mlflow: Any = import_module("mlflow")  # an extra
        self._client, self._metric = mlflow.MlflowClient(), mlflow.entities.Metric
        self._run = run.before("mlflow")
        if self._run is not None:
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=run.workdir.name).info.run_id
        replace_text(run.identity("mlflow"), self._run + "\n")
        for key, value in run.settings.items():
            self._client.log_param(self._run, key, value)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        self._client.log_batch(self._run, [self._metric(key, value, now, step) for key, value in finite.items()])

    def image(self, step: int, tag: str, png: Path) -> None:
        self._client.log_artifact(self._run, str(png), tag)

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if done else "KILLED")


ASIDE: dict[str, Callable[[Tracked], Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}  # by name in log.to


def trackers_of(setting: str | Sequence[str]) -> tuple[str, ...]:
    """The names in `log.to`. Raises InputError where the library of one is not installed."""
    names = (setting,) if isinstance(setting, str) else tuple(dict.fromkeys(setting))
    for name in names:
        if name in ASIDE and find_spec(name) is None:
            raise InputError(f"log.to has {name!r}, which is not installed: `pip install 'greenjax[{name}]'` does that")
    return names


def open_trackers(names: Sequence[str], run: Tracked) -> list[Tracker]:
    """The trackers of a run, each at the place where it stopped."""
    purge = run.start + 1 if run.start else 0
    own: list[Tracker] = [Board(run.workdir / "tensorboard", purge)] if "tensorboard" in names else []
    return own + [Aside(name, partial(ASIDE[name], run)) for name in names if name in ASIDE]
