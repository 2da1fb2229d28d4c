"""The images of all batches in order, each in its view, with damaged ones replaced or left out."""

import traceback
from collections import Counter, deque
from itertools import count as count_from
from typing import TYPE_CHECKING, Any

import numpy as np

from greenjax.data.encoded import DecodeError, Encoded, undecoded
from greenjax.data.frames import has_more
from greenjax.data.reading import PICTURE
from greenjax.data.undecodable import Fault, Remark
from greenjax.errors import InputError, RunError

if TYPE_CHECKING:
    import grain  # imported where it is used: it imports JAX, which workers do without

FIRST = "has more than one frame or page: of all such images the first is taken"
LOOKED_AT = 100  # images: a run ends when more than half of the last ones that a stream met cannot be used


def shuffled(count: int, seed: int) -> "grain.MapDataset":
    """Epochs of `count` images without end, each in an order of its own."""
    import grain

    # Grain shuffles epoch e by seed + e: mixed, so that runs with seeds 0 and 1 do not share orders.
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(count).shuffle(seed=mixed).repeat()


class ImagesError(RuntimeError):
    """Most images raise an unforeseen error: a defect, not damaged images. The cause is the first one's error."""


class Stream:
    """The images of all batches in order: (image i in its view, its label if any, undecodable, valid).

    Any error of an image counts as damage of that image. In training the next usable image of the order takes its
    place; the places of all others stay. In a pass over images the damaged one is black and not valid. An InputError,
    which is about settings or labels, and a RunError, of a server that is gone, are raised at once.
    """

    def __init__(
        self,
        source: Any,
        order: Any,
        view: Any,
        labelled: bool = False,
        length: int | None = None,
        patient: bool = False,
    ):
        """Image i of the stream is image `order[i]` of `source`.

        `length` is that of a pass, with the black images at its end; without it the stream is endless. `patient`: goes
        on however many images cannot be used.
        """
        self.source, self.order, self.view, self.labelled, self.length = source, order, view, labelled, length
        self.patient = patient
        self.blank = self.nothing()
        # Errors of the last images, None of a fine one.
        self._last: deque[tuple[Exception, Fault] | None] = deque(maxlen=min(LOOKED_AT, len(order)))
        self._faults: deque[Fault | Remark] = deque()  # filled by several threads in evaluation
        reading = getattr(view, "reading", PICTURE)  # detection reads pictures alone
        self._looks_for_frames = reading.page == 0  # until it has found some

    def __len__(self) -> int:
        return self.length or len(self.order)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if index >= len(self.order):
            return *self.blank, False, False
        for place in (index,) if self.length else count_from(index):
            number = int(self.order[place])
            try:
                item = undecoded(self.source, number)
                found = self.seen(item, index)
            except (InputError, RunError):
                raise
            except Exception as error:  # the one place that catches any error: images are the user's
                self._blame(number, error)
            else:
                self._last.append(None)
                if self._looks_for_frames:
                    self._look_for_frames(item)
                return *found, place > index, True
        return *self.blank, True, False

    def seen(self, item: Any, index: int) -> tuple[Any, ...]:
        """The arrays of an item of the source."""
        image, *label = item if self.labelled else (item,)
        return self.view(image, index), *map(np.int32, label)

    def nothing(self) -> tuple[Any, ...]:
        """The arrays that stand where there is no item."""
        black = np.zeros((*self.view.size, self.view.channels), self.view.reading.dtype)
        return (black, np.int32(-1)) if self.labelled else (black,)

    def new_faults(self) -> list[Fault | Remark]:
        """The damaged images met since the last call, and what is to be said of others."""
        return [self._faults.popleft() for _ in range(len(self._faults))]

    def _look_for_frames(self, item: Any) -> None:
        """Remarks on an image with more than one frame, and looks no further."""
        image = item[0] if isinstance(item, tuple) else item
        if isinstance(image, Encoded) and has_more(image.data):
            self._looks_for_frames = False
            self._faults.append(Remark(image.name, FIRST))

    def _blame(self, number: int, error: Exception) -> None:
        """Records the error of an image. Raises where too many images have one."""
        fault = fault_of(self.source, number, error)
        self._faults.append(fault)
        traceback.clear_frames(error.__traceback__)  # frees pixels
        self._last.append((error, fault))
        raised = [each for each in self._last.copy() if each is not None]
        if self.patient or len(self._last) < (self._last.maxlen or 0) or 2 * len(raised) <= len(self._last):
            return
        ((kind, _),) = Counter(type(error) for error, _ in raised).most_common(1)
        first, fault = next(each for each in raised if type(each[0]) is kind)
        found = f"{len(raised)} of the last {len(self._last)} images cannot be used"
        found += f", the first of them: {': '.join(filter(None, fault))}"
        raise (InputError if isinstance(first, DecodeError) else ImagesError)(found) from first


def fault_of(source: Any, number: int, error: Exception) -> Fault:
    """The name of image `number` and its error. A source without `name_of` names its images in its errors."""
    name = source.name_of(number) if hasattr(source, "name_of") else ""
    if isinstance(error, DecodeError):
        return Fault(name, str(error).removeprefix(f"{name} ")) if name else Fault(str(error), "")
    return Fault(name or f"image {number}", f"{type(error).__name__}: {error}".strip(": "))
