"""Every model.name in one table: parameters, matrix products of an update, green and dense, and memory of an image.

Sizes are published ones: where a model has windows, an image is as large as makes the last stage one window. All other
settings are those of --config. Nothing is run.
"""

import math
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.measure import TIMING
from benchmarks.programs import (
    METHODS,
    ONE_DEVICE,
    check_pretraining,
    compile_part,
    memory_slope,
    random_batch,
    sized,
    trace_part,
)
from benchmarks.tables import Column, markdown
from greenjax.backbones.registry import ARCHITECTURES, SIZE_SETTINGS, family_of
from greenjax.config.inherit import OWN
from greenjax.errors import InputError, listed
from greenjax.models import build
from greenjax.runtime.cost import matmul_flops

FLAGS = {
    "--batch": TIMING["--batch"],
    "--names": dict(nargs="+", default=list(ARCHITECTURES), metavar="NAME", help="model.name, by default all"),
    "--memory": dict(
        nargs="*",
        metavar="NAME",
        help="compile the green update of these, by default of all, for its memory: minutes for a large model",
    ),
}
COLUMNS: list[Column] = [
    ("`model.name`", "name", 1, ""),
    ("million parameters", "parameters", 1e6, ".1f"),
    ("image, px", "image_size", 1, "d"),
    ("green, GFLOP", "green_flops", 1e9, ".1f"),
    ("dense, GFLOP", "dense_flops", 1e9, ".1f"),
    ("green / dense", "ratio", 1, ".2f"),
    ("MB an image", "memory_slope", 1e6, ".1f"),
]


def run(config: ConfigDict, batch: int, names: list[str], memory: list[str] | None = None) -> dict[str, Any]:
    """Prints the rows of a pre-training configuration with each of `names`, one by one, and returns them.

    `memory`: the names whose memory is measured; [] stands for all of `names`.
    """
    check_pretraining(config)
    measured = [] if memory is None else memory or names
    for name in names:
        family_of(name)  # raises InputError for an unknown name before minutes of work
    if others := [name for name in measured if name not in names]:
        raise InputError(f"--memory is {others[0]!r}: expected some of --names, {listed(names)}")
    print(f"one update of {batch} images, mask ratio {config.mask.ratio:g}, {config.model.dtype}")
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append(row(named(config, name), batch, name in measured))
        lines = markdown(COLUMNS, rows[-1:])
        print("\n".join(lines if len(rows) == 1 else lines[2:]), flush=True)
    return {"batch": batch, "mask_ratio": config.mask.ratio, "dtype": config.model.dtype, "rows": rows}


def named(config: ConfigDict, name: str) -> ConfigDict:
    """The configuration with another model of its published size; that of the same family keeps how it pools."""
    kept = OWN if family_of(name) is family_of(config.model.name) else ()
    parts = (part for part in SIZE_SETTINGS if f"model.{part}" not in kept)
    published = {f"model__{part}": None for part in parts} | {"model__name": name}
    window, patch = (ARCHITECTURES[name].get(part) for part in ("window", "patch"))
    stages = len(ARCHITECTURES[name]["depths"])
    size = window * patch * 2 ** (stages - 1) if window else config.image_size
    return sized(config, config.data.batch_size, image_size=size, **published, **ONE_DEVICE)


def row(config: ConfigDict, batch: int, memory: bool) -> dict[str, Any]:
    """The figures of one model; `parameters` counts a classifier with 1,000 classes."""
    methods = {name: sized(config, batch, method=method, **ONE_DEVICE) for name, method in METHODS.items()}
    found = {"name": config.model.name, "parameters": parameters(config), "image_size": config.image_size[0]}
    for name, method in methods.items():
        found[f"{name}_flops"] = matmul_flops(trace_part(method, "update", random_batch(method)).jaxpr)
    found["ratio"] = found["green_flops"] / found["dense_flops"]
    green = methods["green"]
    found["memory_slope"] = memory_slope(green, compile_part(green, "update")) if memory else None
    return found


def parameters(config: ConfigDict) -> int:
    classifier = sized(config, config.data.batch_size, task="finetune", model__num_classes=1000)
    shapes: Any = jax.eval_shape(lambda: jax.tree.leaves(build(classifier, 0)))
    return sum(math.prod(leaf.shape) for leaf in shapes)
