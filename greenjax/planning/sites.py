"""Sites of convolutions over visible tokens: which token each tap of a kernel reads.

A sparse convolution sums, for every output site, over the taps of its kernel, and each tap reads one input token or
none. `ConvIndex` names these tokens. Taps count the kernel's places by row, then column, as a kernel [kh, kw, in, out]
flattened over its first two axes does; tap (i, j) of the output site (y, x) reads the input site

    (y * stride - padding + i,  x * stride - padding + j).

**What reaches over a unit's border: one rule for all families.** Windows are cut to visible tokens. Kernels larger than
their strides are not: of the image, a masked pixel reads as zero, after colour normalisation; between tokens, a masked
one is not there: its term of a sum is zero, and a maximum or a mean is over the tokens that are there. Statistics over
positions, such as a response norm, are over the visible tokens of one image. Outputs exist at visible units only. With
every unit visible the dense network comes out exactly.

A submanifold convolution has stride 1, padding (k - 1) / 2 and its input sites as output sites. Strided convolutions
have as output sites the coarse tokens of visible units, not every site that a kernel reaches. Where kernel == stride
no index is needed: in unit-major order (tokens.py) a kernel reads a run of neighbours.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from greenjax.errors import InputError

Pair = int | tuple[int, int]  # for rows and columns


class Footprint(NamedTuple):
    """The sides, strides and padding of a kernel, for rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    submanifold: bool = False  # output sites are input sites

    @property
    def uses(self) -> int:
        """The largest number of taps that read one token."""
        (kh, kw), (sh, sw) = self.kernel, self.stride
        return -(-kh // sh) * -(-kw // sw)


def submanifold(kernel: Pair) -> Footprint:
    """The footprint of a submanifold convolution. Raises InputError for an even kernel, which has no centre."""
    kh, kw = pair(kernel)
    if kh % 2 == 0 or kw % 2 == 0:
        raise InputError(f"kernel of a submanifold convolution is {(kh, kw)}: expected odd sides")
    return Footprint((kh, kw), padding=(kh // 2, kw // 2), submanifold=True)


class ConvIndex(NamedTuple):
    """Which tokens a convolution reads and writes: int32 arrays of NumPy, or of JAX on the device.

    Their sizes depend on the configuration only. `taps` names n_in, and `uses` n_out, where there is no such token:
    outside the grid, or masked. `uses` may be None for submanifold convolutions, where it is `taps` mirrored; `inputs`
    and `outputs` may be None for the native backend.
    """

    taps: Any  # [*m, n_out, taps]: the input token that each tap of an output site reads
    uses: Any  # [*m, n_in, taps]: its inverse, the output site that reads this token by each tap
    inputs: Any  # [*m, n_in, 2]: row and column of every input token on its grid
    outputs: Any  # [*m, n_out, 2]


def submanifold_index(coordinates: Int[np.ndarray, "n 2"], shape: tuple[int, int], kernel: Pair) -> ConvIndex:
    """The index of a submanifold convolution over any set of tokens of a grid of `shape` (rows, columns)."""
    taps = _read(coordinates, coordinates, shape, submanifold(kernel))
    sites = coordinates.astype(np.int32)
    return ConvIndex(taps, np.ascontiguousarray(taps[:, ::-1]), sites, sites)


def strided_index(
    coordinates: Int[np.ndarray, "n 2"],
    outputs: Int[np.ndarray, "n_out 2"],
    kernel: Pair,
    stride: Pair,
    padding: Pair = 0,
) -> ConvIndex:
    """The index of a convolution from the tokens at `coordinates` to given output sites."""
    shape = tuple((coordinates.max(axis=0, initial=0) + 1).tolist())
    taps = _read(coordinates, outputs, shape, Footprint(pair(kernel), pair(stride), pair(padding)))
    uses = np.full((len(coordinates), taps.shape[1]), len(outputs), np.int32)
    site, tap = np.nonzero(taps < len(coordinates))
    uses[taps[site, tap], tap] = site
    return ConvIndex(taps, uses, coordinates.astype(np.int32), outputs.astype(np.int32))


def pair(value: Pair) -> tuple[int, int]:
    """One number for rows and columns, or two."""
    return (value, value) if isinstance(value, int) else value


def _read(
    coordinates: Int[np.ndarray, "n 2"],
    outputs: Int[np.ndarray, "n_out 2"],
    shape: tuple[int, ...],
    footprint: Footprint,
) -> Int32[np.ndarray, "n_out taps"]:
    """The token that each tap of each output site reads, or len(coordinates)."""
    n = len(coordinates)
    table = np.full((shape[0] + 1, shape[1] + 1), n, np.int32)  # a last row and column for what lies outside
    table[tuple(coordinates.T)] = np.arange(n, dtype=np.int32)
    reach = np.stack(np.meshgrid(*map(np.arange, footprint.kernel), indexing="ij"), axis=-1).reshape(-1, 2)
    site = outputs[:, None] * np.asarray(footprint.stride) + reach - footprint.padding
    inside = np.all((site >= 0) & (site < shape), axis=-1, keepdims=True)
    row, column = np.moveaxis(np.where(inside, site, shape), -1, 0)
    return table[row, column]
