"""In which order images come: batches are a pure function of (seed, step), whatever the number of workers.

Image i of the global stream is image i % n of epoch i // n, in an order shuffled anew each epoch. Row r of
step t is image t * batch_size + r; in pre-training it is in mask group r // (batch_size // groups). There is no
other random state: a run resumes at any step at no cost, on any number of processes.

Of several processes each reads its own rows of every batch: those of the mask groups, or of the images with labels,
that `own` names. None is all of them.
"""

import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging
from grain.experimental import DatasetOptions, WithOptionsIterDataset, index_shuffle
from jaxtyping import Bool, Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView, RandomView
from greenjax.data.encoded import DecodeError, undecoded
from greenjax.data.labels import LabelledSource, check_classes
from greenjax.data.randaugment import labelled_view
from greenjax.data.sources import Source
from greenjax.data.workers import MIN_SHARED, start_worker, warn_of_small_shared_memory
from greenjax.errors import InputError
from greenjax.planning import Plan, Planner

TRIES = 100  # images in a row that cannot be decoded, before the run stops


class Batch(NamedTuple):
    """What the device needs for one update of pre-training, by mask group."""

    images: UInt8[np.ndarray, "m b h w c"]
    plan: Plan  # leaves [m, ...]
    redrawn: Int32[np.ndarray, " m"]  # masks that did not fit the layouts and were drawn again
    undecodable: Int32[np.ndarray, " m"]  # images that were replaced by the next one
    valid: Bool[np.ndarray, "m b"]  # False: padding in the last held-out batch


class LabelledBatch(NamedTuple):
    """Images with their labels: for one update of a classifier, or one step of its evaluation."""

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int32[np.ndarray, " b"]  # -1 where not valid
    undecodable: Int32[np.ndarray, " b"]  # 1: replaced by the next image in training, not valid in evaluation
    valid: Bool[np.ndarray, " b"]  # all True in training; False in evaluation: undecodable, or padding at the end


def blank_batch(config: ConfigDict, plan: Plan, redrawn: Int32[np.ndarray, " m"] | None = None) -> Batch:
    """A batch of pre-training under this plan of all mask groups, black: for its shapes. Its images take no memory."""
    groups, each = config.mask.groups, config.data.batch_size // config.mask.groups
    none = np.zeros(groups, np.int32)
    redrawn = none if redrawn is None else redrawn
    return Batch(_black(config, groups, each), plan, redrawn, none, np.ones((groups, each), bool))


def blank_labelled_batch(config: ConfigDict) -> LabelledBatch:
    """A batch for a classifier, black, all of class 0: for its shapes."""
    none, valid = np.zeros(config.data.batch_size, np.int32), np.ones(config.data.batch_size, bool)
    return LabelledBatch(_black(config, config.data.batch_size), none, none, valid)


def _black(config: ConfigDict, *count: int) -> UInt8[np.ndarray, "..."]:
    return np.broadcast_to(np.uint8(0), (*count, *config.image_size, config.model.in_channels))


def train_batches(
    config: ConfigDict, source: Source, planner: Planner, start_step: int = 0, own: range | None = None
) -> grain.DatasetIterator[Batch]:
    """Endless batches from `start_step` on; `close()` of the iterator, or its deletion, ends the workers.

    With workers a script that calls this needs the usual `if __name__ == "__main__"`: workers import it.
    """
    stream = Stream(source, shuffled(config, source), RandomView.from_config(config))
    own = own or range(config.mask.groups)
    rows = rows_of(config, own)
    draw = partial(planner.plans, config.seed, groups=config.mask.groups, own=own)
    batches = in_batches(config, stream, rows).map_with_index(WithPlans(draw, own, rows, config.data.batch_size))
    return read_ahead(config, batches[start_step:])


def labelled_batches(
    config: ConfigDict, source: LabelledSource, start_step: int = 0, own: range | None = None
) -> grain.DatasetIterator[LabelledBatch]:
    """Endless batches for a classifier, by the same rules. Raises InputError for labels the model has no output for."""
    check_classes(config, source)
    stream = LabelledStream(source, shuffled(config, source), labelled_view(config))
    rows = own or range(config.data.batch_size)
    batches = in_batches(config, stream, rows).map_with_index(WithLabels(rows, config.data.batch_size))
    return read_ahead(config, batches[start_step:])


