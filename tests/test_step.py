"""One update: the same function on any mesh, compiled once, unharmed by what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small import small_config

import greenjax
from greenjax.data import open_source, train_batches
from greenjax.planning import Planner
from greenjax.training.optim import decayed, learning_rate, make_optimizer, run_length
from greenjax.training.sharding import batch_sharding, make_mesh
from greenjax.training.state import init_state, model_graph
from greenjax.training.step import make_train_step

BASE = dict(model__depths=(1, 1), data__batch_size=16, optim__base_lr=1e-2, optim__warmup_steps=2)


def losses_of(steps=3, **overrides):
    """Losses of the first steps, the final state, and how often the step was compiled."""
    config = small_config(**BASE | overrides)
    mesh, tx = make_mesh(config), make_optimizer(config)
    update = make_train_step(model_graph(config), tx, learning_rate(config, 10, 2), config, mesh)
    state = init_state(config, tx, mesh)
    source = open_source(config.data, "train")
    batches = train_batches(config, source, Planner.from_config(config), 0)
    losses = []
    for _ in range(steps):
        state, metrics = update(state, jax.device_put(next(batches), batch_sharding(mesh)))
        losses.append(metrics["loss"])
    return np.array(losses), state, update._cache_size()


@pytest.fixture(scope="module")
def one_device():
    return losses_of(mesh__data=1)


@pytest.mark.parametrize(
    "overrides",
    [
        dict(mesh__data=8),
        dict(mesh__data=2, mesh__fsdp=4),
        dict(mesh__data=2, optim__accumulation=4),
    ],
    ids=str,
)
def test_any_mesh_and_any_accumulation_train_alike(one_device, overrides):
    expected, reference, _ = one_device
    losses, state, compiled = losses_of(**overrides)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01  # it is not the same loss all the time
    assert compiled == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, reference.params)


def test_fsdp_splits_the_largest_axis():
    config = small_config(**BASE, mesh__data=2, mesh__fsdp=4)
    mesh = make_mesh(config)
    state = init_state(config, make_optimizer(config), mesh)
    kernel = state.params["encoder"]["stages"][1]["blocks"][0]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (16, 64)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(16, 16)}


def test_one_mask_an_image_runs_in_the_same_step():
    losses, _, compiled = losses_of(mask__groups=16, mesh__data=2, model__drop_path=0.2)
    assert np.isfinite(losses).all()
    assert compiled == 1


def test_simmim_trains_with_one_mask_an_image():
    losses, _, compiled = losses_of(4, method="simmim", mask__groups=16, mask__ratio=0.6, mesh__data=2)
    assert losses[-1] < losses[0]
    assert compiled == 1


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    config = small_config(**BASE, mesh__data=1)
    mesh, tx = make_mesh(config), make_optimizer(config)
    update = make_train_step(model_graph(config), tx, learning_rate(config, 10, 2), config, mesh)
    batch = next(train_batches(config, open_source(config.data, "train"), Planner.from_config(config), 0))
    good = batch._replace(images=batch.images.astype(np.float32) / 255)
    bad = good._replace(images=np.where(np.arange(8)[:, None, None, None, None] == 3, np.nan, good.images))

    state, metrics = update(init_state(config, tx, mesh), good)
    before = jax.device_get(state)
    state, metrics = update(state, bad)
    jax.tree.map(np.testing.assert_array_equal, (before.params, before.opt), jax.device_get((state.params, state.opt)))
    assert not np.isfinite(metrics["loss"])
    assert (int(state.step), int(state.counts.skipped), int(state.counts.skipped_in_a_row)) == (2, 1, 1)
    state, _ = update(state, good)
    assert (int(state.step), int(state.counts.skipped), int(state.counts.skipped_in_a_row)) == (3, 1, 0)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(state.params)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(mask__groups=4), r"mask.groups is 4: expected a multiple of devices \* optim.accumulation, 8"),
        (
            dict(mesh__fsdp=3, mask__groups=24, data__batch_size=24),
            "mesh.fsdp is 3: expected a divisor of the 8",
        ),
        (dict(mesh__data=16, mask__groups=16), "mesh.data is 16: expected at most 8"),
    ],
    ids=str,
)
def test_meshes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(small_config(**overrides))


def test_learning_rate_is_scaled_by_the_batch_and_follows_warm_up_and_cosine():
    config = small_config(data__batch_size=512, mask__groups=8, optim__base_lr=1.0, optim__min_lr=0.1)
    rate = learning_rate(config, total=110, warmup=10)
    scale = 512 / 256
    np.testing.assert_allclose(rate(0), scale * 1.5e-7, atol=1e-7 * scale)  # float32 beside a peak of 2
    np.testing.assert_allclose(rate(5), scale * (1.5e-7 + 1) / 2, rtol=1e-5)
    np.testing.assert_allclose(rate(10), scale, rtol=1e-5)
    np.testing.assert_allclose(rate(35), scale * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2), rtol=1e-5)
    np.testing.assert_allclose(rate(110), scale * 0.1, rtol=1e-5)
    np.testing.assert_allclose(learning_rate(config, 100, 0)(0), scale, rtol=1e-5)


def test_epochs_become_steps():
    config = small_config(steps=0, epochs=10, optim__warmup_epochs=3, data__batch_size=16)
    assert run_length(config, images=100) == (62, 18)
    with pytest.raises(ValueError, match=r"optim.warmup_epochs is 3: 1 of 1 steps"):
        run_length(small_config(steps=0, epochs=4, optim__warmup_epochs=3, data__batch_size=32), images=11)
    with pytest.raises(ValueError, match="epochs is 10: expected enough for one batch of 16 from 1 images"):
        run_length(config, images=1)


def test_weight_decay_reaches_matrices_only():
    config = small_config(optim__weight_decay=0.5, optim__clip=0.0)
    params = nnx.to_pure_dict(nnx.state(greenjax.build(config)))
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]: flag
        for path, flag in jax.tree.flatten_with_path(decayed(params))[0]
    }
    assert names == {
        "kernel": True,
        "bias": False,
        "scale": False,
        "mask_token": False,
        "relative_position_bias_table": False,
    }
    tx = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    expected = jax.tree.map(lambda p, flag: 0.5 * p if flag else 0 * p, params, decayed(params))
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_the_optimizer_is_optax_adamw_with_clipping():
    config = small_config(optim__weight_decay=0.1, optim__clip=1.0, optim__b2=0.95)
    tx = make_optimizer(config)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.01, 0.9, 0.95, weight_decay=0.1, mask=decayed)
    )
    params = {"layer": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
    ours, theirs, state, other = params, params, tx.init(params), reference.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda p, step=step: jnp.sin(p + step) * 3, params)
        updates, state = tx.update(grads, state, ours)
        ours = jax.tree.map(lambda p, u: p - 0.01 * u, ours, updates)
        updates, other = reference.update(grads, other, theirs)
        theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
