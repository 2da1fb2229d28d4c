"""In which order images come: batches are a pure function of (seed, step), whatever the number of workers.

Image i of the global stream is image i % n of epoch i // n, in an order shuffled anew each epoch. Row r of
step t is image t * batch_size + r, in mask group r // (batch_size // groups). There is no other random state:
a run resumes at any step at no cost, on any number of processes.
"""

import math
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
from absl import flags, logging
from grain.experimental import DatasetOptions, WithOptionsIterDataset
from jaxtyping import Bool, Int32, UInt8
from ml_collections import ConfigDict

from greenjax.data.augment import CentreView, RandomView
from greenjax.data.sources import DecodeError, Source
from greenjax.errors import InputError
from greenjax.planning import Plan, Planner

TRIES = 100  # images in a row that cannot be decoded, before the run stops
MIN_SHARED = 1 << 22  # bytes; smaller arrays are copied between processes instead of shared
BATCHES_PER_WORKER = 3.5  # that exist at one time, seen with Grain 0.2.18


class Batch(NamedTuple):
    """What the device needs for one update, by mask group."""

    images: UInt8[np.ndarray, "m b h w c"]
    plan: Plan  # leaves [m, ...]
    redrawn: Int32[np.ndarray, " m"]  # masks that did not fit the layouts and were drawn again
    undecodable: Int32[np.ndarray, " m"]  # images that were replaced by the next one
    valid: Bool[np.ndarray, "m b"]  # False: padding in the last held-out batch


def train_batches(
    config: ConfigDict, source: Source, planner: Planner, start_step: int = 0
) -> grain.DatasetIterator[Batch]:
    """Endless batches from `start_step` on; `close()` of the iterator, or its deletion, ends the workers.

    With workers a script that calls this needs the usual `if __name__ == "__main__"`: workers import it.
    """
    data = config.data
    order = grain.MapDataset.range(len(source)).shuffle(seed=order_seed(config.seed)).repeat()
    stream = Stream(source, order, RandomView.from_config(config), len(order))
    batches = grain.MapDataset.source(stream).batch(data.batch_size, drop_remainder=True)
    draw = partial(planner.plans, config.seed, groups=config.mask.groups)
    batches = batches.map_with_index(WithPlans(draw, config.mask.groups))[start_step:]
    if data.workers == 0:  # one thread, one batch ahead
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))
    warn_of_small_shared_memory(config)
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, also in a script that has none
        flags.FLAGS.mark_as_parsed()
    # Workers take whole batches in turn. Threads inside them would only multiply the memory.
    reader = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    reader = WithOptionsIterDataset(reader, DatasetOptions(min_shm_size=MIN_SHARED))
    return iter(reader.mp_prefetch(grain.MultiprocessingOptions(data.workers), worker_init_fn=start_worker))


def eval_batches(config: ConfigDict, source: Source, planner: Planner) -> grain.DatasetIterator[Batch]:
    """The first data.eval_images held-out images, each once and in order, always with the same masks.

    The last batch is filled up with black images. Images are decoded in as many threads as training has
    workers: a pass is too short to be worth the start of processes.
    """
    data = config.data
    count = min(len(source), data.eval_images)
    padded = -(-count // data.batch_size) * data.batch_size
    stream = Stream(source, grain.MapDataset.range(count), CentreView.from_config(config), padded)
    threads = max(1, data.workers)
    images = grain.MapDataset.source(stream).to_iter_dataset(grain.ReadOptions(threads, 4 * threads))
    batches = images.batch(data.batch_size, drop_remainder=True)
    draw = partial(planner.held_out_plans, groups=config.mask.groups)
    return iter(batches.map_with_index(WithPlans(draw, config.mask.groups, count)))


def order_seed(seed: int) -> int:
    """Grain shuffles epoch e by seed + e. Mixed, so that runs with seeds 0 and 1 do not share orders."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


class Stream:
    """The global stream: image i in its view, and whether it had to be replaced.

    An image that cannot be decoded is replaced by the next one of the same order that can, which leaves the
    places of all others alone.
    """

    def __init__(self, source: Source, order: Any, view: RandomView | CentreView, length: int):
        """`order`, a sequence of int, says which of the source is image i; behind it, images are black."""
        self.source, self.order, self.view, self.length = source, order, view, length
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], bool]:
        if index >= len(self.order):
            return np.zeros((*self.view.size, self.view.channels), np.uint8), False
        for offset in range(TRIES):
            try:
                image = self.source[int(self.order[index + offset])]
            except DecodeError as error:
                self._warn(str(error))
                continue
            return self.view(image, index), offset > 0
        raise InputError(f"{TRIES} images in a row could not be decoded: warnings above name them")

    def _warn(self, message: str) -> None:
        if message not in self._warned:  # once an epoch would be too often
            self._warned.add(message)
            logging.warning("%s; the next image takes its place", message)


@dataclass(frozen=True)
class WithPlans:
    """Splits the rows of step t into mask groups and adds the plans that `draw` gives for t."""

    draw: Callable[[int], tuple[Plan, Int32[np.ndarray, " m"]]]
    groups: int
    count: int = sys.maxsize  # images of the stream from here on are padding

    def __call__(self, step: int, rows: tuple[UInt8[np.ndarray, "rows h w c"], Bool[np.ndarray, " rows"]]) -> Batch:
        plan, redrawn = self.draw(step)
        images, replaced = rows
        images = images.reshape(self.groups, -1, *images.shape[1:])
        valid = step * len(replaced) + np.arange(len(replaced)) < self.count
        undecodable = replaced.reshape(self.groups, -1).sum(axis=1, dtype=np.int32)
        return Batch(images, plan, redrawn, undecodable, valid.reshape(self.groups, -1))


def warn_of_small_shared_memory(config: ConfigDict) -> None:
    """Batches travel through /dev/shm. Where that is too small, as in many containers, workers just die."""
    data = config.data
    batch = math.prod((data.batch_size, *config.image_size, config.model.in_channels))  # bytes
    needed = BATCHES_PER_WORKER * data.workers * batch
    if batch < MIN_SHARED or not os.path.isdir("/dev/shm"):
        return
    free = shutil.disk_usage("/dev/shm").free
    if free < needed:
        found = f"/dev/shm has {free / 1e9:.1f} GB free, {data.workers} workers need up to {needed / 1e9:.1f} GB"
        remedy = "lower data.workers or data.batch_size, or give a container more (docker run --shm-size)"
        logging.warning("%s: %s", found, remedy)


def start_worker(index: int, count: int) -> None:
    """Runs first in each worker process."""
    cv2.setNumThreads(0)  # the workers are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker whose parent was killed would wait for it for ever, holding its batches."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
