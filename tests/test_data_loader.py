"""The loader: a batch depends on (seed, step) alone, and each epoch has every image once."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from greenjax.config import resolve
from greenjax.data import DecodeError, eval_batches, open_source, train_batches
from greenjax.data.augment import CentreView, RandomView, centre_box, random_box, resize, to_channels
from greenjax.data.loader import warn_of_small_shared_memory
from greenjax.errors import InputError
from greenjax.planning import Planner


def tiny_config(**data):
    """32 px in units of 8: 16 units; the last stages fit one row, so that their plans hold None."""
    model = dict(patch=2, depths=(2, 2, 2), num_heads=(1, 2, 4), embed_dim=8, window=4, in_channels=1)
    data = {"source": "digits", "batch_size": 8, "workers": 0, "mean": (0.5,), "std": (0.5,), **data}
    return resolve({"steps": 1, "image_size": 32, "model": model, "data": data, "mask": {"groups": 4}})


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return Planner.from_config(tiny_config())


def constants(count):
    """Image i has the value i everywhere, which no crop or flip changes."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 6, 7, 1)).copy()


class Broken:
    """A source some of whose images cannot be decoded."""

    def __init__(self, images, broken):
        self.images, self.broken = images, broken

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise DecodeError(f"file{index}.jpg cannot be decoded as an image")
        return self.images[index]


def take(iterator, count):
    batches = list(islice(iterator, count))
    iterator.close()
    return batches


def told(batches):
    """The values of constant images, row by row."""
    return np.concatenate([batch.images[..., 0, 0, 0].ravel() for batch in batches]).tolist()


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)


# Order


