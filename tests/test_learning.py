"""A run that learns nothing is told so, once and early."""

import math

import pytest
from small import small_config

from greenjax.training.learning import nothing_learnt, time_to_tell
from greenjax.training.optim import learning_rate


def lines(*losses, constant=0.93):
    first = {"step": 0, "held_out_loss": 1.2} | ({"best_constant_loss": constant} if constant else {})
    return [first, *({"step": 50 * (i + 1), "loss": loss} for i, loss in enumerate(losses))]


def test_a_loss_above_the_best_constant_is_told_with_what_to_try():
    config = small_config(steps=10_000, data__batch_size=32, optim__base_lr=1.5e-4)
    assert nothing_learnt(config, lines(1.1, 0.98), 10_000) == (
        "the loss is 0.98 after 100 of 10,000 updates, no better than the best constant, 0.93: try another"
        " optim.base_lr, mostly a higher one (now 0.00015 x 32/256 = 1.9e-05)"
    )
    assert max(float(learning_rate(config, 100, 10)(step)) for step in range(100)) == pytest.approx(1.875e-5)


@pytest.mark.parametrize("losses", [(1.1, 0.92), (0.92, 1.1), (None,), ()])
def test_a_loss_that_was_below_it_or_is_not_known_is_not(losses):
    assert nothing_learnt(small_config(), lines(*losses), 1000) is None


@pytest.mark.parametrize(("loss", "told"), [(1.01, True), (0.99, False)])
def test_without_held_out_images_targets_have_variance_one(loss, told):
    text = nothing_learnt(small_config(), lines(loss, constant=None), 1000)
    assert ("predicting each unit's mean" in text) if told else text is None


def test_pixels_have_no_known_bound():
    assert nothing_learnt(small_config(method="simmim"), lines(9.0, constant=None), 1000) is None


@pytest.mark.parametrize(("loss", "told"), [(2.31, True), (2.30, False)])
def test_a_classifier_is_compared_with_guessing(loss, told):
    config = small_config(task="finetune", model__num_classes=10)
    assert 2.30 < math.log(10) < 2.31
    text = nothing_learnt(config, lines(loss, constant=None), 1000)
    assert ("guessing" in text) if told else text is None


@pytest.mark.parametrize(("total", "warmup", "step"), [(10_000, 500, 1000), (10_000, 2000, 2000), (200, 5, 100)])
def test_it_is_told_after_a_tenth_and_the_warmup(total, warmup, step):
    assert time_to_tell(total, warmup) == step
