"""The monitor without labels: an image is found again by another random view of it."""

import json

import numpy as np
import pytest
from small import small_config

from greenjax.data.augment import RandomView
from greenjax.data.encoded import DecodeError
from greenjax.data.loader import two_views
from greenjax.data.open import open_source
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.evaluation.views import ViewsMonitor, found_again
from greenjax.runtime.placement import Placement
from greenjax.tasks import pretrain
from greenjax.training.sharding import make_mesh
from greenjax.training.state import init_state, model_graph

SAME = dict(data__crop_scale=(1.0, 1.0), data__crop_ratio=(1.0, 1.0))  # both views are the image
TINY = dict(image_size=16, model__depths=(1, 1), mesh__data=1, data__split="train[:40]", monitor="views")


def test_an_image_is_found_by_brute_force():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 5)) + 3
    second = first + 0.4 * rng.normal(size=(30, 5))

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    nearest = [max(range(30), key=lambda j, i=i: cosine(a[i], b[j])) for i in range(30)]
    expected = np.mean([i == j for i, j in enumerate(nearest)])
    assert found_again(first, second) == expected and 0.2 < expected < 1
    assert found_again(first + 1000, second + 1000) == expected  # what all images share counts nothing
    with pytest.raises(InputError, match="features of image 3 are not finite"):
        found_again(first, np.where(np.arange(30)[:, None] == 3, np.nan, second))


class Damaged:
    """A source one of whose images cannot be read."""

    def __init__(self, source, damaged):
        self.source, self.damaged = source, damaged

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == self.damaged:
            raise DecodeError("cut short")
        return self.source[index]

    def name_of(self, index):
        return f"image {index}"


def monitored(config, images):
    place = Placement(make_mesh(config))
    undecodable = Undecodable()
    monitor = ViewsMonitor(config, images, model_graph(config), place)
    return monitor.measure(init_state(config, make_mesh(config)).params, undecodable), undecodable


def test_both_views_are_those_of_the_training():
    config = small_config(**TINY, data__batch_size=16)
    images = open_source(config.data, config.data.split)
    batches = list(two_views(config, images, range(40)))
    assert [batch.valid.sum() for batch in batches] == [16, 16, 16, 16, 16]
    found, view = np.concatenate([batch.images for batch in batches]), RandomView.from_config(config)
    for index in (0, 7, 39):
        np.testing.assert_array_equal(found[index], view(images[index], index))
        np.testing.assert_array_equal(found[40 + index], view(images[index], 40 + index))
    assert not np.array_equal(found[7], found[47])


def test_equal_views_find_every_image_and_a_damaged_one_is_left_out():
    config = small_config(**TINY, **SAME)
    images = open_source(config.data, config.data.split)
    found, undecodable = monitored(config, images)
    assert found == {"views_top1": 1} and not len(undecodable)
    found, undecodable = monitored(config, Damaged(images, 3))
    assert found == {"views_top1": 1} and len(undecodable) == 1


def test_a_run_without_labels_is_monitored(tmp_path):
    """Nothing is held out, and there is no second set of images."""
    pretrain(small_config(**TINY, steps=2, log__monitor_every=1, log__monitor_images=20), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["views_top1"] for line in lines if "views_top1" in line}
    assert list(found) == [0, 1, 2] and all(
        0 <= value * 20 <= 20 and value * 20 == int(value * 20) for value in found.values()
    )
