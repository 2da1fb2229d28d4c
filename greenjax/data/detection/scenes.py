"""Scenes: real digits at random places and sizes over a background, with exact boxes and masks.

A scene is a pure function of a seed and an index, so that nothing is stored. Outside of the masks a picture is its
background, and inside it is brighter than any background.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from greenjax.data.augment import generator
from greenjax.data.detection.annotations import Objects

SIDES = (20, 56)  # pixels of a digit, before its empty margins are cut
TRIES = 20  # of a place for a digit
SEEN = 0.75  # the least share of a digit that later ones leave visible
INK = 64  # of 255: a brighter pixel of an enlarged digit belongs to it
DARK, BRIGHT = 96, 128  # no background is brighter, and no pixel of a digit darker
PEAKS = (160, 255)  # the brightest pixel of a digit: covered and covering ones can be told apart


def scene(
    digits: UInt8[np.ndarray, "n 8 8 1"], values: Int32[np.ndarray, " n"], side: int, most: int, seed: int, index: int
) -> tuple[UInt8[np.ndarray, "h w 1"], Objects]:
    """Scene `index`, `side` pixels a side: 1 to `most` of the digits, where later ones cover earlier ones.

    Label 1 + v is the digit v.
    """
    random = generator(seed, index)
    image, labels = background(side, random), []
    shapes: list[tuple[np.ndarray, int]] = []  # the visible pixels of each digit, and the number of all its pixels
    for _ in range(random.integers(1, most + 1)):
        chosen = random.integers(len(digits))
        ink, shape = enlarged(digits[chosen], random)
        placed = place(shape, shapes, side, random)
        if placed is None:
            continue
        top, left = placed
        view = image[top : top + len(shape), left : left + shape.shape[1]]
        view[shape] = ink[shape]
        whole = np.zeros((side, side), bool)
        whole[top : top + len(shape), left : left + shape.shape[1]] = shape
        shapes = [(before & ~whole, area) for before, area in shapes] + [(whole, int(shape.sum()))]
        labels.append(1 + values[chosen])
    masks = np.stack([visible for visible, _ in shapes])
    return image[:, :, None], Objects((side, side), boxes_of(masks), np.array(labels, np.int32), masks.view(np.uint8))


def background(side: int, random: np.random.Generator) -> UInt8[np.ndarray, "h w"]:
    """Clouds with grain."""
    clouds = cv2.resize(random.random((5, 5), np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    return (DARK * (0.75 * clouds + 0.25 * random.random((side, side), np.float32))).astype(np.uint8)


def enlarged(
    digit: UInt8[np.ndarray, "8 8 1"], random: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The brightness of a digit at a random size, and which pixels are its own; without empty margins."""
    side = int(random.integers(SIDES[0], SIDES[1] + 1))
    large = cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC)
    shape = large > INK
    rows, columns = (np.flatnonzero(shape.any(axis=axis)) for axis in (1, 0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = (random.uniform(*PEAKS) - BRIGHT) / 255
    return (BRIGHT + scale * large[inside]).astype(np.uint8), shape[inside]


def place(
    shape: Bool[np.ndarray, "h w"], shapes: list[tuple[np.ndarray, int]], side: int, random: np.random.Generator
) -> tuple[int, int] | None:
    """A random place (top, left) that leaves SEEN of every digit before visible; None where TRIES find none."""
    for top, left in random.integers(0, (side + 1 - len(shape), side + 1 - shape.shape[1]), (TRIES, 2)).tolist():
        inside = np.s_[top : top + len(shape), left : left + shape.shape[1]]
        if all((before.sum() - (before[inside] & shape).sum()) >= SEEN * area for before, area in shapes):
            return top, left
    return None


def boxes_of(masks: Bool[np.ndarray, "n h w"]) -> Float64[np.ndarray, "n 4"]:
    """(x0, y0, x1, y1) around the pixels of every mask."""
    boxes = []
    for mask in masks:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(boxes, np.float64)
