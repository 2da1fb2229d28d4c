"""What the loop of training does beside its steps."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config, small_run

from greenjax.errors import NotFinite
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.files import GONE, unless_unwritable
from greenjax.training.guard import DivergedError
from greenjax.training.loop import Hook, Watch
from greenjax.training.meter import Meter
from greenjax.training.metrics import MetricsWriter
from greenjax.training.sharding import make_mesh
from greenjax.training.state import Counts, State

WITHOUT_WEIGHTS = State(None, None, None, None, Counts(*np.zeros(4, np.int32)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *GONE])
def test_a_full_or_lost_disk_costs_a_picture(number, caplog):
    with unless_unwritable("step 5"):
        raise OSError(number, "no room")
    assert "step 5" in caplog.text and "the run goes on without it" in caplog.text


def test_other_errors_are_not_missed():
    for error in (OSError(errno.EINVAL, "a defect"), OSError("without a number"), ValueError("no OSError")):
        with pytest.raises(type(error)), unless_unwritable("step 5"):
            raise error


@pytest.fixture
def meter(monkeypatch):
    config = small_config(mesh__data=1)
    monkeypatch.setattr(BackgroundJit, "flops", 1)
    return Meter(config, make_mesh(config), BackgroundJit(jax.jit(abs)), hours=0.0)


def test_the_meter_averages_finite_losses_since_the_last_line(meter):
    for loss in (4.0, 2.0, float("nan")):
        meter.add({"loss": loss, "skipped": 1})
    assert meter.so_far()["loss"] == 3.0 and meter.so_far()["images_per_second"] > 0
    meter.add({"loss": 9.0, "skipped": 2})
    with meter.paused():
        line = meter.line()
    assert (line["loss"], line["skipped"]) == (5.0, 2)
    assert "loss" not in meter.so_far()


def test_time_in_a_pause_is_not_spent_on_training(meter, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter.start()
    for spent in (1, 2):
        now[0] += spent
        meter.add({"loss": 1.0})
        with meter.paused():
            now[0] += 1000
    with meter.paused():
        line = meter.line()
    assert line["images_per_second"] == 2 * 16 / 3


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 3, 6, 8]), (0, [0, 8]), (100, [0, 8])])
def test_a_hook_is_due_first_and_last_and_at_its_multiples(every, steps):
    hook = Hook(every, lambda step, state, writer: None)
    assert [step for step in range(9) if hook.due(step, total=8)] == steps


def test_metrics_are_read_once_the_next_update_is_dispatched(tmp_path):
    """The devices never wait; a hook that is due waits for the update under way."""
    config, read = small_config(mesh__data=1), []
    with MetricsWriter(tmp_path, total=10) as writer:
        watch = Watch(small_run(config, tmp_path), writer, WITHOUT_WEIGHTS)
        watch.meter.add = read.append
        for step in (1, 2):
            watch.dispatched(step, {"loss": jnp.float32(step), "skipped_in_a_row": jnp.int32(0)})
        assert [each["loss"] for each in read] == [1.0]
        looked = []
        hooks = [Hook(2, lambda *_: looked.append(len(read))), Hook(5, lambda *_: looked.append("never"))]
        watch.look(2, WITHOUT_WEIGHTS, hooks)
        assert looked == [2]


def test_values_that_are_not_finite_are_a_divergence_while_updates_are_skipped(tmp_path):
    """So the run goes back to a checkpoint; without skipped updates the error is what it says."""

    def judge(*_):
        raise NotFinite("logits of image 0 are not finite")

    with MetricsWriter(tmp_path, total=10) as writer:
        run = small_run(small_config(mesh__data=1), tmp_path)
        watch = Watch(run, writer, WITHOUT_WEIGHTS)
        with pytest.raises(NotFinite):
            watch.look(0, WITHOUT_WEIGHTS, [Hook(1, judge)])
        for step, skipped in ((1, 0), (2, 1), (3, 2)):
            watch.dispatched(step, {"loss": jnp.float32("nan"), "skipped_in_a_row": jnp.int32(skipped)})
        with pytest.raises(DivergedError, match="logits of image 0") as caught:
            watch.look(3, WITHOUT_WEIGHTS, [Hook(1, judge)])
    assert (caught.value.step, caught.value.since) == (3, 2)
    with MetricsWriter(tmp_path, total=10) as writer:  # the next process knows it from the checkpoint
        state = WITHOUT_WEIGHTS._replace(counts=WITHOUT_WEIGHTS.counts._replace(skipped_in_a_row=np.int32(2)))
        with pytest.raises(DivergedError, match="logits of image 0") as caught:
            Watch(run, writer, state).look(3, state, [Hook(1, judge)])
    assert (caught.value.step, caught.value.since) == (3, 2)
