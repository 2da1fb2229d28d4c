"""The suites of sources and formats: the same bytes from every source, and a figure for every format."""

import numpy as np
import pytest

from benchmarks import formats, sources
from greenjax.data.encoded import load
from greenjax.data.sources.folder import read_file


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sources, "SIZE", (75, 100))
    monkeypatch.setattr(sources, "COUNT", 4)
    monkeypatch.setattr(formats, "SIZE", (96, 128))


def test_sources_of_the_same_images_take_turns(small):
    rows = sources.run(batch=4, repeats=2)["rows"]
    assert [row["source"] for row in rows][:4] == ["folder", "list", "tar", "records"]
    assert rows[0]["times_folder"] == 1 and all(row["low"] <= row["times_folder"] <= row["high"] for row in rows)


@pytest.mark.extra
def test_the_hub_s_source_and_all_formats_are_measured_where_their_packages_are(small):
    assert [row["source"] for row in sources.run(batch=4, repeats=1)["rows"]][-1] == "huggingface"
    rows = formats.run(repeats=1, scene=None)["rows"]
    assert all(row["pixels_per_second"] > 0 for row in rows)
    assert len({row["file"] for row in rows}) == 15


@pytest.mark.extra
def test_a_crop_of_a_scene_is_that_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "TILE", 64)
    monkeypatch.setattr(formats, "CROP", 100)
    formats.write_scene(tmp_path / "scene.tif", 300)
    whole, _ = load(read_file(str(tmp_path / "scene.tif")), lambda size: ((0, 0, *size), size))
    (top, left, height, width), _ = formats.crop(0.3, 0.8, whole.shape[:2])
    found, _ = load(read_file(str(tmp_path / "scene.tif")), lambda size: formats.crop(0.3, 0.8, size))
    assert whole.shape == (300, 300, 3) and (height, width) == (100, 100)
    np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])
    seconds, peak = formats.read_crop(str(tmp_path / "scene.tif"))
    assert seconds > 0 and peak >= 0
