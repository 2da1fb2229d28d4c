"""The pictures of a classifier's mistakes show the counts, names and images they were given."""

import numpy as np
import pytest
from PIL import Image

from greenjax.errors import InputError
from greenjax.evaluation.classify import Predictions
from greenjax.evaluation.pictures.canvas import Canvas
from greenjax.evaluation.pictures.confusion import draw_confusion, draw_examples, most_confused


def counts(classes, seed=0):
    """Mostly right; class 1 has no images."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 2, (classes, classes)) * rng.integers(0, 9, (classes, classes)) + 50 * np.eye(
        classes, dtype=int
    )
    matrix[1] = 0
    return matrix


def predictions(n=40, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    label, predicted = rng.integers(0, classes, (2, n))
    return Predictions(np.arange(n) + 100, label, predicted, rng.integers(1, 10, n) / 10)


def read(path):
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture
def written(monkeypatch):
    """The texts that were put on a canvas."""
    texts, write = [], Canvas.text
    monkeypatch.setattr(
        Canvas, "text", lambda self, *args, **style: texts.append(args[2]) or write(self, *args, **style)
    )
    return texts


@pytest.fixture
def pictures(monkeypatch):
    """Left, top, scale and pixels of what was put on a canvas."""
    places, put = [], Canvas.picture
    monkeypatch.setattr(Canvas, "picture", lambda self, *args: places.append(args) or put(self, *args))
    return places


@pytest.mark.parametrize("classes", [2, 10, 60, 200])
def test_every_cell_has_the_colour_of_its_share(tmp_path, pictures, classes):
    matrix = counts(classes)
    draw_confusion(tmp_path / "c.png", matrix, [*map(str, range(classes))])
    drawn, (pixels, left, top, cell) = read(tmp_path / "c.png"), pictures[0]
    # The corners of the cells are free of numbers.
    side = classes * cell
    corners = drawn[top : top + side : cell, left : left + side : cell].astype(int)
    np.testing.assert_array_equal(corners, pixels)
    right, wrong = np.eye(classes, dtype=bool), ~np.eye(classes, dtype=bool)
    right[1] = wrong[1] = False
    red, blue = corners[..., 0], corners[..., 2]
    assert (blue[right] > red[right]).all()
    assert (red[wrong & (matrix > 0)] > blue[wrong & (matrix > 0)]).all()
    assert (corners[wrong & (matrix == 0)] == 255).all()
    assert (corners[1] == corners[1, 0]).all() and corners[1, 0, 0] < 255


@pytest.mark.parametrize("classes", [2, 26, 100])
def test_all_names_are_written_where_they_fit(tmp_path, written, classes):
    names = [f"name {i}" for i in range(classes)]
    draw_confusion(tmp_path / "c.png", counts(classes), names)
    assert all(written.count(name) == 2 for name in names)


@pytest.mark.parametrize("classes", [121, 500, 1000, 2000])
def test_of_many_classes_some_are_numbered(tmp_path, written, classes):
    draw_confusion(tmp_path / "c.png", np.eye(classes, dtype=int), [f"name {i}" for i in range(classes)])
    numbers = [int(text) for text in written if text.isdigit()]
    assert len(numbers) % 2 == 0 and len(numbers) > 10
    assert not any("name" in text for text in written)
    assert read(tmp_path / "c.png").size < 3 * 2200**2


def test_cells_have_counts(tmp_path, written):
    names = ["cat", "dog"]
    draw_confusion(tmp_path / "c.png", np.array([[900, 100], [0, 7]]), names)
    assert {"900", "100", "7"} <= set(written) and "0" not in written


def test_no_name_breaks_the_picture(tmp_path, written):
    names = ["$x^{$", "狗", "a\nb", "a very long name of a class indeed"]
    draw_confusion(tmp_path / "c.png", counts(4), names)
    assert {"$x^{$", "?", "a b", "a very long name of a c…"} <= set(written)


def test_too_many_classes_and_missing_names_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^classes are 2001: expected 2 to 2000"):
        draw_confusion(tmp_path / "c.png", np.zeros((2001, 2001), int), [""] * 2001)
    with pytest.raises(InputError, match=r"^class names are 3: expected 4, one a class$"):
        draw_confusion(tmp_path / "c.png", counts(4), ["a", "b", "c"])


@pytest.mark.parametrize("most", [0, 5, 100])
def test_the_most_confused_are_wrong_and_most_confident(most):
    said = predictions()
    wrong = [i for i in range(40) if said.label[i] != said.predicted[i]]
    expected = sorted(wrong, key=lambda i: (-said.confidence[i], i))[:most]
    for found, values in zip(most_confused(said, most), said):
        np.testing.assert_array_equal(found, values[expected])


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("n", [1, 7])
def test_every_example_lies_in_the_file_with_its_classes(tmp_path, written, pictures, channels, kept, n):
    images = np.random.default_rng(0).integers(0, 256, (n, 9, 14, channels), np.uint8)
    said = Predictions(np.arange(n), np.arange(n) % 3, (np.arange(n) + 1) % 3, np.linspace(0.9, 0.5, n))
    draw_examples(tmp_path / "e.png", images, said, ["ant", "bee", "cow"])
    drawn = read(tmp_path / "e.png")
    assert len(pictures) == n
    for image, (_, left, top, scale) in zip(images, pictures):
        expected = np.broadcast_to(image[..., :kept], (9, 14, 3)).repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(drawn[top : top + 9 * scale, left : left + 14 * scale], expected)
    assert written[1:3] == ["is ant", "taken for bee (0.90)"]


def test_without_mistakes_the_picture_says_so(tmp_path, written):
    said = Predictions(*np.zeros((3, 0), int), np.zeros(0))
    draw_examples(tmp_path / "e.png", np.zeros((0, 8, 8, 1), np.uint8), said, [])
    assert written == ["no mistakes"]
    assert read(tmp_path / "e.png").size
