"""The loader: a batch depends on (seed, step) alone, and each epoch has every image once."""

import contextlib
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_data import encode, picture
from worker_cases import Big, Broken, Strange, children, constants

from greenjax.backbones.geometry import make_planner
from greenjax.config import resolve
from greenjax.data.loader import eval_batches, train_batches
from greenjax.data.open import open_source
from greenjax.data.sources.python import PythonSource
from greenjax.data.stream import ImagesError
from greenjax.data.undecodable import Fault, Undecodable
from greenjax.data.workers import WorkerDied, WorkerError, WorkerPool
from greenjax.errors import InputError
from greenjax.runtime.compile import BackgroundJit
from greenjax.training.loop import await_update
from greenjax.training.metrics import MetricsWriter


def tiny_config(**data):
    """32 px in units of 8: 16 units; the last stages fit one row, so that their plans hold None."""
    model = dict(patch=2, depths=(2, 2, 2), num_heads=(1, 2, 4), embed_dim=8, window=4, in_channels=1)
    data = {"source": "digits", "batch_size": 8, "workers": 0, "mean": (0.5,), "std": (0.5,), **data}
    return resolve({"steps": 1, "image_size": 32, "model": model, "data": data, "mask": {"groups": 4}})


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return make_planner(tiny_config())


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
    config, read = tiny_config(), []

    class Counted:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            read.append(index)
            return constants(5)[index]

    take(train_batches(config, Counted(), planner, 10**9), 1)
    assert len(read) <= 3 * config.data.batch_size  # the batch, and what is read ahead


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
    plan, redrawn = planner.plans(4, 4)
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
    assert all(batch.valid.all() for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_most_images_undecodable_stop_the_run(planner, workers):
    """Two of three: no hundred in a row, and yet not the fault of single files."""
    broken = Broken(constants(6), {0, 1, 3, 5})
    with pytest.raises(
        InputError, match=r"\d\d of the last 100 images cannot be used, the first of them: file\d.jpg cannot be decoded"
    ):
        take(train_batches(tiny_config(workers=workers), broken, planner), 50)


def test_the_first_of_them_is_named_where_its_error_names_none(planner):
    source = PythonSource([np.zeros((9, 9, 1), np.uint16)] * 4)
    with pytest.raises(InputError, match=r", the first of them: source\[\d\]: its pixels are uint16"):
        next(train_batches(tiny_config(), source, planner))


def test_a_quarter_of_them_does_not(planner):
    batches = take(train_batches(tiny_config(), Broken(constants(20), range(5)), planner), 20)
    assert min(told(batches)) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_an_image_raises_is_its_fault(planner, workers, caplog):
    source = Strange(constants(20), frozenset({5}))
    with caplog.at_level(logging.WARNING):
        batches = take(train_batches(tiny_config(workers=workers), source, planner), 15)
    assert 5 not in told(batches) and sum(batch.undecodable.sum() for batch in batches) == 6
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "file5.jpg: IndexError: list index out of range; the next image takes its place"


@pytest.mark.parametrize("workers, error", [(0, ImagesError), (1, WorkerError)])
def test_what_all_images_raise_ends_the_run_with_the_first_traceback(planner, workers, error):
    source = Strange(constants(20), frozenset(range(20)))
    with pytest.raises(error) as raised:
        next(train_batches(tiny_config(workers=workers), source, planner))
    said = "".join(traceback.format_exception(raised.value))
    assert "return [][1] if" in said and "IndexError" in said and "100 of the last 100 images cannot be used" in said
    assert "the first of them: file" in said


def test_one_damaged_file_does_not_hide_what_the_others_raise(planner):
    source = Strange(Broken(constants(20), {3}), frozenset(range(20)) - {3})
    with pytest.raises(ImagesError) as raised:
        next(train_batches(tiny_config(), source, planner))
    assert isinstance(raised.value.__cause__, IndexError)


# Held-out


@pytest.mark.parametrize(
    "count, eval_images, expected",
    [
        (21, 99, [*range(21)]),
        (21, 10, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),  # evenly spaced: sets are stored by class
        (16, 16, [*range(16)]),
        (3, 9, [0, 1, 2]),
    ],
)
def test_held_out_images_come_once_in_order_with_fixed_masks(planner, count, eval_images, expected):
    config = tiny_config(eval_images=eval_images, workers=2)
    batches = list(eval_batches(config, constants(count), planner))
    valid = np.concatenate([batch.valid.ravel() for batch in batches])
    assert np.array(told(batches))[valid].tolist() == expected
    assert valid.tolist() == [True] * len(expected) + [False] * (len(batches) * 8 - len(expected))
    for k, batch in enumerate(batches):
        assert not batch.images[~batch.valid].any()
        assert_equal([batch.plan], [planner.held_out_plans(k, 4)[0]])
    assert_equal(list(eval_batches(tiny_config(eval_images=eval_images), constants(count), planner)), batches)


def test_an_undecodable_held_out_image_is_left_out(planner):
    batch = next(eval_batches(tiny_config(), Broken(constants(8), {7, 2}), planner))
    assert told([batch]) == [0, 1, 0, 3, 4, 5, 6, 0] and batch.undecodable.tolist() == [0, 1, 0, 1]
    assert batch.valid.ravel().tolist() == [True, True, False, True, True, True, True, False]


def test_a_patient_pass_leaves_out_a_damaged_stretch(planner):
    config, source = tiny_config(batch_size=200), Broken(constants(200), range(60, 120))
    with pytest.raises(InputError, match="of the last 100 images cannot be used"):
        list(eval_batches(config, source, planner))
    (batch,) = eval_batches(config, source, planner, patient=True)
    assert batch.valid.ravel().tolist() == [True] * 60 + [False] * 60 + [True] * 80


# Which are undecodable


def test_an_image_is_named_once_in_a_run_wherever_it_is_met(planner, caplog, tmp_path):
    """By two workers over three epochs, in evaluations, and after the run was resumed."""
    source, config = Strange(constants(20), frozenset({5, 11})), tiny_config(workers=2)
    with caplog.at_level(logging.WARNING):
        for part in range(2):
            undecodable = Undecodable(tmp_path, resuming=part > 0)
            assert len(undecodable) == (2 if part else 0)
            for _ in range(2):
                list(eval_batches(config, source, planner, undecodable=undecodable))
            take(train_batches(config, source, planner, undecodable=undecodable), 8)
            assert len(undecodable) == 2
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["file5.jpg", "file11.jpg"]
    lines = (tmp_path / "undecodable.txt").read_text().splitlines()
    assert lines == [f"file{i}.jpg\tIndexError: list index out of range" for i in (5, 11)]


def test_images_of_two_splits_of_a_folder_are_told_apart(planner, caplog, tmp_path):
    """Number 0 of either: a slice names the file, not the place in it."""
    (tmp_path / "images").mkdir()
    for i in range(8):
        (tmp_path / "images" / f"{i}.png").write_bytes(encode(picture(i)) if i % 4 else b"")
    config = tiny_config(source="folder", path=str(tmp_path / "images"))
    undecodable = Undecodable()
    for split in ("all[:4]", "all[4:]"):
        list(eval_batches(config, open_source(config.data, split), planner, undecodable=undecodable))
    assert len(undecodable) == 2 and all(f"{i}.png: cannot be decoded as an image" in caplog.text for i in (0, 4))


def test_a_run_begun_anew_begins_a_new_list(tmp_path):
    Undecodable(tmp_path).add([Fault("a.jpg", "is empty")], "so")
    assert len(Undecodable(tmp_path)) == 0 and not (tmp_path / "undecodable.txt").exists()


ODD = {
    "line": "new\nline.jpg",
    "tab": "tab\t.jpg",
    "separator": "caf\u00e9 \u2028.jpg",
    "not UTF-8": "bytes \udcff.jpg",
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_odd_names_are_known_again(name, tmp_path, caplog):
    Undecodable(tmp_path).add([Fault(name, "is\nempty"), Fault("b.jpg", "is empty")], "so")
    with (tmp_path / "undecodable.txt").open("a") as file:
        file.write("killed in the mid")
    undecodable = Undecodable(tmp_path, resuming=True)
    caplog.clear()
    undecodable.add([Fault(name, "is empty"), Fault("c.jpg", "is empty")], "so")
    assert len(undecodable) == 3 and "c.jpg" in caplog.text and len(caplog.records) == 1
    assert len((tmp_path / "undecodable.txt").read_bytes().splitlines()) == 3


def test_many_are_named_in_the_file_alone(tmp_path, caplog):
    undecodable = Undecodable(tmp_path)
    for i in range(150):
        undecodable.add([Fault(f"{i}.jpg", "is empty")], "so")
    assert len(caplog.records) == 101 and "100 images cannot be used" in caplog.records[-1].getMessage()
    assert len((tmp_path / "undecodable.txt").read_text().splitlines()) == len(undecodable) == 150


# Processes


@pytest.fixture
def pool():
    """A pool whose workers are gone after the test. A worker's death that nobody notices ends the test by a signal."""
    pools = []

    def make(make_batch, first=0, workers=2):
        pools.append(WorkerPool(make_batch, first, workers))
        return pools[-1]

    usual = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("nothing came for two minutes"))
    signal.alarm(120)
    yield make
    signal.alarm(0)
    signal.signal(signal.SIGALRM, usual)
    for each in pools:
        each.close()


@pytest.mark.parametrize("workers, on_disk", [(1, False), (3, False), (1, True)])
def test_batches_of_a_pool_come_in_order_and_stay_as_they_are(pool, workers, on_disk, monkeypatch):
    """JAX uses such memory as it is, without a copy: later batches must not be written there."""
    if on_disk:
        monkeypatch.delattr(os, "memfd_create")
    made, device, host = pool(Big(size=64 << 10, on_disk=on_disk), 5, workers), [], []
    for step in range(5, 25):
        batch = next(made)
        assert batch["none"] is None and batch["odd"].tolist() == list(range(step % 7))
        assert batch["images"].ctypes.data % 64 == 0 and batch["images"].flags.writeable
        host.append(batch["images"])
        device.append(jax.device_put(batch["images"], jax.local_devices()[0]))
    made.close()
    for step, (here, there) in enumerate(zip(host, device), 5):
        assert (here == step).all() and (np.asarray(there) == step).all()
    assert next(made, None) is None  # closed


def test_workers_start_before_they_are_asked_and_end_with_the_pool(pool):
    made = pool(Big())
    assert len(children()) == 2
    next(made)
    made.close()
    assert not children()


def test_workers_end_with_a_pool_that_nobody_has_any_more():
    made = WorkerPool(Big(), 0, 2)
    assert len(children()) == 2
    del made
    gc.collect()
    assert not children()


@pytest.mark.parametrize("seed", range(4))
def test_a_worker_killed_at_any_moment_is_named(pool, seed):
    """At a random moment of its work, with messages of some megabytes on the way."""
    dice = random.Random(seed)
    made = pool(Big())
    for _ in range(dice.randrange(4)):
        next(made)
    time.sleep(dice.random() * 0.02)
    victim = dice.choice(children())
    os.kill(victim, signal.SIGKILL)
    said = rf"data worker [12] of 2 \(process {victim}\) was killed by SIGKILL \(out of memory\?\)$"
    with pytest.raises(WorkerDied, match=said):
        deque(made, maxlen=0)
    assert not children() and next(made, None) is None


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_killed_before_its_first_batch_is_named(pool, stopped):
    """With a pickled source that no pipe would hold; also one that is stopped, as by a debugger, and then killed."""
    made = pool(Big(padding="x" * (1 << 20)))
    victim = children()[0]
    if stopped:
        os.kill(victim, signal.SIGSTOP)
        time.sleep(0.1)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerDied, match=f"process {victim}"):
        deque(made, maxlen=0)


