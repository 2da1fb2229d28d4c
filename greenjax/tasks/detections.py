"""What a detector finds in a set of images, and how the results are told: numbers, files, a picture, a line."""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.data.detection.batches import object_eval_batches
from greenjax.data.loader import eval_size
from greenjax.data.sources.objects import WithObjects
from greenjax.data.undecodable import Undecodable
from greenjax.evaluation.detection.precision import average_precision
from greenjax.evaluation.detection.results import Results, by_image, collect, write
from greenjax.evaluation.pictures.detections import draw_detections
from greenjax.evaluation.results import write_results
from greenjax.runtime.classes import output_names
from greenjax.runtime.console import say
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import gathered, leads
from greenjax.tasks.report import in_file_names
from greenjax.training.state import Params

PICTURES = 6  # images in a grid


class Judged(NamedTuple):
    """The results of a detector on a set of images; of processes that do not lead, no numbers."""

    results: Results
    metrics: dict[str, float]  # box_ap, box_ap50, ..., mask_ap_large


class DetectionJudge:
    """Evaluates a detector on images with objects: each image once, whatever the batch size and the devices."""

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh, undecodable: Undecodable | None = None):
        """Images that cannot be used are left out, and listed in `undecodable`."""
        self.config, self.mesh, self.place = config, mesh, Placement(mesh)
        self.undecodable = Undecodable() if undecodable is None else undecodable
        self.forward = jax.jit(lambda params, images, sizes: nnx.merge(graphdef, params).detections(images, sizes))

    def evaluate(self, params: Params, source: WithObjects) -> Judged:
        own = self.place.own(eval_size(self.config))
        batches = object_eval_batches(self.config, source, own, self.undecodable)
        with jax.set_mesh(self.mesh):  # for kernels: ops/fused_attention.py
            found = collect(self.forward, params, batches, self.place, source)
        return Judged(found, average_precision(found) if leads() else {})

    def draw(self, path: Path, params: Params, source: WithObjects) -> None:
        """The first images with their objects and the detections."""
        own = self.place.own(size := eval_size(self.config))
        batches = islice(object_eval_batches(self.config, source, own, self.undecodable), -(-PICTURES // size))
        with jax.set_mesh(self.mesh):
            few = [gathered((self.forward(params, *map(self.place, batch[:2])), batch)) for batch in batches]
        found, batch = jax.tree.map(lambda *parts: np.concatenate(parts), *few)
        if leads():
            seen = by_image(found, batch.sizes, batch.valid)
            shown = {row: each for row, (_, each) in enumerate(islice(seen, PICTURES)) if each is not None}
            rows = list(shown)
            truth = jax.tree.map(lambda part: part[rows], batch.targets)
            names = output_names(source.classes, self.config.model.num_classes)
            draw_detections(path, batch.images[rows], batch.sizes[rows], truth, list(shown.values()), names)


def report_detections(config: ConfigDict, workdir: Path, name: str, found: Judged, step: int | None = None) -> None:
    """One entry of results.json, the detections as COCO's JSON, and a line for the reader."""
    if not leads():
        return
    images = len(found.results.ground_truth["images"])
    told = ", ".join(
        f"{key.replace('_', ' ')} {found.metrics[key]:.4f}" for key in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
    )
    say(f"{name}: {told}, {images:,} images")
    about = dict(task=config.task, init=config.init, split=name) | ({} if step is None else dict(step=step))
    write_results(workdir, name, about | {"images": images} | found.metrics)
    write(workdir, in_file_names(name), found.results)
