"""What every family can do, tried with those that have no tests of the training step of their own."""

import numpy as np
import pytest
from small import small_config
from test_step import BASE, assert_trained_alike, train

import greenjax

FAMILIES = ("swinv2", "convnextv2", "hiera")  # ConvNeXt has the convolutions of its V2


def config_of(family, **overrides):
    depths = dict(model__depths=(1, 1, 1)) if family == "hiera" else {}
    return small_config(family, **BASE | depths | overrides)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_is_the_same_on_any_mesh_with_accumulation_and_checkpointing(family):
    expected, reference, _ = train(config_of(family, mesh__data=1), 3)
    divided = dict(mesh__data=2, mesh__fsdp=2, optim__accumulation=2, model__remat=True)
    losses, state, compiled = train(config_of(family, **divided), 3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.ptp(expected) > 1e-4 and compiled == 1
    assert_trained_alike(state, reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_gives_the_loss_within_its_precision(family):
    losses = []
    for dtype in ("float32", "bfloat16"):
        model = greenjax.build(config_of(family, model__dtype=dtype))
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
        losses.append(float(model(images, np.random.default_rng(1).random(model.grid.units) < 0.3).loss))
    assert abs(losses[0] - losses[1]) < 2**-7 * losses[0]  # two units in the last place
