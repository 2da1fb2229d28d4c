"""The order of images: a batch is a pure function of (seed, step), whatever the number of workers.

Image i of the global stream is image i % n of epoch i // n, in an order shuffled anew each epoch. Row r of step t is
image t * batch_size + r; in pre-training it is in mask group r // (batch_size // groups). There is no other random
state: a run resumes at any step at no cost, on any number of processes.

Each of several processes reads its own rows of every batch: the argument `own` names the mask groups, or the rows of
images with labels. None stands for all of them.
"""

import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import count as count_from
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView, RandomView
from greenjax.data.encoded import DecodeError, Images, undecoded
from greenjax.data.labels import LabelledSource, check_classes
from greenjax.data.randaugment import labelled_view
from greenjax.data.undecodable import Fault, Undecodable
from greenjax.data.workers import WorkerPool, look_after_workers
from greenjax.errors import InputError
from greenjax.planning import Plan, Planner

if TYPE_CHECKING:
    import grain  # imported where it is used: it imports JAX, which workers do without

LOOKED_AT = 100  # images: a run ends when more than half of the last ones that a stream met cannot be used
REPLACED, LEFT_OUT = "the next image takes its place", "it is left out"

B = TypeVar("B")


class Batch(NamedTuple):
    """The input of one update of pre-training, by mask group."""

    images: UInt8[np.ndarray, "m b h w c"]
    plan: Plan  # leaves [m, ...]
    redrawn: Int32[np.ndarray, " m"]  # masks that did not fit the layouts and were drawn again
    undecodable: Int32[np.ndarray, " m"]  # images that were replaced by the next one, or left out of an evaluation
    valid: Bool[np.ndarray, "m b"]  # all True in training; False in evaluation: undecodable, or padding at the end


class LabelledBatch(NamedTuple):
    """Images with their labels: for one update of a classifier, or one step of its evaluation."""

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int32[np.ndarray, " b"]  # -1 where not valid
    undecodable: Int32[np.ndarray, " b"]  # 1: replaced by the next image in training, not valid in evaluation
    valid: Bool[np.ndarray, " b"]  # all True in training; False in evaluation: undecodable, or padding at the end


def blank_batch(config: ConfigDict, plan: Plan) -> Batch:
    """A black batch of pre-training for its shapes; `plan` is that of all mask groups. Its images take no memory."""
    groups, each = config.mask.groups, config.data.batch_size // config.mask.groups
    none = np.zeros(groups, np.int32)
    return Batch(_black(config, groups, each), plan, none, none, np.ones((groups, each), bool))


def blank_labelled_batch(config: ConfigDict) -> LabelledBatch:
    """A black batch for a classifier, all of class 0, for its shapes."""
    none, valid = np.zeros(config.data.batch_size, np.int32), np.ones(config.data.batch_size, bool)
    return LabelledBatch(_black(config, config.data.batch_size), none, none, valid)


def _black(config: ConfigDict, *count: int) -> UInt8[np.ndarray, "..."]:
    return np.broadcast_to(np.uint8(0), (*count, *config.image_size, config.model.in_channels))


class Batches(Iterator[B], Generic[B]):
    """Batches one after the other; `close()`, or deletion, ends the threads or processes that make them."""

    def __init__(self, made: Any, undecodable: Undecodable | None, remedy: str):
        """`made` gives each batch with the images that could not be used for it: they go to `undecodable`."""
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
    own = own or range(config.mask.groups)
    stream = Stream(source, shuffled(config, source), RandomView.from_config(config))
    rows = Rows(stream, rows_of(config, own), config.data.batch_size)
    finish = partial(with_plans, partial(planner.plans, groups=config.mask.groups, own=own), len(own))
    return Batches(read_ahead(config, Maker(rows, finish), start_step), undecodable, REPLACED)


