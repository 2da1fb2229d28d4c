"""Mean and standard deviation of the pixels of a training split, one a channel, as `data.mean` and `data.std`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float64
from ml_collections import ConfigDict

from greenjax.data.augment import check_measured, reading_of, to_channels
from greenjax.data.encoded import DecodeError, Image, undecoded, whole
from greenjax.data.open import open_source
from greenjax.data.reading import Reading, is_there, scale_of
from greenjax.data.stream import fault_of
from greenjax.errors import InputError

ROUNDING = 1e-10  # of the square of a mean: far above what sums of one value differ by, 2e-13
Sums = Float64[np.ndarray, "3 c"]  # number, sum and sum of squares of the values of each channel


def measure(config: ConfigDict, most: int, workers: int) -> dict[str, Any]:
    """The content of a file for `data.statistics`, from `most` images of data.split at most, evenly spaced.

    Values without data do not count, and images that cannot be used are named in a warning. Raises InputError where a
    channel has fewer than two different values.
    """
    source, channels = open_source(config.data, config.data.split), config.model.in_channels
    reading, scale = reading_of(config), scale_of(config.data)
    rows = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int)).tolist()

    def sums(row: int) -> Sums | None:
        try:
            return sums_of(undecoded(source, row), reading, channels, scale)
        except DecodeError as error:
            logging.warning("%s: %s; it is left out", *fault_of(source, row, error))
            return None

    with ThreadPoolExecutor(workers) as pool:
        found = [each for each in pool.map(sums, rows) if each is not None]
    count, total, squares = sum(found, np.zeros((3, channels)))
    mean = total / np.maximum(count, 1)
    variance = squares / np.maximum(count, 1) - mean**2
    differ = variance > ROUNDING * mean**2
    if not differ.all():
        channel = int(differ.argmin())
        found_there = f"channel {channel} of {len(found)} images has one value at most, or hardly differs"
        raise InputError(f"{found_there}: expected two, to be scaled")
    data, measured = config.data, {"mean": mean, "std": np.sqrt(variance)}
    settings = dict(dtype=data.dtype, scale=data.scale, channels=list(data.channels), no_data=data.no_data)
    numbers = {name: [float(f"{value:.6g}") for value in each] for name, each in measured.items()}
    return numbers | settings | dict(images=len(found), split=data.split)


def sums_of(image: Image, reading: Reading, channels: int, scale: float) -> Sums:
    """The sums of one image. Raises DecodeError for one that a run would leave out."""
    pixels = to_channels(whole(image, reading), channels)
    check_measured(pixels, reading.no_data)
    there = is_there(pixels, reading.no_data)
    values = np.where(there, pixels / np.float64(scale), 0)
    # Sums of sums: one after the other, the values of a large image lose digits.
    return np.stack([part.sum(axis=0, dtype=np.float64).sum(axis=0) for part in (there, values, values**2)])


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The statistics as a person reads them."""
    for key in ("mean", "std"):
        yield f"data.{key} = {tuple(found[key])}"