def eval_batches(
    config: ConfigDict, source: Source, planner: Planner, own: range | None = None
) -> grain.DatasetIterator[Batch]:
    """The first data.eval_images held-out images, each once and in order, always with the same masks.

    The last batch is filled up with black images.
    """
    count = min(len(source), config.data.eval_images)
    stream = Stream(source, grain.MapDataset.range(count), CentreView.from_config(config), padded(config, count))
    own = own or range(config.mask.groups)
    rows = rows_of(config, own)
    draw = partial(planner.held_out_plans, groups=config.mask.groups, own=own)
    plans = WithPlans(draw, own, rows, config.data.batch_size, count)
    return iter(read_once(config, stream, rows).map_with_index(plans))


def labelled_eval_batches(
    config: ConfigDict, source: LabelledSource, own: range | None = None
) -> grain.DatasetIterator[LabelledBatch]:
    """All images, each once and in order; the last batch is filled up with black ones.

    An image that cannot be decoded is named in a warning, and neither valid nor replaced: nothing is counted
    twice, and one bad file does not end a long training. Raises InputError as `labelled_batches`.
    """
    check_classes(config, source)
    count, view = len(source), CentreView.from_config(config)
    stream = LabelledStream(source, grain.MapDataset.range(count), view, padded(config, count), "it is left out")
    rows = own or range(config.data.batch_size)
    labels = WithLabels(rows, config.data.batch_size, count, evaluation=True)
    return iter(read_once(config, stream, rows).map_with_index(labels))


def rows_of(config: ConfigDict, groups: range) -> range:
    """The rows of a batch that are in these mask groups."""
    each = config.data.batch_size // config.mask.groups
    return range(groups.start * each, groups.stop * each)


def shuffled(config: ConfigDict, source: Sized) -> "Shuffled":
    """Epoch after epoch, each in an order of its own."""
    return Shuffled(len(source), order_seed(config.seed))


@dataclass(frozen=True)
class Shuffled:
    """What MapDataset.range(count).shuffle(seed).repeat() of Grain gives, at half the cost of a look-up."""

    count: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self.count)
        return index_shuffle(place, max_index=self.count - 1, seed=(self.seed + epoch) % 2**32, rounds=4)


