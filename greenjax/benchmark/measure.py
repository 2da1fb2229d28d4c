"""How programs are timed, and on what."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def interleaved_medians(programs: dict[Any, tuple[Callable, tuple]], repeats: int) -> dict[Any, float]:
    """Median seconds of each compiled program on its arguments, run in turn so that all meet the same disturbances."""
    return {name: statistics.median(times) for name, times in interleaved_seconds(programs, repeats).items()}


def interleaved_seconds(programs: dict[Any, tuple[Callable, tuple]], repeats: int) -> dict[Any, list[float]]:
    """Seconds of each compiled program on its arguments, by round."""
    seconds = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, (program, args) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            if repeat:  # the first run warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_by_round(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """How many times as long as the reference: the median over rounds, each of which met its own disturbance."""
    return ratio_quartiles(seconds, reference)[1]


def ratio_quartiles(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper one of that ratio: how far to trust it."""
    return np.quantile(np.divide(seconds, reference), (0.25, 0.5, 0.75)).tolist()


def machine() -> dict[str, Any]:
    """Where and with what a suite ran."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    device = jax.devices()[0].device_kind
    return {"device": device, "cores": cores, "python": platform.python_version(), "jax": jax.__version__}
