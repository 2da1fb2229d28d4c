"""The loader: a batch depends on (seed, step) alone, and each epoch has every image once."""

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import grain
import jax
import numpy as np
import pytest

from greenjax.config import resolve
from greenjax.data import DecodeError, eval_batches, open_source, train_batches
from greenjax.data.loader import order_seed, shuffled
from greenjax.data.workers import warn_of_small_shared_memory
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


def test_the_order_is_that_of_grain():
    ours = shuffled(tiny_config(), range(37))
    theirs = grain.MapDataset.range(37).shuffle(seed=order_seed(tiny_config().seed)).repeat()
    assert len(ours) == len(theirs) and all(ours[i] == theirs[i] for i in (*range(80), 10**9))


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


def test_workers_start_before_they_are_asked(planner):
    source = open_source(tiny_config().data, "train[:20]")
    with contextlib.closing(train_batches(tiny_config(workers=2), source, planner, 0)) as batches:
        deadline = time.monotonic() + 60
        while len(multiprocessing.active_children()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(multiprocessing.active_children()) == 2
        next(batches)
    assert not multiprocessing.active_children()


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