def order_seed(seed: int) -> int:
    """Grain shuffles epoch e by seed + e. Mixed, so that runs with seeds 0 and 1 do not share orders."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def padded(config: ConfigDict, count: int) -> int:
    """`count` rounded up to whole batches."""
    return -(-count // config.data.batch_size) * config.data.batch_size


def in_batches(config: ConfigDict, stream: "Stream", rows: range) -> grain.MapDataset:
    """These rows of every step, by step."""
    return grain.MapDataset.source(Rows(stream, rows, config.data.batch_size)).batch(len(rows), drop_remainder=True)


def read_ahead(config: ConfigDict, batches: grain.MapDataset) -> grain.DatasetIterator:
    """Batches one after the other, made by worker processes."""
    if config.data.workers == 0:  # one thread, one batch ahead
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))
    warn_of_small_shared_memory(config)
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, also in a script that has none
        flags.FLAGS.mark_as_parsed()
    # Workers take whole batches in turn. Threads inside them would only multiply the memory.
    reader = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    reader = WithOptionsIterDataset(reader, DatasetOptions(min_shm_size=MIN_SHARED))
    ahead = iter(reader.mp_prefetch(grain.MultiprocessingOptions(config.data.workers), worker_init_fn=start_worker))
    # Workers take seconds to start: meanwhile others compile. Grain starts those only that a state was given for.
    ahead.set_state(ahead.get_state())
    ahead.start_prefetch()
    return ahead


def read_once(config: ConfigDict, stream: "Stream", rows: range) -> grain.IterDataset:
    """These rows of every step of one pass, by step.

    Images are decoded in as many threads as training has workers: a pass is too short to be worth the start of
    processes.
    """
    threads = max(1, config.data.workers)
    images = grain.MapDataset.source(Rows(stream, rows, config.data.batch_size))
    return images.to_iter_dataset(grain.ReadOptions(threads, 4 * threads)).batch(len(rows), drop_remainder=True)


@dataclass(frozen=True)
class Rows:
    """Some rows of every batch of a stream, one after the other."""

    stream: "Stream"
    rows: range
    batch_size: int

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        step, row = divmod(index, len(self.rows))
        return self.stream[step * self.batch_size + self.rows[row]]


class Stream:
    """The global stream: (image i in its view, whether it had to be replaced).

    An image that cannot be decoded is replaced by the next one of the same order that can, which leaves the
    places of all others alone.
    """

    def __init__(
        self,
        source: Any,
        order: Any,
        view: RandomView | CentreView,
        length: int | None = None,
        remedy: str = "the next image takes its place",
    ):
        """`order`, a sequence of int, says which of the source is image i; from there to `length` images are black."""
        self.source, self.order, self.view, self.remedy = source, order, view, remedy
        self.length = length or len(order)
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index >= len(self.order):
            return *self._padding(), False
        for offset in range(TRIES):
            try:
                item = undecoded(self.source, int(self.order[index + offset]))
                return *self._viewed(item, index), offset > 0
            except DecodeError as error:
                self._warn(str(error))
        raise InputError(f"{TRIES} images in a row could not be decoded: warnings above name them")

    def _viewed(self, item: Any, index: int) -> tuple[Any, ...]:
        """What the source gave, as it goes into the batch."""
        return (self.view(item, index),)

    def _padding(self) -> tuple[Any, ...]:
        return (np.zeros((*self.view.size, self.view.channels), np.uint8),)

    def _warn(self, message: str) -> None:
        if message not in self._warned:  # once an epoch would be too often
            self._warned.add(message)
            logging.warning("%s; %s", message, self.remedy)


class LabelledStream(Stream):
    """The global stream of a labelled source: (image i in its view, its label, whether both had to be replaced)."""

    def _viewed(self, item: Any, index: int) -> tuple[Any, ...]:
        image, label = item
        return self.view(image, index), np.int32(label)

    def _padding(self) -> tuple[Any, ...]:
        return *super()._padding(), np.int32(-1)


@dataclass(frozen=True)
class WithPlans:
    """Splits the rows of step t into mask groups and adds the plans that `draw` gives for t."""

    draw: Callable[[int], tuple[Plan, Int32[np.ndarray, " m"]]]
    groups: range
    rows: range
    batch_size: int
    count: int = sys.maxsize  # images of the stream from here on are padding

    def __call__(self, step: int, rows: tuple[UInt8[np.ndarray, "rows h w c"], Bool[np.ndarray, " rows"]]) -> Batch:
        plan, redrawn = self.draw(step)
        images, replaced = rows
        groups = len(self.groups)
        images = images.reshape(groups, -1, *images.shape[1:])
        valid = before(self.count, step * self.batch_size, self.rows)
        undecodable = replaced.reshape(groups, -1).sum(axis=1, dtype=np.int32)
        return Batch(images, plan, redrawn, undecodable, valid.reshape(groups, -1))


@dataclass(frozen=True)
class WithLabels:
    """Makes a batch of the rows of step t."""

    rows: range
    batch_size: int
    count: int = sys.maxsize  # images of the stream from here on are padding
    evaluation: bool = False  # replaced images do not count

    def __call__(self, step: int, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> LabelledBatch:
        images, labels, replaced = rows
        valid = before(self.count, step * self.batch_size, self.rows)
        if self.evaluation:
            valid &= ~replaced
        return LabelledBatch(images, np.where(valid, labels, np.int32(-1)), replaced.astype(np.int32), valid)


def before(count: int, first: int, rows: range) -> Bool[np.ndarray, " rows"]:
    """Which rows of a batch that begins with image `first` are among the first `count` images of the stream."""
    return first + np.array(rows) < count
