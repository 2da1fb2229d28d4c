"""Batches: a batch is a pure function of (seed, step), whatever the number of workers.

Image i of the global stream is image i % n of epoch i // n, in an order shuffled anew each epoch. Row r of step t is
image t * batch_size + r; in pre-training it is in mask group r // (batch_size // groups). There is no other random
state: a run resumes at any step at no cost, on any number of processes.

Each of several processes reads its own rows of every batch: the argument `own` names the mask groups, or the rows of
images with labels. None stands for all of them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32, Num
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView, RandomView
from greenjax.data.encoded import Images
from greenjax.data.labels import LabelledSource, check_classes, spaced_rows
from greenjax.data.randaugment import labelled_view
from greenjax.data.stream import Stream, shuffled
from greenjax.data.undecodable import Fault, Remark, Undecodable
from greenjax.data.workers import WorkerPool, look_after_workers
from greenjax.planning import Plan, Planner

if TYPE_CHECKING:
    import grain  # imported where it is used: it imports JAX, which workers do without

REPLACED, LEFT_OUT = "the next image takes its place", "it is left out"

B = TypeVar("B")


class Batch(NamedTuple):
    """The input of one update of pre-training, by mask group."""

    images: Num[np.ndarray, "m b h w c"]
    plan: Plan  # leaves [m, ...]
    redrawn: Int32[np.ndarray, " m"]  # masks that did not fit the layouts and were drawn again
    undecodable: Int32[np.ndarray, " m"]  # images that were replaced by the next one, or left out of an evaluation
    valid: Bool[np.ndarray, "m b"]  # all True in training; False in evaluation: undecodable, or padding at the end


class LabelledBatch(NamedTuple):
    """Images with their labels: for one update of a classifier, or one step of its evaluation."""

    images: Num[np.ndarray, "b h w c"]
    labels: Int32[np.ndarray, " b"]  # -1 where not valid
    undecodable: Int32[np.ndarray, " b"]  # 1: replaced by the next image in training, not valid in evaluation
    valid: Bool[np.ndarray, " b"]  # all True in training; False in evaluation: undecodable, or padding at the end


def eval_size(config: ConfigDict) -> int:
    """Images of a batch of an evaluation, those of a part of an update: they fit into memory where an update does."""
    return config.data.batch_size // config.optim.accumulation


def blank_batch(config: ConfigDict, plan: Plan) -> Batch:
    """A black batch of pre-training for its shapes; `plan` is that of all mask groups. Its images take no memory."""
    groups, each = config.mask.groups, config.data.batch_size // config.mask.groups
    none = np.zeros(groups, np.int32)
    return Batch(_black(config, groups, each), plan, none, none, np.ones((groups, each), bool))


def blank_labelled_batch(config: ConfigDict) -> LabelledBatch:
    """A black batch for a classifier, all of class 0, for its shapes."""
    none, valid = np.zeros(config.data.batch_size, np.int32), np.ones(config.data.batch_size, bool)
    return LabelledBatch(_black(config, config.data.batch_size), none, none, valid)


def _black(config: ConfigDict, *count: int) -> Num[np.ndarray, "..."]:
    return np.broadcast_to(np.zeros((), config.data.dtype), (*count, *config.image_size, config.model.in_channels))


class Batches(Iterator[B], Generic[B]):
    """Batches one after the other; `close()`, or deletion, ends the threads or processes that make them."""

    def __init__(self, made: Any, undecodable: Undecodable | None, remedy: str):
        """`made` gives each batch with its damaged images, which `undecodable` names with their `remedy`."""
        self._made, self._remedy = made, remedy
        self._undecodable = Undecodable() if undecodable is None else undecodable

    def __next__(self) -> B:
        look_after_workers()  # during an evaluation those of the training wait
        batch, faults = next(self._made)
        self._undecodable.add(faults, self._remedy)
        return batch

    def close(self) -> None:
        self._made.close()


def train_batches(
    config: ConfigDict,
    source: Images,
    planner: Planner,
    start_step: int = 0,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[Batch]:
    """Endless batches, starting at `start_step`.

    An image that cannot be used, whatever it raises, is replaced by the next one of the order and added to
    `undecodable`. The run ends where this happens to more than half of the last LOOKED_AT images that a worker met:
    with InputError if they cannot be read or decoded, with ImagesError if they raise anything else.
    """
    stream = Stream(source, shuffled(len(source), config.seed), RandomView.from_config(config))
    make = pretraining_maker(config, stream, planner.plans, own)
    return Batches(read_ahead(config, make, start_step), undecodable, REPLACED)


def labelled_batches(
    config: ConfigDict,
    source: LabelledSource,
    start_step: int = 0,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[LabelledBatch]:
    """Endless batches for a classifier, as `train_batches`. Raises InputError for labels without an output."""
    check_classes(config, source)
    stream = Stream(source, shuffled(len(source), config.seed), labelled_view(config), labelled=True)
    make = Maker(stream, config.data.batch_size, own or range(config.data.batch_size), with_labels)
    return Batches(read_ahead(config, make, start_step), undecodable, REPLACED)


def eval_batches(
    config: ConfigDict,
    source: Images,
    planner: Planner,
    own: range | None = None,
    undecodable: Undecodable | None = None,
    patient: bool = False,
) -> Batches[Batch]:
    """At most data.eval_images images of `source`, each once and in order, always with the same masks.

    They are evenly spaced, because a data set is often in the order of its classes. The last batch is filled up with
    black images. An image that cannot be used is added to `undecodable`, and is not valid; errors as in
    `train_batches`. `patient`: the pass goes on however many images cannot be used.
    """
    count = min(len(source), config.data.eval_images)
    rows = spaced_rows(len(source), count).tolist()
    stream = one_pass(config, source, rows, config.data.batch_size, patient=patient)
    make = pretraining_maker(config, stream, planner.held_out_plans, own)
    return Batches(read_once(config, make), undecodable, LEFT_OUT)


def labelled_eval_batches(
    config: ConfigDict, source: LabelledSource, own: range | None = None, undecodable: Undecodable | None = None
) -> Batches[LabelledBatch]:
    """All images, each once and in order, in batches of `eval_size`; the last one is filled up with black images.

    An image that cannot be used is left out as in `eval_batches`. Raises InputError as `labelled_batches`.
    """
    check_classes(config, source)
    stream = one_pass(config, source, range(len(source)), size := eval_size(config), labelled=True)
    return Batches(read_once(config, Maker(stream, size, own or range(size), with_labels)), undecodable, LEFT_OUT)


def image_batches(
    config: ConfigDict, source: Images, first: int = 0, own: range | None = None, undecodable: Undecodable | None = None
) -> Batches[LabelledBatch]:
    """All images from batch `first` on, each once and in order, without labels; otherwise as `labelled_eval_batches`.

    However many images cannot be used, the pass goes on.
    """
    size = config.data.batch_size
    stream = one_pass(config, source, range(len(source)), size, patient=True)
    make = Maker(stream, size, own or range(size), without_labels)
    return Batches(read_once(config, make, first), undecodable, LEFT_OUT)


def two_views(
    config: ConfigDict,
    source: Images,
    rows: Sequence[int],
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[LabelledBatch]:
    """These images, each in a random view of training, then again in another one; the same at each call.

    Otherwise as `image_batches`, in batches of `eval_size`.
    """
    size = eval_size(config)
    order, view = [*rows, *rows], RandomView.from_config(config)
    stream = Stream(source, order, view, length=-(-len(order) // size) * size, patient=True)
    make = Maker(stream, size, own or range(size), without_labels)
    return Batches(read_once(config, make), undecodable, LEFT_OUT)


def one_pass(
    config: ConfigDict,
    source: Images | LabelledSource,
    order: Sequence[int],
    size: int,
    labelled: bool = False,
    patient: bool = False,
) -> Stream:
    """The images `order`, then black ones up to whole batches of `size`."""
    length = -(-len(order) // size) * size
    return Stream(source, order, CentreView.from_config(config), labelled, length, patient)


@dataclass(frozen=True)
class Maker:
    """Makes the batch of a step, a pure function of it, of some rows of every batch; picklable."""

    stream: Stream
    batch_size: int
    rows: range
    finish: Callable[..., Any]  # of the step and its stacked rows

    def __call__(self, step: int) -> tuple[Any, list[Fault | Remark]]:
        """The batch, the damaged images that were met, and remarks."""
        each = len(self.rows)
        rows = map(self.row, range(step * each, (step + 1) * each))
        return self.finish(step, tuple(map(np.stack, zip(*rows)))), self.stream.new_faults()

    def row(self, index: int) -> tuple[Any, ...]:
        """Row `index`, counted over all batches."""
        step, row = divmod(index, len(self.rows))
        return self.stream[step * self.batch_size + self.rows[row]]


def pretraining_maker(config: ConfigDict, stream: Stream, plans: Callable[..., Any], own: range | None) -> Maker:
    """Makes `Batch`es of the mask groups `own`, with the `plans` of a step."""
    groups, size = config.mask.groups, config.data.batch_size
    own = own or range(groups)
    rows = range(own.start * size // groups, own.stop * size // groups)
    return Maker(stream, size, rows, partial(with_plans, partial(plans, groups=groups, own=own), len(own)))


def with_plans(
    draw: Callable[[int], tuple[Plan, Int32[np.ndarray, " m"]]],
    groups: int,
    step: int,
    rows: tuple[Num[np.ndarray, "rows h w c"], Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]],
) -> Batch:
    """Splits the rows of a step into mask groups and adds the plans that `draw` gives for the step."""
    plan, redrawn = draw(step)
    images, undecodable, valid = (column.reshape(groups, -1, *column.shape[1:]) for column in rows)
    return Batch(images, plan, redrawn, undecodable.sum(axis=1, dtype=np.int32), valid)


def with_labels(step: int, rows: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> LabelledBatch:
    """The rows of a step as a batch for a classifier."""
    images, labels, undecodable, valid = rows
    return LabelledBatch(images, labels, undecodable.astype(np.int32), valid)


def without_labels(step: int, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> LabelledBatch:
    """The rows of a step as a batch for a classifier that nobody judges: all labels are -1."""
    images, undecodable, valid = rows
    return LabelledBatch(images, np.full(len(images), -1, np.int32), undecodable.astype(np.int32), valid)


def read_ahead(config: ConfigDict, make: Maker, first: int) -> Any:
    """Batches of training and their damaged images, starting at step `first`, made ahead by worker processes."""
    if config.data.workers:
        return WorkerPool(make, first, config.data.workers)
    import grain

    steps = grain.MapDataset.range(first, sys.maxsize).map(make)  # one thread, one batch ahead
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))


def read_once(config: ConfigDict, make: Maker, first: int = 0) -> "grain.DatasetIterator":
    """The batches of one pass, from batch `first` on, and their damaged images.

    As many threads as training has workers decode images: a pass is too short to start processes for it.
    """
    import grain

    threads, each = max(1, config.data.workers), len(make.rows)
    rows = grain.MapDataset.range(first * each, len(make.stream) // make.batch_size * each).map(make.row)
    batches = rows.to_iter_dataset(grain.ReadOptions(threads, 4 * threads)).batch(each, drop_remainder=True)
    return iter(batches.map_with_index(make.finish).map(lambda batch: (batch, make.stream.new_faults())))
