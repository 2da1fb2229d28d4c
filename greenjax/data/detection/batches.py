"""Batches of images with their objects. Order, seeds, resuming and damaged images are those of data/loader.py."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.detection.targets import Targets
from greenjax.data.detection.view import ObjectView, no_targets
from greenjax.data.loader import LEFT_OUT, REPLACED, Batches, Maker, eval_size, read_ahead, read_once
from greenjax.data.stream import Stream, shuffled
from greenjax.data.undecodable import Undecodable


class ObjectBatch(NamedTuple):
    """Images with their objects: for one update of a detector, or one step of its evaluation."""

    images: UInt8[np.ndarray, "b h w c"]  # black outside of their true sizes
    sizes: Int32[np.ndarray, "b 2"]  # (height, width)
    targets: Targets
    undecodable: Int32[np.ndarray, " b"]  # 1: replaced by the next image in training, not valid in evaluation
    valid: Bool[np.ndarray, " b"]  # all True in training; False in evaluation: undecodable, or padding at the end


def object_batches(
    config: ConfigDict,
    source: Any,
    start_step: int = 0,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[ObjectBatch]:
    """Endless batches for a detector, starting at `start_step`; errors as `train_batches` has them.

    `source`: a sources.objects.WithObjects.
    """
    view = ObjectView.from_config(config, training=True)
    stream = ObjectStream(source, shuffled(len(source), config.seed), view)
    make = Maker(stream, config.data.batch_size, own or range(config.data.batch_size), with_objects)
    return Batches(read_ahead(config, make, start_step), undecodable, REPLACED)


def object_eval_batches(
    config: ConfigDict, source: Any, own: range | None = None, undecodable: Undecodable | None = None
) -> Batches[ObjectBatch]:
    """All images, each once and in order, in batches of `eval_size`; the last one is filled up with black images.

    An image that cannot be used is left out as in `eval_batches`.
    """
    view, size = ObjectView.from_config(config, training=False), eval_size(config)
    stream = ObjectStream(source, range(len(source)), view, length=-(-len(source) // size) * size)
    return Batches(read_once(config, Maker(stream, size, own or range(size), with_objects)), undecodable, LEFT_OUT)


def blank_object_batch(config: ConfigDict) -> ObjectBatch:
    """A black batch without objects, for its shapes. It takes no memory."""
    view, count = ObjectView.from_config(config, training=False), config.data.batch_size
    row = *nothing_of(view), False, True
    return with_objects(0, tuple(np.broadcast_to(each, (count, *np.shape(each))) for each in row))


class ObjectStream(Stream):
    """A stream of images with their objects, each in its view."""

    def seen(self, item: Any, index: int) -> tuple[Any, ...]:
        image, objects = item
        return self.view(image, objects, index)

    def nothing(self) -> tuple[Any, ...]:
        return nothing_of(self.view)


def nothing_of(view: ObjectView) -> tuple[np.ndarray, ...]:
    """What a view gives of a black image without objects."""
    return np.zeros((*view.size, view.channels), np.uint8), np.array(view.size, np.int32), *no_targets(view.most)


def with_objects(step: int, rows: tuple[np.ndarray, ...]) -> ObjectBatch:
    """The rows of a step as a batch for a detector."""
    images, sizes, boxes, labels, masks, placed, undecodable, valid = rows
    targets = Targets(boxes, labels, masks, boxes, placed)  # a mask covers its box
    return ObjectBatch(images, sizes, targets, undecodable.astype(np.int32), valid)
