"""What every family can do, tried with those that have no tests of the training step of their own."""

import shutil

import jax
import numpy as np
import pytest
from small import small_config
from test_step import BASE, assert_trained_alike, train

import greenjax
from greenjax import tasks

FAMILIES = ("swinv2", "convnextv2", "hiera", "pvt_v2", "vit")  # ConvNeXt has the convolutions of its V2


def config_of(family, **overrides):
    depths = {"hiera": (1, 1, 1), "vit": (1,)}.get(family, BASE["model__depths"])
    return small_config(family, **BASE | dict(model__depths=depths) | overrides)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_takes_images_that_are_not_square(family, tmp_path):
    """With one mask an image; a second half of the pre-training ends bit for bit as the first one did."""
    settings = dict(
        image_size=(16, 24),
        steps=2,
        optim__warmup_steps=1,
        data__split="train[:64]",
        data__eval_split="test[:16]",
        mesh__data=2,
    )
    config = config_of(family, **settings, mask__groups=16, model__drop_path=0.1, log__checkpoint_every=1)
    whole = tasks.run(config, tmp_path / "pre")
    shutil.rmtree(tmp_path / "pre" / "checkpoints" / "2")
    jax.tree.map(np.testing.assert_array_equal, tasks.run(config, tmp_path / "pre"), whole)

    init = dict(settings, init=str(tmp_path / "pre"))
    tuned = tasks.run(config_of(family, **init, task="finetune", optim__layer_decay=0.5), tmp_path / "tuned")
    assert int(tuned.step) == 2
    tasks.run(config_of(family, **init, task="knn"), tmp_path / "knn")
    assert (tmp_path / "knn" / "results.json").is_file()

    model = greenjax.load(tmp_path / "tuned")
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 1)).astype(np.float32)
    maps = greenjax.features(model, images)
    assert [each.shape[1:3] for each in maps] == [model.grid.shape(stage) for stage in range(len(maps))]
