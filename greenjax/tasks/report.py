"""What a classifier says of a set of images, and how the results are told: numbers, pictures, a line for the reader."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView
from greenjax.data.encoded import undecoded
from greenjax.data.labels import LabelledSource, Matched
from greenjax.data.loader import eval_size, labelled_eval_batches
from greenjax.data.undecodable import Undecodable
from greenjax.evaluation.classify import Evaluation, evaluate, reported_accuracies
from greenjax.evaluation.pictures.canvas import coloured
from greenjax.evaluation.pictures.confusion import MOST_CLASSES, draw_confusion, draw_examples, most_confused
from greenjax.evaluation.results import write_predictions, write_results
from greenjax.runtime.classes import output_names
from greenjax.runtime.console import say
from greenjax.runtime.files import unless_unwritable
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import leads
from greenjax.training.state import Params

MOST_BYTES = 200  # of a set's name in the names of files


class Judge:
    """Evaluates a classifier on labelled images: each image once, whatever the batch size and the devices."""

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh, undecodable: Undecodable | None = None):
        """Images that cannot be used are left out, and listed in `undecodable`."""
        self.config, self.mesh, self.place = config, mesh, Placement(mesh)
        self.undecodable = Undecodable() if undecodable is None else undecodable
        self.forward = lambda params, images: nnx.merge(graphdef, params).forward(images)

    def evaluate(self, params: Params, source: LabelledSource, predictions: bool = False) -> Evaluation:
        own = self.place.own(eval_size(self.config))
        batches = labelled_eval_batches(self.config, source, own, self.undecodable)
        with jax.set_mesh(self.mesh):  # for kernels: ops/fused_attention.py
            return evaluate(self.forward, params, batches, self.place, predictions=predictions)


def report(
    config: ConfigDict, workdir: Path, name: str, found: Evaluation, images: Matched, step: int | None = None
) -> None:
    """One entry of results.json, the confusion matrix and the most confused examples, and a line for the reader."""
    if not leads():
        return
    metrics, source = found.metrics, images.source
    accuracies = reported_accuracies(metrics, len(source.classes))
    told = ", ".join(f"{key[:3]}-{key[3:]} {value:.4f}" for key, value in accuracies.items())
    say(
        f"{name}: {told}, loss {metrics['loss']:.4f}, calibration error {metrics['ece']:.4f},"
        f" {metrics['images']:,} images"
    )
    about = dict(task=config.task, init=config.init, split=name) | ({} if step is None else dict(step=step))
    write_results(workdir, name, about | metrics | images.counts)
    assert found.predictions is not None
    plain, names = in_file_names(name), output_names(source.classes, len(found.confusion))
    if config.log.predictions:
        files = [source.name_of(int(index)) for index in found.predictions.image]
        write_predictions(workdir / f"predictions_{plain}.csv", found.predictions, files, names)
    with unless_unwritable(f"pictures of {name}"):
        if 2 <= len(found.confusion) <= MOST_CLASSES:
            draw_confusion(workdir / f"confusion_{plain}.png", found.confusion, names)
        worst, view = most_confused(found.predictions), CentreView.from_config(config)
        views = [view(undecoded(source, int(i))[0], int(i)) for i in worst.image]
        shown = np.array(views, config.data.dtype).reshape(-1, *config.image_size, config.model.in_channels)
        pixels = coloured(shown, config.log.picture_channels, no_data=config.data.no_data)
        draw_examples(workdir / f"mistakes_{plain}.png", pixels, worst, names)


def in_file_names(name: str) -> str:
    """A set's name as it stands in names of files, the end of a long one: file systems allow 255 bytes."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return plain.encode()[-MOST_BYTES:].decode(errors="ignore").strip("_")