@pytest.mark.parametrize("count, batch_size", [(20, 8), (3, 8), (1, 4), (16, 8)])
def test_every_image_comes_once_an_epoch(planner, count, batch_size):
    """Batches run over the ends of epochs: the last images are not dropped."""
    config, epochs = tiny_config(batch_size=batch_size), 8
    batches = take(train_batches(config, constants(count), planner), epochs * count // batch_size)
    order = np.array(told(batches)).reshape(-1, count)
    assert (np.sort(order, axis=1) == np.arange(count)).all()
    assert count == 1 or len(np.unique(order, axis=0)) > 1


def test_order_depends_on_the_seed_and_not_by_an_epoch(planner):
    def order(seed):
        config = resolve({**tiny_config(), "seed": seed})
        return told(take(train_batches(config, constants(32), planner), 8))

    assert order(0) != order(1) and order(0)[32:] != order(1)[:32] and order(3) == order(3)


@pytest.mark.parametrize("start", [0, 1, 7])
def test_a_run_can_start_at_any_step(planner, start):
    config, source = tiny_config(), open_source(tiny_config().data, "train[:20]")
    whole = take(train_batches(config, source, planner, 0), 10)
    assert_equal(take(train_batches(config, source, planner, start), 10 - start), whole[start:])


def test_a_far_step_costs_no_more(planner):
    started = time.monotonic()
    take(train_batches(tiny_config(), constants(5), planner, 10**9), 1)
    assert time.monotonic() - started < 5


def test_workers_change_nothing(planner):
    """Two worker processes, from another step on: images, masks, plans with None in them, counts."""
    source = open_source(tiny_config().data, "train[:20]")
    whole = take(train_batches(tiny_config(), source, planner, 0), 8)
    assert any(leaf is None for leaf in jax.tree.leaves(whole[0].plan, is_leaf=lambda leaf: leaf is None))
    assert_equal(take(train_batches(tiny_config(workers=2), source, planner, 3), 5), whole[3:])


def test_rows_plans_and_groups_belong_together(planner):
    """Row r of step t is image t * batch_size + r, in mask group r // (batch_size // groups)."""
    config = tiny_config()
    flat = told(take(train_batches(config, constants(50), planner), 5))
    batch = take(train_batches(config, constants(50), planner, 4), 1)[0]
    assert batch.images.shape == (4, 2, 32, 32, 1) and batch.images.dtype == np.uint8
    assert batch.images[:, :, 0, 0, 0].ravel().tolist() == flat[4 * 8 : 5 * 8]
    plan, redrawn = planner.plans(config.seed, 4, 4)
    assert_equal([batch.plan, batch.redrawn], [plan, redrawn])
    assert batch.valid.all() and batch.valid.shape == (4, 2) and batch.undecodable.tolist() == [0, 0, 0, 0]


# Images that cannot be decoded


def test_an_undecodable_image_is_replaced_by_the_next_and_named(planner, caplog):
    config, broken = tiny_config(), {5, 11}
    expected = told(take(train_batches(config, constants(20), planner), 5))
    with caplog.at_level(logging.WARNING):
        batches = take(train_batches(config, Broken(constants(20), broken), planner), 5)
    for i in reversed(range(len(expected))):
        if expected[i] in broken and i + 1 < len(expected):
            expected[i] = expected[i + 1]
    assert told(batches)[:-1] == expected[:-1]
    assert sum(batch.undecodable.sum() for batch in batches) == 4  # two images, two epochs
    warnings = [record.getMessage() for record in caplog.records]
    assert all(any(f"file{i}.jpg" in warning for warning in warnings) for i in broken) and len(warnings) == 2


def test_a_source_without_any_decodable_image_stops_the_run(planner):
    with pytest.raises(InputError, match="100 images in a row could not be decoded"):
        next(train_batches(tiny_config(), Broken(constants(4), range(4)), planner))


# Held-out


@pytest.mark.parametrize("count, eval_images, expected", [(21, 99, 21), (21, 10, 10), (16, 16, 16), (3, 9, 3)])
def test_held_out_images_come_once_in_order_with_fixed_masks(planner, count, eval_images, expected):
    config = tiny_config(eval_images=eval_images, workers=2)
    batches = list(eval_batches(config, constants(count), planner))
    valid = np.concatenate([batch.valid.ravel() for batch in batches])
    assert np.array(told(batches))[valid].tolist() == list(range(expected))
    assert valid.tolist() == [True] * expected + [False] * (len(batches) * 8 - expected)
    for k, batch in enumerate(batches):
        assert not batch.images[~batch.valid].any()
        assert_equal([batch.plan], [planner.held_out_plans(k, 4)[0]])
    assert_equal(list(eval_batches(tiny_config(eval_images=eval_images), constants(count), planner)), batches)


def test_an_undecodable_held_out_image_is_replaced(planner):
    batch = next(eval_batches(tiny_config(), Broken(constants(8), {7, 2}), planner))
    assert told([batch]) == [0, 1, 3, 3, 4, 5, 6, 0] and batch.undecodable.tolist() == [0, 1, 0, 1]


# Augmentation


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_views_are_a_function_of_seed_and_index():
    view, other = (RandomView(seed, (16, 24), 3, (0.2, 1.0), (0.75, 4 / 3), True) for seed in (0, 1))
    image = noise(40, 50)
    views = [view(image, index) for index in range(50)]
    assert all(np.array_equal(view(image, index), views[index]) for index in reversed(range(50)))
    assert len({v.tobytes() for v in views}) == 50
    assert not np.array_equal(other(image, 0), views[0])
    assert all(v.shape == (16, 24, 3) and v.dtype == np.uint8 and v.flags.c_contiguous for v in views)


def test_half_of_the_views_are_flipped():
    ramp = np.tile(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], (25, 1, 1))
    view = RandomView(0, (8, 8), 1, (0.2, 1.0), (0.75, 4 / 3), True)
    flipped = [bool(v[0, 0, 0] > v[0, -1, 0]) for v in (view(ramp, index) for index in range(400))]
    assert 160 < sum(flipped) < 240
    still = RandomView(0, (8, 8), 1, (0.2, 1.0), (0.75, 4 / 3), False)
    assert not any(v[0, 0, 0] > v[0, -1, 0] for v in (still(ramp, index) for index in range(50)))


