"""Time to the first step of `python -m greenjax.main` on photographs or records on disk, and the speed after it.

The command runs on one device, twice with one new cache: the first run compiles and plans layouts, the second finds
both. On a GPU, start the benchmark with XLA_PYTHON_CLIENT_PREALLOCATE=false, or this process leaves too little memory
to the command.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.inputs import PHOTOGRAPHS, prepared, write_photographs
from benchmarks.measure import TIMING, machine
from benchmarks.programs import ONE_DEVICE, STEPS, check_pretraining, sized
from greenjax.backbones.geometry import make_planner
from greenjax.config import flatten, resolve
from greenjax.data.loader import train_batches
from greenjax.data.open import open_source
from greenjax.errors import InputError

FLAGS = {
    "--batch": TIMING["--batch"],
    "--data": dict(choices=("folder", "records"), default="folder", help="JPEG files, or records prepared of them"),
}
MEASURED = 8  # steps that the speed is taken of
WARM = 3  # steps before them: the first ones map memory
# The defaults of a user, but for the place of the cache: XDG_CACHE_HOME is a temporary folder.
CACHE = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_ENABLE_COMPILATION_CACHE": "1"}
CACHE |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def run(config: ConfigDict, batch: int, data: str) -> dict[str, Any]:
    """Prints and returns the figures of the command."""
    check_pretraining(config)
    report = {**machine(), "model": config.model.name, "dtype": config.model.dtype, "batch": batch, "data": data}
    report |= whole_run(config, batch, data)
    print(f"{report['model']}, {report['dtype']}, batch {batch}, on {report['cores']} cores of {report['device']}")
    print(text(report))
    return report


def whole_run(config: ConfigDict, batch: int, data: str = "folder") -> dict[str, Any]:
    """Seconds to the end of the first step without and with a cache; the speed of the loop after it.

    `input_images_per_second`: rate at which one process prepares images; `waited`: share of its time that the loop
    waits for data. Raises InputError where the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size, count = PHOTOGRAPHS["500 x 375"]
        write_photographs(root / "photographs", size, max(count, batch))
        path = root / "photographs" if data == "folder" else prepared(root / "photographs", "raw", 256)
        config = on_data(config, batch, data, path)
        file = write_config(root / "config.py", config)
        cold, _ = measured_run(file, root / "cold", root / "cache", 1)
        print(f"measured the first step without a cache: {cold:.1f} s", flush=True)
        cached, lines = measured_run(file, root / "cached", root / "cache", WARM + MEASURED)
        rate = input_rate(config)
    rates = [(1 / line["images_per_second"], line["waited"]) for line in lines if line["step"] > WARM]
    seconds = sum(rate for rate, _ in rates)  # of one image of each batch
    return {
        "first_step_seconds": {"cold": cold, "cached": cached},
        "input_images_per_second": rate,
        "images_per_second": len(rates) / seconds,
        "waited": sum(rate * waited for rate, waited in rates) / seconds,
    }


def text(report: dict[str, Any]) -> str:
    """The figures of a whole run as text."""
    first = report["first_step_seconds"]
    return (
        f"input: {report['input_images_per_second']:.0f} images/s by one process\n"
        f"whole run: first step after {first['cold']:.1f} s, {first['cached']:.1f} s with JAX's cache;"
        f" then {report['images_per_second']:.1f} images/s, {report['waited']:.2%} of the time waiting for data"
    )


def on_data(config: ConfigDict, batch: int, source: str, path: Path) -> ConfigDict:
    """The configuration on this data, with metrics at every step and no more workers than cores."""
    data = {"source": source, "path": str(path), "split": "all", "eval_split": ""}
    data["workers"] = min(config.data.workers, machine()["cores"])
    changes = {f"data__{name}": value for name, value in data.items()}
    changes |= dict(epochs=None, optim__warmup_epochs=None, steps=STEPS, optim__warmup_steps=1)
    changes |= dict(monitor="none", log__every=1, log__checkpoint_every=0)
    return sized(config, batch, **changes, **ONE_DEVICE)


def write_config(path: Path, config: ConfigDict) -> Path:
    """The configuration as a file."""
    path.write_text(f"import greenjax\n\n\ndef get_config():\n    return greenjax.resolve({flatten(config)!r})\n")
    return path


def input_rate(config: ConfigDict) -> float:
    """Images a second that one process decodes, crops, resizes and batches with their plans."""
    config = resolve(flatten(config) | {"data.workers": 0})
    source = open_source(config.data, config.data.split)
    with closing(train_batches(config, source, make_planner(config))) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(MEASURED):
            next(batches)
    return MEASURED * config.data.batch_size / (time.perf_counter() - start)


def measured_run(file: Path, workdir: Path, cache: Path, steps: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds to the end of the first step, and the metrics up to step `steps`, at which the run is killed."""
    start, first = time.perf_counter(), 0.0
    with closing(front_door(file, workdir, cache)) as said:
        for line in said:
            if line.startswith(f"step 1/{STEPS}  loss"):
                first = time.perf_counter() - start
            if line.startswith(f"step {steps}/{STEPS}  loss"):
                break
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return first, [line for line in lines if line["step"] <= steps]


def front_door(file: Path, workdir: Path, cache: Path) -> Generator[str, None, None]:
    """The command's lines, until the generator is closed. Raises InputError where the command ends before."""
    command = [sys.executable, "-m", "greenjax.main", "--config", str(file), "--workdir", str(workdir)]
    told = os.environ | CACHE | {"XDG_CACHE_HOME": str(cache)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            yield from process.stdout
            code = process.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"python -m greenjax.main ended too early, code {code}: {last}")
        finally:
            process.kill()
