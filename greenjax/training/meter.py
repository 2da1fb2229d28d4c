"""Loss, speed and cost of the updates between two lines of metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.cost import peak_flops, peak_memory


class Meter:
    """Averages the loss and measures the speed since the last line. Its clock stands still while it is paused."""

    def __init__(self, config: ConfigDict, mesh: Mesh, update: BackgroundJit, hours: float):
        """`hours`: of all devices, spent on this run before."""
        self._update, self._batch_size, self._devices = update, config.data.batch_size, mesh.size
        self._peak = peak_flops(mesh.devices.flat[0].device_kind, config.model.dtype)
        self._last: dict[str, float] = {}
        self._hours, self._began = hours, time.perf_counter()
        self.start()

    def start(self) -> None:
        """A new interval begins: after the last line, or where training begins."""
        self._losses: list[float] = []
        self._seconds, self._waited, self._since = 0.0, 0.0, time.perf_counter()

    def waiting_for(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time until it comes is `waited`."""
        since = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - since
        return batch

    def add(self, metrics: dict[str, float]) -> None:
        """Takes the metrics of an update that is done."""
        self._last = metrics
        self._losses.append(metrics["loss"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock: the time inside is not spent on training."""
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def line(self) -> dict[str, Any]:
        """The last metrics, with the loss, speed and cost of the interval, which ends. To be called while paused."""
        found = {key: value for key, value in self._last.items() if key != "loss"} | self._loss() | self._cost()
        self.start()
        return found

    def so_far(self) -> dict[str, Any]:
        """Loss and speed of the updates in the interval that are done."""
        seconds = self._seconds + time.perf_counter() - self._since
        return self._loss() | {"images_per_second": len(self._losses) * self._batch_size / seconds}

    def _loss(self) -> dict[str, float]:
        finite = [loss for loss in self._losses if np.isfinite(loss)]
        return {"loss": sum(finite) / len(finite)} if finite else {}

    def _cost(self) -> dict[str, Any]:
        speed = len(self._losses) / self._seconds  # updates a second
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
