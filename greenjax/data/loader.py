"""In which order images come: batches are a pure function of (seed, step), whatever the number of workers.

Image i of the global stream is image i % n of epoch i // n, in an order shuffled anew each epoch. Row r of
step t is image t * batch_size + r; in pre-training it is in mask group r // (batch_size // groups). There is no
other random state: a run resumes at any step at no cost, on any number of processes.

Of several processes each reads its own rows of every batch: those of the mask groups, or of the images with labels,
that `own` names. None is all of them.
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
    import grain  # otherwise where it is used: it imports JAX, which workers do without

LOOKED_AT = 100  # the last images that a stream met: when more than half of them are bad, it is not their fault
REPLACED, LEFT_OUT = "the next image takes its place", "it is left out"

B = TypeVar("B")


class Batch(NamedTuple):
    """What the device needs for one update of pre-training, by mask group."""

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
    """A batch for a classifier, black, all of class 0: for its shapes."""
    none, valid = np.zeros(config.data.batch_size, np.int32), np.ones(config.data.batch_size, bool)
    return LabelledBatch(_black(config, config.data.batch_size), none, none, valid)


def _black(config: ConfigDict, *count: int) -> UInt8[np.ndarray, "..."]:
    return np.broadcast_to(np.uint8(0), (*count, *config.image_size, config.model.in_channels))


class Batches(Iterator[B], Generic[B]):
    """Batches one after the other; `close()`, or the deletion of this, ends whatever makes them."""

    def __init__(self, made: Any, undecodable: Undecodable | None, remedy: str):
        """`made` gives each batch with the faults that were met on the way."""
        self._made, self._remedy = made, remedy
        self._undecodable = Undecodable() if undecodable is None else undecodable

    def __next__(self) -> B:
        look_after_workers()  # those of the training, while this is an evaluation
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
    """Endless batches from `start_step` on; `close()` of the iterator, or its deletion, ends the workers.

    An image that cannot be used, whatever it raised, is replaced by the next one of the order and told to `undecodable`
    (None: a record of this iterator alone). Where that happens to more than half of the last LOOKED_AT images that a
    worker met, the fault is not theirs: InputError where they could not be read or decoded, ImagesError for all else.
    """
    stream = Stream(source, shuffled(config, source), RandomView.from_config(config))
    own = own or range(config.mask.groups)
    rows = rows_of(config, own)
    draw = partial(planner.plans, groups=config.mask.groups, own=own)
    make = Maker(Rows(stream, rows, config.data.batch_size), WithPlans(draw, own, rows, config.data.batch_size))
    return Batches(read_ahead(config, make, start_step), undecodable, REPLACED)


def labelled_batches(
    config: ConfigDict,
    source: LabelledSource,
    start_step: int = 0,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[LabelledBatch]:
    """Endless batches for a classifier, by the same rules. Raises InputError for labels the model has no output for."""
    check_classes(config, source)
    stream = LabelledStream(source, shuffled(config, source), labelled_view(config))
    rows = own or range(config.data.batch_size)
    make = Maker(Rows(stream, rows, config.data.batch_size), WithLabels(rows, config.data.batch_size))
    return Batches(read_ahead(config, make, start_step), undecodable, REPLACED)


def eval_batches(
    config: ConfigDict,
    source: Images,
    planner: Planner,
    own: range | None = None,
    undecodable: Undecodable | None = None,
) -> Batches[Batch]:
    """The first data.eval_images held-out images, each once and in order, always with the same masks.

    The last batch is filled up with black images. An image that cannot be used is told to `undecodable`, and is not
    valid; errors as in `train_batches`.
    """
    count = min(len(source), config.data.eval_images)
    view = CentreView.from_config(config)
    stream = Stream(source, range(count), view, padded(config, count), endless=False)
    own = own or range(config.mask.groups)
    rows = rows_of(config, own)
    draw = partial(planner.held_out_plans, groups=config.mask.groups, own=own)
    plans = WithPlans(draw, own, rows, config.data.batch_size, count)
    return Batches(read_once(config, Rows(stream, rows, config.data.batch_size), plans), undecodable, LEFT_OUT)


def labelled_eval_batches(
    config: ConfigDict, source: LabelledSource, own: range | None = None, undecodable: Undecodable | None = None
) -> Batches[LabelledBatch]:
    """All images, each once and in order; the last batch is filled up with black ones.

    An image that cannot be used is left out as in `eval_batches`: one bad file does not end a long training. Raises
    InputError as `labelled_batches`.
    """
    check_classes(config, source)
    count, view = len(source), CentreView.from_config(config)
    stream = LabelledStream(source, range(count), view, padded(config, count), endless=False)
    rows = own or range(config.data.batch_size)
    labels = WithLabels(rows, config.data.batch_size, count)
    return Batches(read_once(config, Rows(stream, rows, config.data.batch_size), labels), undecodable, LEFT_OUT)


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
        from grain.experimental import index_shuffle

        epoch, place = divmod(index, self.count)
        return index_shuffle(place, max_index=self.count - 1, seed=(self.seed + epoch) % 2**32, rounds=4)


def order_seed(seed: int) -> int:
    """Grain shuffles epoch e by seed + e. Mixed, so that runs with seeds 0 and 1 do not share orders."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def padded(config: ConfigDict, count: int) -> int:
    """`count` rounded up to whole batches."""
    return -(-count // config.data.batch_size) * config.data.batch_size


def read_ahead(config: ConfigDict, make: "Maker", first: int) -> Any:
    """The batches from `first` on, made ahead by worker processes, each with its faults."""
    if config.data.workers:
        return WorkerPool(make, first, config.data.workers)
    import grain

    steps = grain.MapDataset.range(first, sys.maxsize).map(make)  # one thread, one batch ahead
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))


