"""Every odd file gives its pixels or its one line: nothing else is raised, nothing is read as something else."""

import collections
from pathlib import Path

import cv2
import numpy as np
import pytest
from odd_files import LEFT_OUT, odd_files, outcome, table
from tiny_data import settings

from greenjax.data.augment import CentreView, RandomView
from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.open import open_source

VIEWS = (RandomView(0, (16, 16), 3, (0.08, 1.0), (3 / 4, 4 / 3), True), CentreView((16, 16), 3, 0.875))


def files(kind):
    return [odd for odd in odd_files() if outcome(odd) == kind]


def as_image(pixels):
    return np.uint8(pixels if np.ndim(pixels) == 3 else np.asarray(pixels)[..., None])


def distance(ours, expected):
    """The largest difference; grey may be given as RGB or RGB of three equal channels as grey."""
    assert ours.dtype == np.uint8 and ours.ndim == 3 and ours.shape[:2] == expected.shape[:2]
    return np.abs(ours.astype(int) - expected).max()


def test_there_are_many_kinds():
    assert len(odd_files()) >= 200 and len({odd.kind for odd in odd_files()}) >= 40
    assert len({odd.name for odd in odd_files()}) == len(odd_files())


def test_the_table_in_the_docs_is_this_one():
    assert table() in (Path(__file__).parents[1] / "docs" / "faults.md").read_text()


def test_what_can_be_read_is_read_rightly():
    wrong = collections.Counter()
    for odd in files("read"):
        expected = as_image(odd.expected)
        try:
            if distance(Encoded(odd.data, odd.name).decode(), expected) > odd.near:
                wrong[odd.name] += 1
        except DecodeError as error:
            wrong[str(error)] += 1
    assert not wrong


def test_what_cannot_be_read_says_so_in_one_line():
    for odd in files("refused"):
        for view in (*VIEWS, lambda image, index: image.decode()):
            with pytest.raises(DecodeError) as error:
                view(Encoded(odd.data, odd.name), 0)
            line = str(error.value)
            assert line.startswith(f"{odd.name} cannot be decoded as an image") and odd.expected in line
            assert "\n" not in line and len(line) < 250


def test_views_are_those_of_the_pixels():
    """Bit for bit, but for JPEGs that shrink in the decoder: their crops are rounded to half a pixel of the view."""
    for odd in files("read"):
        pixels = as_image(odd.expected)
        for view in VIEWS:
            for index in range(3):
                image = Encoded(odd.data, odd.name)
                found, expected = view(image, index), view(pixels, index)
                assert found.shape == (16, 16, 3)
                difference = np.abs(found.astype(int) - expected)
                assert difference.mean() <= 12 if image.header else difference.max() <= 2 * odd.near, odd.name


def test_a_folder_of_odd_files(tmp_path, caplog, monkeypatch):
    """The folder source lists the images, reads each, and counts what it leaves out in one line."""
    monkeypatch.chdir(tmp_path)
    for odd in odd_files():
        path = tmp_path / odd.name
        path.write_bytes(odd.data) if isinstance(odd.data, bytes) else odd.data(str(path))
    source = open_source(settings("folder", tmp_path), "all")
    assert sorted(source.names) == sorted(odd.name for odd in odd_files() if odd.expected is not LEFT_OUT)
    (line,) = (record.getMessage() for record in caplog.records)
    assert (
        f": {len(files('left out')) - 2} files are left out: 5 pipes, devices or broken links, 1 .heic, 1 .jxl, 1 .svg"
        in line
    )
    expected, got = {odd.name: odd.expected for odd in odd_files()}, collections.Counter()
    for index, name in enumerate(source.names):
        try:
            image, kind = source[index], "read"
            assert image.shape[:2] == np.shape(expected[name])[:2]
        except DecodeError as error:
            kind = "refused"
            assert str(error).startswith(f"{tmp_path / name} ")
        got[kind] += 1
    assert got == {kind: len(files(kind)) for kind in ("read", "refused")}


def test_decoders_add_nothing_of_their_own(capfd):
    """Python's and OpenCV's messages are left to the line that names the file; libpng and libtiff write theirs in C."""
    for odd in files("refused"):
        with pytest.raises(DecodeError):
            Encoded(odd.data, odd.name).decode()
    lines = capfd.readouterr().err.splitlines()
    assert not [line for line in lines if not line.startswith(("libpng ", "JPEGLib", "TIFF"))]
    assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