def test_a_death_is_noticed_between_two_batches_of_training(pool, planner, tmp_path, monkeypatch):
    """In the middle of an evaluation, and while the update is compiled."""
    made, evaluation = pool(Big()), eval_batches(tiny_config(), constants(40), planner)
    next(made), next(evaluation)
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(WorkerDied):
        while True:  # a kill takes a moment
            next(evaluation, None)
    made = pool(Big())
    os.kill(children()[0], signal.SIGKILL)
    update = BackgroundJit(jax.jit(abs))
    monkeypatch.setattr(update, "compiled_within", lambda seconds: False)
    with MetricsWriter(tmp_path, 1) as writer, pytest.raises(WorkerDied):
        await_update(update, writer)


@pytest.mark.parametrize("ended", [False, True])
def test_what_a_worker_raises_comes_in_its_place(pool, ended):
    """The batches before it first, whoever makes them; also where the worker has ended before the first is taken."""
    for raised, error, said in (
        ("input", InputError, "^data.path is 'x' at step 3$"),
        ("error", WorkerError, "KeyError: 3"),
    ):
        made = pool(Big({3: raised}, size=10))
        if ended:
            made._workers[1].process.wait()
        with pytest.raises(error, match=said):
            for step in range(9):
                assert next(made)["images"][0] == step
        assert step == 3