def read_once(config: ConfigDict, rows: "Rows", finish: Callable[..., Any]) -> "grain.DatasetIterator":
    """The batches of one pass, each with its faults.

    Images are decoded in as many threads as training has workers: a pass is too short to be worth the start of
    processes.
    """
    import grain

    threads = max(1, config.data.workers)
    images = grain.MapDataset.source(rows).to_iter_dataset(grain.ReadOptions(threads, 4 * threads))
    batches = images.batch(len(rows.rows), drop_remainder=True).map_with_index(finish)
    return iter(batches.map(lambda batch: (batch, rows.stream.new_faults())))


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


@dataclass(frozen=True)
class Maker:
    """Makes the batch of a step, a pure function of it, and tells of the faults that were met on the way."""

    rows: Rows
    finish: Callable[..., Any]  # of the step and its rows, stacked

    def __call__(self, step: int) -> tuple[Any, list[Fault]]:
        each = len(self.rows.rows)
        rows = (self.rows[index] for index in range(step * each, (step + 1) * each))
        return self.finish(step, tuple(map(np.stack, zip(*rows)))), self.rows.stream.new_faults()


class ImagesError(RuntimeError):
    """So many images raise something unforeseen that it is not their fault. The cause is what the first one raised."""


class Stream:
    """The global stream: (image i in its view, whether it had to be replaced or left out).

    Whatever an image raises is its own fault first. In training, where a stream is endless, the next image of the same
    order that can be used takes its place, which leaves the places of all others alone. In a pass over images it is
    black. Only an InputError, which is about settings or labels, is raised at once.
    """

    def __init__(
        self,
        source: Any,
        order: Sequence[int] | Shuffled,
        view: RandomView | CentreView,
        length: int | None = None,
        endless: bool = True,
    ):
        """`order` says which of the source is image i; from its end to `length` images are black."""
        self.source, self.order, self.view, self.endless = source, order, view, endless
        self.length = length or len(order)
        self._last: deque[Exception | None] = deque(maxlen=min(LOOKED_AT, len(order)))  # what images raised, or nothing
        self._told: set[str] = set()
        self._new: deque[Fault] = deque()  # evaluation has threads

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index >= len(self.order):
            return *self._padding(), False
        for place in count_from(index) if self.endless else (index,):
            number = int(self.order[place])
            try:
                found = self._viewed(undecoded(self.source, number), index)
            except InputError:
                raise
            except Exception as error:  # the one place for it: images are what we cannot know beforehand
                self._blame(number, error)
            else:
                self._last.append(None)
                return *found, place > index
        return *self._padding(), True

    def new_faults(self) -> list[Fault]:
        """Those that were met since the last call, each image once."""
        faults = []
        while self._new:
            faults.append(self._new.popleft())
        return faults

    def _viewed(self, item: Any, index: int) -> tuple[Any, ...]:
        """What the source gave, as it goes into the batch."""
        return (self.view(item, index),)

    def _padding(self) -> tuple[Any, ...]:
        return (np.zeros((*self.view.size, self.view.channels), np.uint8),)

    def _blame(self, number: int, error: Exception) -> None:
        """Notes the fault of an image. Raises where too many have had one."""
        fault = fault_of(self.source, number, error)
        if fault.name not in self._told:
            self._told.add(fault.name)
            self._new.append(fault)
        traceback.clear_frames(error.__traceback__)  # pixels
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
    """What image `number` of a source raised. A source that cannot name its images names them in its errors."""
    name = source.name_of(number) if hasattr(source, "name_of") else ""
    if isinstance(error, DecodeError):
        return Fault(name, str(error).removeprefix(f"{name} ")) if name else Fault(str(error), "")
    return Fault(name or f"image {number}", f"{type(error).__name__}: {error}".strip(": "))


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
    count: int | None = None  # images of a pass, after which there is padding; None: training

    def __call__(self, step: int, rows: tuple[UInt8[np.ndarray, "rows h w c"], Bool[np.ndarray, " rows"]]) -> Batch:
        plan, redrawn = self.draw(step)
        images, replaced = rows
        groups = len(self.groups)
        images = images.reshape(groups, -1, *images.shape[1:])
        valid = valid_rows(self.count, step * self.batch_size, self.rows, replaced)
        undecodable = replaced.reshape(groups, -1).sum(axis=1, dtype=np.int32)
        return Batch(images, plan, redrawn, undecodable, valid.reshape(groups, -1))


@dataclass(frozen=True)
class WithLabels:
    """Makes a batch of the rows of step t."""

    rows: range
    batch_size: int
    count: int | None = None  # images of a pass, after which there is padding; None: training

    def __call__(self, step: int, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> LabelledBatch:
        images, labels, replaced = rows
        valid = valid_rows(self.count, step * self.batch_size, self.rows, replaced)
        return LabelledBatch(images, np.where(valid, labels, np.int32(-1)), replaced.astype(np.int32), valid)


def valid_rows(
    count: int | None, first: int, rows: range, replaced: Bool[np.ndarray, " rows"]
) -> Bool[np.ndarray, " rows"]:
    """Which rows of the batch that begins with image `first` have an image: all in training, where it is replaced."""
    return np.ones(len(rows), bool) if count is None else (first + np.array(rows) < count) & ~replaced
