"""One update of a detector by greenjax and by torchvision's Mask R-CNN, with the same weights, images and objects.

torchvision's side runs where it is installed. `--memory` compiles updates instead, in float32 and bfloat16, with and
without recomputation, for their memory and FLOPs, and runs none. docs/detection.md holds the figures.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.measure import TIMING, interleaved_medians, machine
from benchmarks.programs import ONE_DEVICE, STEPS, memory_of, sized
from benchmarks.tables import Column, table
from greenjax.backbones.registry import FAMILIES
from greenjax.config.flags import positive
from greenjax.data.detection.batches import ObjectBatch, blank_object_batch
from greenjax.errors import InputError
from greenjax.runtime.cost import matmul_flops
from greenjax.runtime.placement import Placement
from greenjax.tasks.detect import detection
from greenjax.training.optim import learning_rate
from greenjax.training.sharding import batch_shapes, make_mesh
from greenjax.training.state import abstract_state, init_state
from greenjax.training.step import make_update

FLAGS = TIMING | {
    "--objects": dict(type=positive, default=4, help="objects of an image"),
    "--memory": dict(type=positive, nargs="+", metavar="BATCH", help="compile updates of these batches, run none"),
}
COLUMNS: list[Column] = [
    ("batch", "batch", 1, "d"),
    ("type", "dtype", 1, ""),
    ("remat", "remat", 1, ""),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("temporaries, MB", "temporary", 1e6, ".1f"),
    ("MB in all", "memory", 1e6, ".1f"),
]


def run(config: ConfigDict, batch: int, repeats: int, objects: int, memory: list[int] | None) -> dict[str, Any]:
    """Prints the seconds of both updates, or the table of memory, and returns the figures."""
    if config.task != "detect":
        raise InputError(f"task is {config.task!r}: expected 'detect'")
    if memory:
        rows = [
            costs(sized(config, count, model__dtype=dtype, model__remat=remat, **ONE_DEVICE), objects)
            for count in memory
            for dtype in ("float32", "bfloat16")
            for remat in (False, True)
        ]
        print(table(COLUMNS, rows))
        return {"model": config.model.name, "image_size": config.image_size, "rows": rows}
    return times(sized(config, batch, **ONE_DEVICE), repeats, objects)


def costs(config: ConfigDict, objects: int) -> dict[str, Any]:
    """A row of the table; it is also printed at once."""
    mesh = make_mesh(config)
    traced = update_of(config).trace(abstract_state(config, mesh), batch_shapes(random_objects(config, objects), mesh))
    temporary, whole = memory_of(traced.lower().compile())
    row = {"batch": config.data.batch_size, "dtype": config.model.dtype, "remat": str(config.model.remat)}
    row |= {"flops": matmul_flops(traced.jaxpr), "temporary": temporary, "memory": whole}
    print(table(COLUMNS, [row]).splitlines()[-1], flush=True)
    return row


def times(config: ConfigDict, repeats: int, objects: int) -> dict[str, Any]:
    """Median seconds of both updates, which take turns."""
    batch, report = random_objects(config, objects), {**machine(), "left_out": why_not(config)}
    programs: dict[str, Any] = {"greenjax": (_greenjax(config, batch), ())}
    if report["left_out"]:
        print(f"torchvision is left out: {report['left_out']}")
    else:
        programs["torchvision"] = (_torchvision(config, batch), ())
    report["seconds"] = seconds = interleaved_medians(programs, repeats)
    for name, median in seconds.items():
        print(f"{name:12} {median:.3f} s")
    if len(seconds) > 1:
        print(f"greenjax / torchvision: {seconds['greenjax'] / seconds['torchvision']:.2f}")
    return report


def why_not(config: ConfigDict) -> str:
    """Why torchvision cannot run beside this configuration; "": it can."""
    if missing := [name for name in ("torch", "torchvision") if find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed"
    if jax.default_backend() != "cpu" or config.model.dtype != "float32":
        return "it runs here on a CPU in float32 alone"
    if config.model.name not in FAMILIES["swin"].sizes:
        return f"it has no {config.model.name}"
    return "" if config.model.in_channels == 3 else "its Swin takes three channels: --config.model.in_channels=3"


def random_objects(config: ConfigDict, objects: int) -> ObjectBatch:
    """Noise with random ellipses for objects."""
    rng, blank = np.random.default_rng(0), blank_object_batch(config)
    batch = jax.tree.map(np.array, blank)
    batch.images[:] = rng.integers(256, size=batch.images.shape)
    targets, size = batch.targets, np.array(config.image_size)[::-1]
    objects = min(objects, targets.valid.shape[1])
    corner = rng.uniform(0, 0.5, (len(batch.images), objects, 2)) * size
    targets.boxes[:, :objects] = np.concatenate([corner, corner + rng.uniform(0.15, 0.5, corner.shape) * size], axis=2)
    targets.labels[:, :objects] = rng.integers(1, config.model.num_classes + 1, corner.shape[:2])
    targets.valid[:, :objects] = True
    y, x = np.mgrid[-1 : 1 : targets.masks.shape[2] * 1j, -1 : 1 : targets.masks.shape[3] * 1j]
    targets.masks[:, :objects] = y**2 + x**2 <= 1
    return batch._replace(targets=targets._replace(regions=targets.boxes))


def update_of(config: ConfigDict) -> jax.stages.Wrapped:
    return make_update(detection(config), make_mesh(config), learning_rate(config, STEPS, 1))


def _greenjax(config: ConfigDict, batch: ObjectBatch) -> Callable[[], Any]:
    mesh = make_mesh(config)
    placed, held, update = Placement(mesh)(batch), [init_state(config, mesh)], update_of(config)

    def run() -> Any:
        held[0], metrics = update(held[0], placed)
        return metrics

    return run


def _torchvision(config: ConfigDict, batch: ObjectBatch) -> Callable[[], Any]:
    """torchvision's update, from the weights of greenjax's first state."""
    import torch

    from benchmarks.torch_maskrcnn import mask_rcnn
    from greenjax.data.detection.paste import paste
    from greenjax.interop.saving import save_torch
    from greenjax.models import build

    model = mask_rcnn(config).train()
    with tempfile.TemporaryDirectory() as folder:
        save_torch(build(config, config.seed), path := Path(folder) / "detector.pth", "torchvision")
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    colours = [jnp.asarray(x, jnp.float32) for x in (config.data.mean, config.data.std)]
    normal = np.asarray((batch.images / 255.0 - colours[0]) / colours[1], np.float32)
    pixels = [torch.tensor(image).permute(2, 0, 1) for image in normal]
    targets = []
    for boxes, labels, masks, valid in zip(*(batch.targets[i] for i in (0, 1, 2, 4))):
        pasted = paste(masks[valid].astype(np.float32), boxes[valid], config.image_size) >= 0.5
        found = dict(boxes=boxes[valid], labels=labels[valid].astype(np.int64), masks=pasted.astype(np.uint8))
        targets.append({name: torch.tensor(value) for name, value in found.items()})
    optim = config.optim
    adamw = torch.optim.AdamW(model.parameters(), 1e-4, (optim.b1, optim.b2), optim.eps, optim.weight_decay)

    def run() -> None:
        adamw.zero_grad(set_to_none=True)
        sum(model(pixels, targets).values()).backward()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        adamw.step()

    return run