def test_random_boxes_fill_the_ranges_and_lie_inside():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box((300, 400), (0.2, 1.0), (0.75, 4 / 3), rng.random(22)) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (np.minimum(top, left) >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    area, ratio = height * width / (300 * 400), width / height
    assert area.min() > 0.195 and area.min() < 0.21 and area.max() > 0.9
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    small = [random_box((300, 400), (0.2, 0.4), (0.5, 2.0), rng.random(22)) for _ in range(2000)]
    assert np.mean([np.log(w / h) for _, _, h, w in small]) == pytest.approx(0, abs=0.04)  # log-uniform
    corners = {random_box((2, 2), (0.25, 0.25), (1.0, 1.0), rng.random(22))[:2] for _ in range(100)}
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    "size, box", [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((9, 10), (0, 0, 9, 10))]
)
def test_where_no_crop_fits_the_centre_is_taken(size, box):
    assert centre_box(size, (0.75, 4 / 3)) == box
    if size != (9, 10):
        assert random_box(size, (0.9, 1.0), (0.75, 4 / 3), np.full(22, 0.5)) == box


@pytest.mark.parametrize("size, expected", [((50, 100), (16, 24)), ((100, 50), (16, 24)), ((8, 8), (16, 24))])
def test_the_held_out_view_is_the_centre(size, expected):
    """A picture bright in its centre and dark at the border that is to be cut keeps its centre."""
    image = np.zeros((*size, 1), np.uint8)
    image[size[0] // 2 - 2 : size[0] // 2 + 2, size[1] // 2 - 2 : size[1] // 2 + 2] = 255
    view = CentreView(expected, 1)(image, 0)
    assert view.shape == (*expected, 1)
    weights = view[..., 0] / view.sum()
    centre = [(weights.sum(axis=1 - axis) * np.arange(expected[axis])).sum() for axis in (0, 1)]
    assert centre == pytest.approx([(side - 1) / 2 for side in expected], abs=0.6)


def test_shrinking_averages_and_enlarging_is_bicubic():
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))[:, :, None]
    assert (resize(stripes, (32, 32)) == 100).all()
    step = np.repeat(np.array([50, 200], np.uint8), 8)[None, :, None].repeat(16, axis=0)
    large = resize(step, (64, 64))
    assert large.min() < 50 and large.max() > 200  # bicubic overshoots, bilinear would not
    assert resize(step, (16, 16)) is step


def test_grey_and_colour_become_each_other():
    grey = noise(5, 6, 1)
    assert np.array_equal(to_channels(grey, 3), np.repeat(grey, 3, axis=2))
    assert np.array_equal(to_channels(to_channels(grey, 3), 1), grey)
    with pytest.raises(InputError, match=r"model\.in_channels is 4: expected 1 or 3"):
        to_channels(grey, 4)


# Processes


def test_too_little_shared_memory_is_said_beforehand(monkeypatch, caplog):
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    with caplog.at_level(logging.WARNING):
        warn_of_small_shared_memory(tiny_config(batch_size=2048, workers=2))
        assert not caplog.records
        warn_of_small_shared_memory(tiny_config(batch_size=8192, workers=3))
    assert "0.1 GB free, 3 workers need up to 0.1 GB" in caplog.text


SCRIPT = """
import multiprocessing, sys, time
from greenjax.config import resolve
from greenjax.data import open_source, train_batches
from greenjax.planning import Planner

if __name__ == "__main__":
    model = {"patch": 2, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "embed_dim": 8, "window": 4}
    data = {"source": "digits", "batch_size": 8, "workers": int(sys.argv[1])}
    config = resolve({"steps": 1, "image_size": 32, "model": model, "data": data})
    batches = train_batches(config, open_source(config.data, "train"), Planner.from_config(config))
    assert next(batches).images.shape == (8, 1, 32, 32, 3)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Starts SCRIPT, after given first lines, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def start(first, *arguments):
        (tmp_path / "script.py").write_text(first + SCRIPT)
        command = [sys.executable, str(tmp_path / "script.py"), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


def test_neither_jax_nor_tensorflow_is_needed(script):
    """Grain imports JAX where it finds it; greenjax's own data and planning code never asks for it."""
    process = script("import sys; sys.modules.update(jax=None, flax=None, tensorflow=None)", 0, 0)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_workers_end_when_the_run_is_killed(script):
    process = script("", 1, 60)
    (worker,) = (int(pid) for pid in process.stdout.readline().split())
    process.stdout.close()
    assert alive(worker)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        assert not alive(worker)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def alive(pid):
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # dead, but PID 1 of a container may leave it at that