@pytest.mark.parametrize("how, code", [("exit", 3), ("hold", 4)])
def test_a_worker_that_ends_itself_is_named_with_its_exit_code(pool, how, code):
    with pytest.raises(WorkerDied, match=f"data worker 1 of 2 .* ended with exit code {code}$"):
        deque(pool(Big({2: how})), maxlen=0)


def test_workers_end_at_once_however_large_their_batches(pool):
    """Stuck in the middle of their work, or done and waiting: nothing is waited for."""
    made = pool(Big(size=1 << 24), workers=4)
    next(made)
    victims = children()
    made.close()
    assert len(victims) == 4 and not any(map(alive, victims))


def test_signals_to_all_processes_of_a_run_leave_its_workers_alone(pool):
    """Also such that come while a worker starts: the run decides."""
    made = pool(Big(size=10))
    for _ in range(20):
        for worker in children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(worker, number)
        time.sleep(0.05)
    assert [next(made)["images"][0] for _ in range(10)] == list(range(10))


def test_a_worker_imports_neither_jax_nor_orbax(pool):
    """A nested function is sent by value: its module, which imports JAX, stays here."""

    def imported(step):
        import greenjax.data.loader  # noqa: F401

        return {name for name in ("jax", "orbax", "greenjax.data.loader") if name in sys.modules}

    assert next(pool(imported, workers=1)) == {"greenjax.data.loader"}


