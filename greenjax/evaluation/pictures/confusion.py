"""Pictures of a classifier's mistakes: the confusion matrix, and the images with the most confident mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8

from greenjax.errors import InputError
from greenjax.evaluation.classify import Predictions
from greenjax.evaluation.pictures.canvas import CHAR, Canvas, coloured, coloured_by, legible

MOST_CLASSES = 2000  # in one matrix: a pixel each

_EMPTY = (235, 235, 235)  # the row of a class without images
_NUMBERED, _NAMED = 26, 12  # least side in pixels of a cell with its number, of one with the name of its class
_GAP, _NAME = 8, 24  # pixels; characters of a name
_SIDE, _WIDEST = 112, 1500  # pixels: of a picture's longer side at least, of a sheet of pictures about
_KEY, _KEY_GAP = 160, 70  # pixels: length of a colour key, between the two


def draw_confusion(path: str | Path, counts: Integer[np.ndarray, "classes classes"], names: Sequence[str]) -> None:
    """Writes a PNG: true classes in rows, predicted ones in columns, colours by share of the row.

    Right answers are blue and mistakes red, so that a few mistakes do not drown in the diagonal. Up to about 25 classes
    each cell has its count; up to about 120 classes rows and columns have their names; beyond, class numbers run along
    the edges. Raises InputError for more than MOST_CLASSES classes and for another number of names.
    """
    classes = len(counts)
    if not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"classes are {classes}: expected 2 to {MOST_CLASSES}, to be drawn as a confusion matrix")
    if len(names) != classes:
        raise InputError(f"class names are {len(names)}: expected {classes}, one a class")
    cell = _cell(classes)
    labels = _labels(names, cell)
    longest = max(map(len, labels.values())) * CHAR
    left, top, side = longest + 2 * _GAP, (16 if longest <= cell else longest) + 34, classes * cell
    canvas = Canvas(left + max(side, 2 * _KEY + _KEY_GAP) + 2 * _GAP, top + side + 56)
    numbers = "; numbers: images" if cell >= _NUMBERED else ""
    canvas.text(_GAP, _GAP, f"rows: true class; columns: predicted class{numbers}")
    canvas.picture(_colours(counts), left, top, cell)
    size, rotation = (min(8, 0.62 * cell) if cell >= _NAMED else 8), 0 if longest <= cell else 90
    for index, label in labels.items():
        centre = (index + 0.5) * cell
        canvas.text(left - 4, top + centre, label, size, ha="right", va="center")
        canvas.text(left + centre, top - 4, label, size, ha="center", va="bottom", rotation=rotation)
    if cell >= _NUMBERED:
        _write_numbers(canvas, counts, left, top, cell)
    _draw_keys(canvas, left, top + side + 14)
    canvas.save(path)


def _cell(classes: int) -> int:
    """Pixels a side of a cell."""
    if classes <= 120:
        return min(56, max(_NAMED, 700 // classes))
    return max(min(_NAMED - 1, 1400 // classes), min(2, 2000 // classes))


def _labels(names: Sequence[str], cell: int) -> dict[int, str]:
    """Labels by class: all names where they fit, else every 10th, 20th, 50th or 100th number."""
    if cell >= _NAMED:
        return dict(enumerate(legible(names, _NAME)))
    every = next(step for step in (10, 20, 50, 100) if step * cell >= 40)
    return {index: str(index) for index in range(0, len(names), every)}


def _shares(counts: Integer[np.ndarray, "classes classes"]) -> Float[np.ndarray, "classes classes"]:
    """Counts as shares of their row; 0 in a row without images."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _colours(counts: Integer[np.ndarray, "classes classes"]) -> UInt8[np.ndarray, "classes classes 3"]:
    shares = _shares(counts)
    pixels = _wrong(shares)
    diagonal = np.arange(len(counts))
    pixels[diagonal, diagonal] = _right(shares[diagonal, diagonal])
    pixels[counts.sum(axis=1) == 0] = _EMPTY
    return pixels


def _right(share: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s 3"]:
    return coloured_by("Blues", share)


def _wrong(share: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s 3"]:
    """White at 0, else red by the square root of the share, so that one mistake in a hundred is seen."""
    reds = coloured_by("Reds", 0.15 + 0.85 * np.sqrt(share))
    return np.where(share[..., None] > 0, reds, np.uint8(255))


def _write_numbers(canvas: Canvas, counts: np.ndarray, left: int, top: int, cell: int) -> None:
    """Writes its number into every cell with images."""
    shares, size = _shares(counts), min(9, 0.8 * cell / len(str(counts.max())))
    for row, column in np.argwhere(counts):
        dark = shares[row, column] > (0.6 if row == column else 0.4)
        centre = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        style = dict(ha="center", va="center_baseline", color="white" if dark else "black")
        canvas.text(*centre, str(counts[row, column]), size, **style)


def _draw_keys(canvas: Canvas, left: int, top: int) -> None:
    """Draws the keys of the two colours."""
    ramp = np.linspace(0, 1, _KEY)[None].repeat(10, axis=0)
    for place, (name, colours) in enumerate((("right", _right), ("wrong", _wrong))):
        x = left + place * (_KEY + _KEY_GAP)
        canvas.picture(colours(ramp), x, top)
        for share in (0, 0.5, 1):
            canvas.text(x + share * _KEY, top + 14, f"{share:.0%}", 7, ha=("left", "center", "right")[int(2 * share)])
        canvas.text(x, top + 26, f"{name}, of the row", 7)


def most_confused(predictions: Predictions, most: int = 20) -> Predictions:
    """The mistakes with the highest confidence, most confident first; equal ones in the order of the images."""
    wrong = np.flatnonzero(predictions.predicted != predictions.label)
    found = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:most]
    return Predictions(*(values[found] for values in predictions))


def draw_examples(
    path: str | Path, images: UInt8[np.ndarray, "n h w c"], predictions: Predictions, names: Sequence[str]
) -> None:
    """Writes a PNG of images, each over its true class, its predicted class and the confidence.

    `predictions` belong to these images, as from `most_confused`, whose `image` says which images to read. Without
    images the picture says that there are no mistakes.
    """
    n, h, w, _ = images.shape
    scale = -(-_SIDE // max(h, w))
    captions = [_caption(row, names) for row in zip(predictions.label, predictions.predicted, predictions.confidence)]
    longest = max((len(line) for lines in captions for line in lines), default=0)
    cell_w, cell_h = max(w * scale, longest * CHAR) + _GAP, h * scale + 38
    across = max(1, min(n, 5, _WIDEST // cell_w))
    canvas = Canvas(max(across * cell_w, _NAME * CHAR) + _GAP, 28 + -(-n // across) * cell_h)
    canvas.text(_GAP, _GAP, "most confident mistakes" if n else "no mistakes")
    for index, (picture, (true, predicted)) in enumerate(zip(coloured(images), captions)):
        row, column = divmod(index, across)
        left, top = _GAP + column * cell_w, 28 + row * cell_h
        canvas.picture(picture, left, top, scale)
        canvas.text(left, top + h * scale + 2, true)
        canvas.text(left, top + h * scale + 15, predicted, color="firebrick")
    canvas.save(path)


def _caption(row: tuple, names: Sequence[str]) -> tuple[str, str]:
    """Two lines under an image: its true class, and its predicted class with the confidence."""
    label, predicted, confidence = int(row[0]), int(row[1]), float(row[2])
    true, wrong = legible([names[label], names[predicted]], _NAME)
    return f"is {true}", f"taken for {wrong} ({confidence:.2f})"