def labelled_batches(
    config: ConfigDict,
    source: LabelledSource,
    start_step: int = 0,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[LabelledBatch]:
    """Endless batches for a classifier, as `train_batches`. Raises InputError for labels without an output."""
    check_classes(config, source)
    stream = Stream(source, shuffled(config, source), labelled_view(config), labelled=True)
    rows = Rows(stream, own or range(config.data.batch_size), config.data.batch_size)
    return Batches(read_ahead(config, Maker(rows, with_labels), start_step), undecodable, REPLACED)


def eval_batches(
    config: ConfigDict,
    source: Images,
    planner: Planner,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[Batch]:
    """The first data.eval_images held-out images, each once and in order, always with the same masks.

    The last batch is filled up with black images. An image that cannot be used is added to `undecodable`, and is not
    valid; errors as in `train_batches`.
    """
    own = own or range(config.mask.groups)
    count = min(len(source), config.data.eval_images)
    stream = Stream(source, range(count), CentreView.from_config(config), length=whole_batches(config, count))
    rows = Rows(stream, rows_of(config, own), config.data.batch_size)
    finish = partial(with_plans, partial(planner.held_out_plans, groups=config.mask.groups, own=own), len(own))
    return Batches(read_once(config, rows, finish), undecodable, LEFT_OUT)


def labelled_eval_batches(
    config: ConfigDict, source: LabelledSource, own: range | None = None, undecodable: Undecodable | None = None
) -> Batches[LabelledBatch]:
    """All images, each once and in order; the last batch is filled up with black images.

    An image that cannot be used is left out as in `eval_batches`. Raises InputError as `labelled_batches`.
    """
    check_classes(config, source)
    count, view = len(source), CentreView.from_config(config)
    stream = Stream(source, range(count), view, labelled=True, length=whole_batches(config, count))
    rows = Rows(stream, own or range(config.data.batch_size), config.data.batch_size)
    return Batches(read_once(config, rows, with_labels), undecodable, LEFT_OUT)


def rows_of(config: ConfigDict, groups: range) -> range:
    """The rows of a batch that are in these mask groups."""
    each = config.data.batch_size // config.mask.groups
    return range(groups.start * each, groups.stop * each)


def whole_batches(config: ConfigDict, count: int) -> int:
    """`count` images rounded up to whole batches."""
    return -(-count // config.data.batch_size) * config.data.batch_size


# Order


def shuffled(config: ConfigDict, source: Sized) -> "Shuffled":
    """Epoch after epoch, each in an order of its own."""
    return Shuffled(len(source), order_seed(config.seed))


@dataclass(frozen=True)
class Shuffled:
    """The order of Grain's MapDataset.range(count).shuffle(seed).repeat(), at half the cost of a look-up."""

    count: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        from grain.experimental import index_shuffle

        epoch, place = divmod(index, self.count)
        return index_shuffle(place, max_index=self.count - 1, seed=(self.seed + epoch) % 2**32, rounds=4)


def order_seed(seed: int) -> int:
    """Grain shuffles epoch e by seed + e. Mixed, so that runs with seeds 0 and 1 do not share orders."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


# Images


class ImagesError(RuntimeError):
    """Most images raise an unforeseen error: a defect, not damaged images. The cause is the first one's error."""


class Stream:
    """The images of all batches in order: (image i in its view, its label if any, undecodable, valid).

    An error of an image, whatever it is, counts as damage of that image. In training the next image of the order that
    can be used takes its place, which leaves the places of all others alone. In a pass over images it is black and not
    valid. Only an InputError, which is about settings or labels, is raised at once.
    """

    def __init__(
        self,
        source: Any,
        order: Sequence[int] | Shuffled,
        view: RandomView | CentreView,
        labelled: bool = False,
        length: int | None = None,
    ):
        """`order` says which image of `source` is image i. `length`: of a pass, black images at its end included.

        Without `length` the stream is endless.
        """
        self.source, self.order, self.view, self.length = source, order, view, length
        black = np.zeros((*view.size, view.channels), np.uint8)
        self.labelled, self.blank = labelled, (black, np.int32(-1)) if labelled else (black,)
        self._last: deque[Exception | None] = deque(maxlen=min(LOOKED_AT, len(order)))  # errors of images, None if fine
        self._named: set[str] = set()
        self._new: deque[Fault] = deque()  # filled by several threads in evaluation

    def __len__(self) -> int:
        return self.length or len(self.order)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index >= len(self.order):
            return *self.blank, False, False
        for place in (index,) if self.length else count_from(index):
            number = int(self.order[place])
            try:
                found = self._viewed(undecoded(self.source, number), index)
            except InputError:
                raise
            except Exception as error:  # the one place that catches any error: images are the user's
                self._blame(number, error)
            else:
                self._last.append(None)
                return *found, place > index, True
        return *self.blank, True, False

    def new_faults(self) -> list[Fault]:
        """The damaged images met since the last call, each named once."""
        faults = []
        while self._new:
            faults.append(self._new.popleft())
        return faults

    def _viewed(self, item: Any, index: int) -> tuple[Any, ...]:
        if not self.labelled:
            return (self.view(item, index),)
        image, label = item
        return self.view(image, index), np.int32(label)

    def _blame(self, number: int, error: Exception) -> None:
        """Records the error of an image. Raises where too many images have one."""
        fault = fault_of(self.source, number, error)
        if fault.name not in self._named:
            self._named.add(fault.name)
            self._new.append(fault)
        traceback.clear_frames(error.__traceback__)  # frees pixels
        self._last.append(error)
        raised = [each for each in self._last.copy() if each is not None]
        if len(self._last) < (self._last.maxlen or 0) or 2 * len(raised) <= len(self._last):
            return
        ((kind, _),) = Counter(map(type, raised)).most_common(1)
        first = next(each for each in raised if type(each) is kind)
        found = f"{len(raised)} of the last {len(self._last)} images cannot be used"
        if isinstance(first, DecodeError):
            raise InputError(f"{found}, the first of them: {first}") from first
        raise ImagesError(found) from first


def fault_of(source: Any, number: int, error: Exception) -> Fault:
    """The name of image `number` and its error. A source without `name_of` names its images in its errors."""
    name = source.name_of(number) if hasattr(source, "name_of") else ""
    if isinstance(error, DecodeError):
        return Fault(name, str(error).removeprefix(f"{name} ")) if name else Fault(str(error), "")
    return Fault(name or f"image {number}", f"{type(error).__name__}: {error}".strip(": "))


# Batches


@dataclass(frozen=True)
class Rows:
    """Some rows of every batch of a stream, one after the other."""

    stream: Stream
    rows: range
    batch_size: int

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        step, row = divmod(index, len(self.rows))
        return self.stream[step * self.batch_size + self.rows[row]]


@dataclass(frozen=True)
class Maker:
    """Makes the batch of a step, a pure function of it; returns it with the damaged images that it met."""

    rows: Rows
    finish: Callable[..., Any]  # of the step and its stacked rows

    def __call__(self, step: int) -> tuple[Any, list[Fault]]:
        each = len(self.rows.rows)
        rows = (self.rows[index] for index in range(step * each, (step + 1) * each))
        return self.finish(step, tuple(map(np.stack, zip(*rows)))), self.rows.stream.new_faults()


def with_plans(
    draw: Callable[[int], tuple[Plan, Int32[np.ndarray, " m"]]],
    groups: int,
    step: int,
    rows: tuple[UInt8[np.ndarray, "rows h w c"], Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]],
) -> Batch:
    """Splits the rows of a step into mask groups and adds the plans that `draw` gives for the step."""
    plan, redrawn = draw(step)
    images, undecodable, valid = (column.reshape(groups, -1, *column.shape[1:]) for column in rows)
    return Batch(images, plan, redrawn, undecodable.sum(axis=1, dtype=np.int32), valid)


def with_labels(step: int, rows: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> LabelledBatch:
    """The rows of a step as a batch for a classifier."""
    images, labels, undecodable, valid = rows
    return LabelledBatch(images, labels, undecodable.astype(np.int32), valid)


def read_ahead(config: ConfigDict, make: Maker, first: int) -> Any:
    """Batches of training and their damaged images, starting at step `first`, made ahead by worker processes."""
    if config.data.workers:
        return WorkerPool(make, first, config.data.workers)
    import grain

    steps = grain.MapDataset.range(first, sys.maxsize).map(make)  # one thread, one batch ahead
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))


def read_once(config: ConfigDict, rows: Rows, finish: Callable[..., Any]) -> "grain.DatasetIterator":
    """The batches of one pass and their damaged images.

    As many threads as training has workers decode images: a pass is too short to start processes for it.
    """
    import grain

    threads = max(1, config.data.workers)
    images = grain.MapDataset.source(rows).to_iter_dataset(grain.ReadOptions(threads, 4 * threads))
    batches = images.batch(len(rows.rows), drop_remainder=True).map_with_index(finish)
    return iter(batches.map(lambda batch: (batch, rows.stream.new_faults())))