SCRIPT = """
import sys, time
from pathlib import Path
from greenjax.backbones.geometry import make_planner
from greenjax.config import resolve
from greenjax.data.loader import train_batches

class Images:
    def __len__(self):
        return 20
    def __getitem__(self, index):
        import numpy as np
        return np.full((6, 7, 3), index, np.uint8)

model = {"patch": 2, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "embed_dim": 8, "window": 4}
data = {"source": "digits", "batch_size": 8, "workers": int(sys.argv[1])}
config = resolve({"steps": 1, "image_size": 32, "model": model, "data": data})
batches = train_batches(config, Images(), make_planner(config))
assert next(batches).images.shape == (8, 1, 32, 32, 3)
print("made", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Starts SCRIPT, after given first lines, in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def start(first, *arguments, stdin=False):
        script = tmp_path / "script.py"
        script.write_text(first + SCRIPT)
        command = [sys.executable, "-" if stdin else script, *map(str, arguments)]
        with script.open() as file:
            return subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def test_neither_jax_nor_tensorflow_is_needed(script):
    """Grain imports JAX where it finds it; greenjax's own data and planning code never asks for it."""
    process = script("import sys; sys.modules.update(jax=None, flax=None, tensorflow=None)", 0, 0)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("stdin", [False, True])
def test_a_script_needs_no_main_guard(script, stdin):
    """Workers neither import nor read it, and know its classes all the same; nothing is said at the end."""
    process = script("", 2, 0, stdin=stdin)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and said == "made\n"


def test_workers_end_when_the_run_is_killed(script):
    process = script("", 1, 60)
    process.stdout.readline()
    (worker,) = children(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
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
