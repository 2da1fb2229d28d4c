"""Divergence is seen, and a run goes back to before it and on with other data."""

import importlib
import json
import os
import signal

import numpy as np
import pytest
from small import ONE_STAGE, small_config

from greenjax.errors import InterruptedRun
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.tasks import pretrain
from greenjax.training.guard import BEFORE, RECENT, DivergedError, Guard, Rollbacks


def feed(guard, losses, first=1):
    for step, loss in enumerate(losses, first):
        guard.look(step, loss, 0)


def test_a_loss_that_rises_too_far_is_a_spike():
    guard = Guard(max_skipped=3, spike=2.0)
    feed(guard, [1.0] * (BEFORE + 5) + [90.0] + [1.0] * 4 + [5.0] * 3)  # a few batches are none
    with pytest.raises(
        DivergedError, match=r"step 114: the median loss of 10 updates is 3, the mean of the 100 before 1; .* 2 times"
    ) as caught:
        guard.look(114, 5.0, 0)
    assert (caught.value.step, caught.value.since) == (114, 105)


def test_a_hard_batch_among_tiny_losses_is_no_spike():
    """A classifier that fits its images has losses near 0, and now and then one that is a hundred times as large."""
    guard, losses = Guard(10, 3.0), 1.5e-3 * np.exp(np.random.default_rng(0).normal(0, 0.5, 5000))
    losses[::200] = 0.2
    feed(guard, losses.tolist())
    with pytest.raises(DivergedError):
        feed(guard, [0.02] * RECENT, first=5001)


def test_a_falling_loss_and_no_limit_are_no_spikes():
    feed(Guard(3, 1.01), np.linspace(5, 0.1, 400).tolist())
    feed(Guard(3, 0.0), [1.0] * 200 + [1e9] * 200)


def test_a_loss_that_is_not_finite_counts_as_skipped_only():
    guard = Guard(max_skipped=2, spike=2.0)
    feed(guard, [1.0] * (BEFORE + RECENT))
    guard.look(111, float("nan"), 1)
    guard.look(112, float("inf"), 2)
    with pytest.raises(DivergedError, match=r"step 113: 3 updates in a row") as caught:
        guard.look(113, float("nan"), 3)
    assert caught.value.since == 111


def test_the_position_in_the_stream_after_rollbacks(tmp_path):
    rollbacks = Rollbacks(tmp_path)
    assert [rollbacks.skipped(step) for step in (0, 500)] == [0, 0]
    rollbacks.add(DivergedError("first", 130, 121), to=100)
    rollbacks.add(DivergedError("second", 250, 241), to=200)
    for each in (rollbacks, Rollbacks(tmp_path)):  # also read back
        # From the checkpoint of step 100 on the batches after the 130th; before it those that were.
        assert [each.skipped(step) for step in (99, 100, 199, 200, 300)] == [0, 30, 30, 80, 80]
        assert each.counts() == {"rollbacks": 2}
    rollbacks.forget()
    assert Rollbacks(tmp_path).made == []


def test_a_rollback_further_back_still_passes_over_what_earlier_ones_did(tmp_path):
    """From step 20 on the batches after the 60th, which the run had reached; the same where it is resumed."""
    rollbacks = Rollbacks(tmp_path)
    rollbacks.add(DivergedError("first", 52, 43), to=40)  # then step 48 takes batch 60
    rollbacks.add(DivergedError("second", 48, 39), to=20)
    for each in (rollbacks, Rollbacks(tmp_path)):
        assert [each.skipped(step) for step in (19, 20, 40, 60)] == [0, 40, 40, 40]
    rollbacks.back_to(10)  # the checkpoint of step 20 is gone
    assert [rollbacks.skipped(step) for step in (9, 10, 20)] == [0, 40, 40]
    assert rollbacks.counts() == {"rollbacks": 2}


RUN = dict(**ONE_STAGE, steps=8, log__checkpoint_every=2, mesh__data=1)


@pytest.fixture
def diverging(monkeypatch):
    """The guard objects at given steps, once each; which batches the run asks for is written down."""
    objections, positions, story = [], [], importlib.import_module("greenjax.tasks.pretrain")
    look, batches = Guard.look, story.train_batches

    def object_to(self, step, loss, skipped):
        if objections and step == objections[0]:
            raise DivergedError(f"step {objections.pop(0)}: made up", step, step - 1)
        look(self, step, loss, skipped)

    def watched(config, source, planner, position=0, *rest, **named):
        positions.append(position)
        return batches(config, source, planner, position, *rest, **named)

    monkeypatch.setattr(Guard, "look", object_to)
    monkeypatch.setattr(story, "train_batches", watched)
    return objections, positions


def test_a_run_goes_back_and_on_with_other_data(diverging, tmp_path):
    objections, positions = diverging
    objections += [6, 7]
    state = pretrain(small_config(**RUN), tmp_path)
    assert int(state.step) == 8
    # Back from step 6 to 4 (step 5 was not to be trusted), then from 7 to 4 again.
    made = json.loads((tmp_path / "rollbacks.json").read_text())
    assert [(each["after"], each["to"]) for each in made] == [(6, 4), (7, 4)]
    assert positions == [0, 4 + 2, 4 + 2 + 3]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line.get("rollbacks") for line in lines if "loss" in line] == 4 * [None] + 4 * [2]


def test_a_signal_in_the_step_of_a_rollback_stops_the_run(diverging, tmp_path, monkeypatch):
    objections, _ = diverging
    objections += [6]
    look = Guard.look

    def signalled(self, step, *rest):
        if objections == [step]:
            os.kill(os.getpid(), signal.SIGTERM)
        look(self, step, *rest)

    monkeypatch.setattr(Guard, "look", signalled)
    with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step 5 of 8"):
        pretrain(small_config(**RUN), tmp_path)
    assert Checkpointer(tmp_path).steps() == [2, 4, 5]


def test_rollbacks_come_to_an_end(diverging, tmp_path):
    objections, _ = diverging
    objections += [6, 7]
    with pytest.raises(DivergedError, match="step 7: made up"):
        pretrain(small_config(**RUN, guard__rollbacks=1), tmp_path)
    assert Checkpointer(tmp_path).steps() == [2, 4, 6]  # nothing is lost


def test_without_a_checkpoint_there_is_no_way_back(diverging, tmp_path):
    objections, _ = diverging
    objections += [2]
    with pytest.raises(DivergedError, match="step 2: made up"):
        pretrain(small_config(**RUN), tmp_path)
