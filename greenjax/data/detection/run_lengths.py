"""Masks as COCO's run lengths: {"size": [height, width], "counts": text}. pycocotools does the work."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from greenjax.data.encoded import Size

Runs = dict[str, Any]


def encoded(shape: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]) -> Runs:
    return _text(_coco().encode(np.asfortranarray(shape, np.uint8)))


def decoded(runs: Sequence[Runs], size: Size) -> UInt8[np.ndarray, "n h w"]:
    """Masks of one size: 1 inside, 0 outside."""
    return _coco().decode(list(runs)).transpose(2, 0, 1) if runs else np.zeros((0, *size), np.uint8)


def area(runs: Runs) -> int:
    """The number of pixels inside."""
    return int(_coco().area(runs))


def box(runs: Runs) -> list[float]:
    """(x, y, width, height) around the pixels inside."""
    return _coco().toBbox(runs).tolist()


def of_polygons(polygons: Sequence[Sequence[float | int]], size: Size) -> Runs:
    """The pixels inside any of the polygons, [x, y, x, y, ...] each."""
    runs = _coco().frPyObjects(polygons, *size)
    return _text(runs[0] if len(runs) == 1 else _coco().merge(runs))


def of_counts(counts: Sequence[int] | str, size: Size) -> Runs:
    """Of run lengths as numbers, or compressed. Raises ValueError where they do not cover a mask of this size."""
    lengths = expanded(counts) if isinstance(counts, str) else list(counts)
    if min(lengths) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError("run lengths do not cover the mask")
    return _text(_coco().frPyObjects({"size": list(size), "counts": lengths}, *size))


def expanded(counts: str) -> list[int]:
    """The numbers of a compressed text, which pycocotools reads without looking whether they are whole.

    A number has 5 bits a character, the lowest first, and a sign; from the fourth on it is the difference from the last
    but one.
    """
    lengths: list[int] = []
    value = shift = 0
    for byte in counts.encode():
        value |= (byte - 48 & 31) << shift
        shift += 5
        if byte - 48 & 32:
            continue
        value -= (byte - 48 & 16) << shift - 4
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


def _text(runs: Runs) -> Runs:
    return runs | {"counts": runs["counts"].decode()}


def _coco() -> Any:
    """pycocotools, which settings of sources do without; its types are narrower than what it takes."""
    from pycocotools import mask

    return mask
