"""What the loop of training does beside its steps."""

import errno

import jax
import jax.numpy as jnp
import pytest
from small import small_config

from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.files import unless_full
from greenjax.training.guard import Guard
from greenjax.training.loop import Meter
from greenjax.training.sharding import make_mesh


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_costs_a_picture(number, caplog):
    with unless_full("step 5"):
        raise OSError(number, "no room")
    assert "step 5" in caplog.text and "the run goes on without it" in caplog.text


def test_other_errors_are_not_missed():
    with pytest.raises(PermissionError), unless_full("step 5"):
        raise OSError(errno.EACCES, "not yours")


@pytest.fixture
def meter(monkeypatch):
    config = small_config(mesh__data=1)
    monkeypatch.setattr(BackgroundJit, "flops", 1)
    return Meter(config, make_mesh(config), BackgroundJit(jax.jit(abs)), Guard(3, 0.0), hours=0.0)


def test_what_is_told_between_two_lines_waits_for_no_step(meter):
    meter.start()
    for step, loss in enumerate((4.0, 2.0, float("nan"), 9.0), 1):
        meter.add(step, {"loss": jnp.float32(loss), "skipped_in_a_row": jnp.int32(0)})
    assert meter.so_far()["loss"] == 3.0  # of steps 1 and 2; step 4 is under way
    assert meter.so_far()["images_per_second"] > 0
    assert meter.line()["loss"] == 5.0
    assert "loss" not in meter.so_far()
