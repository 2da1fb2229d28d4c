"""What worker processes need: shared memory, signals, memory that is kept, an end with their parent."""

import ctypes
import math
import multiprocessing
import os
import shutil
import signal
import threading

import cv2
from absl import logging
from ml_collections import ConfigDict

MIN_SHARED = 1 << 22  # bytes; smaller arrays are copied between processes instead of shared
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
BATCHES_PER_WORKER = 3.5  # that exist at one time, seen with Grain 0.2.18


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
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the run decides when to stop; a terminal tells all its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()


def keep_freed_memory() -> None:
    """Has the C library keep what was freed, up to 64 MB, for the next image.

    glibc hands an image's memory back to the system at once, and the system clears it anew, page by page: that takes
    a quarter of the time of decoding. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 64 << 20)


def _end_with_parent() -> None:
    """Without this a worker whose parent was killed would wait for it for ever, holding its batches."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
