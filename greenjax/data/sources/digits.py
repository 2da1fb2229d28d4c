"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, which need no download."""

import numpy as np
from jaxtyping import Int32, UInt8

from greenjax.data.sources.arrays import ArraySource


class DigitsSource(ArraySource):
    """The first 1,500 digits ("train"), the others ("test"), or all of them ("all")."""

    training = 1500

    @staticmethod
    def whole() -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, " n"]]:
        from sklearn.datasets import load_digits  # only this source needs scikit-learn

        pixels, digits = load_digits(return_X_y=True)  # pixels are 0 to 16
        return np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), np.asarray(digits, np.int32)
