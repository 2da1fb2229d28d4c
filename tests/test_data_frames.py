"""Files of several frames or pages: headers tell them as Pillow does, and a run says once that the first is taken."""

import io
import logging

import numpy as np
import pytest
from odd_files import odd_files
from PIL import Image
from test_data_loader import take, tiny_config

from greenjax.backbones.geometry import make_planner
from greenjax.data.frames import has_more
from greenjax.data.loader import eval_batches, train_batches
from greenjax.data.open import open_source
from greenjax.data.prepare import How, prepare
from greenjax.data.undecodable import Undecodable

RNG = np.random.default_rng(0)
FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".avif": "AVIF", ".tif": "TIFF"}


def stored(kind, frames, mode="RGB"):
    """A file with so many frames of noise."""
    images = [Image.fromarray(RNG.integers(0, 256, (24, 30, 3), np.uint8)).convert(mode) for _ in range(frames)]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("kind", FORMATS.values())
def test_headers_tell_files_of_several_frames(kind, mode):
    for frames in (1, 2, 5):
        data = stored(kind, frames, mode)
        assert has_more(data) == (frames > 1)
        for cut in range(0, len(data), 29):  # neither an error nor an endless loop
            has_more(data[:cut])
            has_more(data[:cut] + bytes([data[cut] ^ 0xFF]) + data[cut + 1 :])


def test_odd_files_are_told_as_pillow_counts_their_frames():
    for odd in odd_files():
        if isinstance(odd.data, bytes):
            try:
                with Image.open(io.BytesIO(odd.data)) as image:
                    expected = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
            except Exception:
                continue
            assert has_more(odd.data) == expected, odd


@pytest.mark.extra
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_smaller_copies_of_a_page_are_no_pages(big, order):
    import tifffile

    for kinds, expected in (((0,), False), ((0, 1, 1), False), ((0, 0), True), ((0, 1, 0), True)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
            for kind in kinds:
                writer.write(np.zeros((16, 16), np.uint8), subfiletype=kind, metadata=None)
        assert has_more(file.getvalue()) == expected


def test_a_run_says_once_that_the_first_frame_is_taken(tmp_path, caplog):
    """Not once an image, a worker or a set of images; such images are no damaged ones."""
    for number, (suffix, kind) in enumerate(list(FORMATS.items()) * 2):
        (tmp_path / f"{number}{suffix}").write_bytes(stored(kind, 3))
    config = tiny_config(source="folder", path=str(tmp_path), split="all", workers=2)
    source, planner, undecodable = open_source(config.data, "all"), make_planner(config), Undecodable()
    with caplog.at_level(logging.WARNING):
        batches = take(train_batches(config, source, planner, undecodable=undecodable), 2)
        batches += take(eval_batches(config, source, planner, undecodable=undecodable), 1)
    (line,) = (record.getMessage() for record in caplog.records if "frame" in record.getMessage())
    assert line.startswith(str(tmp_path)) and line.endswith(": of all such images the first is taken")
    assert len(undecodable) == 0 and not any(batch.undecodable.any() for batch in batches)


def test_preparing_says_once_that_the_first_frame_is_taken(tmp_path, caplog):
    for number in range(3):
        (tmp_path / f"{number}.gif").write_bytes(stored("GIF", 2))
    config = tiny_config(source="folder", path=str(tmp_path), split="all")
    list(prepare(config, tmp_path / "made", How(24, "raw"), unlabelled=True))
    (line,) = (record.getMessage() for record in caplog.records if "frame" in record.getMessage())
    assert line == f"some images of {tmp_path / 'made'} have several frames or pages: the first is taken"
