"""One update: the same function on any mesh, compiled once, unharmed by what is not finite."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small import small_config

import greenjax
from greenjax.backbones.geometry import make_planner
from greenjax.data.loader import blank_batch, blank_labelled_batch, train_batches
from greenjax.data.open import open_source
from greenjax.models.parameters import decayed
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.placement import batch_sharding
from greenjax.tasks.classify import classification
from greenjax.tasks.pretrain import pretraining
from greenjax.training.optim import (
    clip_by_global_norm,
    global_norm,
    learning_rate,
    make_optimizer,
    run_length,
    scale_by_adam,
)
from greenjax.training.sharding import batch_shapes, make_mesh
from greenjax.training.state import abstract_state, init_state
from greenjax.training.step import make_update

BASE = dict(model__depths=(1, 1), data__batch_size=16, optim__base_lr=1e-2, optim__warmup_steps=2)
TWINS = dict(family="twins", model__depths=(2, 1))  # both kinds of attention


def losses_of(steps=3, **overrides):
    return train(small_config(**BASE | overrides), steps)


def train(config, steps, state=None):
    """Losses of the first steps (or of those after a state), the final state, how often the step was compiled."""
    mesh = make_mesh(config)
    rate = learning_rate(config, *run_length(config, images=1500))
    update = make_update(pretraining(config), mesh, rate)
    state = init_state(config, mesh) if state is None else state
    source = open_source(config.data, "train")
    batches = train_batches(config, source, make_planner(config), int(state.step))
    losses = []
    for _ in range(steps):
        state, metrics = update(state, jax.device_put(next(batches), batch_sharding(mesh)))
        losses.append(metrics["loss"])
    return np.array(losses), state, update._cache_size()


def assert_trained_alike(ours, theirs):
    """All parameters but the keys' biases: the softmax does not see them, and Adam makes steps of rounding errors."""
    for (path, a), b in zip(jax.tree.leaves_with_path(ours.params), jax.tree.leaves(theirs.params)):
        a, b = np.array(a), np.array(b)
        if [entry.key for entry in path[-2:]] == ["qkv", "bias"]:
            for array in (a, b):
                array.reshape(3, -1)[1] = 0
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=str(path))


@pytest.fixture(scope="module")
def one_device():
    return losses_of(10, mesh__data=1)


@pytest.mark.parametrize(
    "overrides",
    [
        dict(mesh__data=8),
        dict(mesh__data=1, mesh__fsdp=8),
        dict(mesh__data=4, mesh__fsdp=2),
        dict(mesh__data=2, optim__accumulation=4),
    ],
    ids=str,
)
def test_any_mesh_and_any_accumulation_train_alike(one_device, overrides):
    expected, reference, _ = one_device
    losses, state, compiled = losses_of(10, **overrides)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01  # it is not the same loss all the time
    assert compiled == 1
    assert_trained_alike(state, reference)


@pytest.fixture(scope="module")
def twins_on_one_device():
    return losses_of(10, **TWINS, mesh__data=1)


@pytest.mark.parametrize(
    "overrides",
    [
        dict(mesh__data=1, mesh__fsdp=8),
        dict(mesh__data=2, mesh__fsdp=2, optim__accumulation=2, model__remat=True),
        pytest.param(
            dict(mesh__data=2, mesh__fsdp=2, optim__accumulation=2, model__remat=True, model__sparse_conv="spconv"),
            marks=pytest.mark.spconv,
        ),
    ],
    ids=str,
)
def test_twins_train_alike_too(twins_on_one_device, overrides):
    """On any mesh, with accumulation, recomputed activations, and spconv called on every device for its own masks."""
    expected, reference, _ = twins_on_one_device
    losses, state, compiled = losses_of(10, **TWINS, **overrides)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert compiled == 1
    assert_trained_alike(state, reference)


def test_twins_resume_from_a_checkpoint_bit_for_bit(twins_on_one_device, tmp_path):
    losses, state, _ = twins_on_one_device
    config = small_config(**BASE | TWINS, mesh__data=1)
    _, halfway, _ = train(config, 9)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(9, halfway)
    restored = Checkpointer(tmp_path).restore(abstract_state(config, make_mesh(config)))
    last, resumed, _ = train(config, 1, restored)
    assert last == losses[9]
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


@pytest.mark.spconv
def test_digits_twins_trains_with_spconv_as_with_native():
    file, few = (
        Path(__file__).parent.parent / "configs" / "digits_twins.py",
        {"mesh.data": 1, "data.batch_size": 32, "optim.base_lr": 8e-3},
    )
    (native, _, _), (spconv, _, compiled) = (
        train(greenjax.load_config(file, few | {"model.sparse_conv": backend}), 50) for backend in ("native", "spconv")
    )
    np.testing.assert_allclose(spconv, native, atol=1e-4)
    assert compiled == 1
    assert native[-5:].mean() < 0.7 * native[0]


def test_fsdp_splits_the_largest_axis():
    config = small_config(**BASE, mesh__data=2, mesh__fsdp=4)
    mesh = make_mesh(config)
    state = init_state(config, mesh)
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
    mesh = make_mesh(config)
    update = make_update(pretraining(config), mesh, learning_rate(config, 10, 2))
    batch = next(train_batches(config, open_source(config.data, "train"), make_planner(config), 0))
    good = batch._replace(images=batch.images.astype(np.float32) / 255)
    bad = good._replace(images=np.where(np.arange(8)[:, None, None, None, None] == 3, np.nan, good.images))

    state, metrics = update(init_state(config, mesh), good)
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
        (dict(mask__groups=4), r"mask.groups is 4: expected a multiple of optim.accumulation x devices .*, 1 x 8"),
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


def test_the_rate_falls_by_steps_after_its_warm_up():
    """The recipe of the paper's detectors: 1e-4 at batch 16, 1,000 updates of warm-up, two falls by ten."""
    config = small_config(data__batch_size=16, optim__base_lr=1.6e-3, optim__warmup_lr=1.6e-6, optim__schedule="steps")
    rate = jax.jit(learning_rate(config, total=90_000, warmup=1000))
    found = [rate(step) for step in (0, 500, 1000, 67_499, 67_500, 68_400, 82_499, 82_500, 82_800, 90_000)]
    expected = [1e-7, 5.005e-5, 1e-4, 1e-4, 1e-5, 1e-5, 1e-5, 1e-6, 1e-6, 1e-6]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(learning_rate(config, 100, 0)(0), 1e-4, rtol=1e-5)


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
    names = decayed_names(config, params)
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
    expected = jax.tree.map(lambda p, flag: 0.5 * p if flag else 0 * p, params, decayed(config, params))
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_weight_decay_leaves_the_positional_encoding_of_twins_alone():
    config = small_config("twins")
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: greenjax.build(config))))
    assert decayed_names(config, params, 2) == {
        **{f"{layer}/kernel": True for layer in ("qkv", "q", "kv", "sr", "proj", "fc1", "fc2", "patch_embed")},
        **{f"{layer}/kernel": True for layer in ("embed", "head")},
        **{f"{layer}/bias": False for layer in ("qkv", "q", "kv", "sr", "proj", "fc1", "fc2", "patch_embed")},
        **{f"{layer}/bias": False for layer in ("embed", "head")},
        **{f"{norm}/{part}": False for norm in ("norm", "norm1", "norm2") for part in ("scale", "bias")},
        "peg/kernel": False,
        "peg/bias": False,
        "decoder/mask_token": False,
    }


def decayed_names(config, params, parts=1):
    """{the last parts of a parameter's path: does it decay?}"""
    return {
        "/".join(jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-parts:]): flag
        for path, flag in jax.tree.flatten_with_path(decayed(config, params))[0]
    }


def test_the_optimizer_is_optax_adamw_with_clipping():
    config = small_config(optim__weight_decay=0.1, optim__clip=1.0, optim__b2=0.95)
    tx = make_optimizer(config)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.01, 0.9, 0.95, weight_decay=0.1, mask=partial(decayed, config))
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


def test_the_weight_average_follows_its_formula():
    config = small_config(**BASE, ema=0.9, mesh__data=1)
    states = [init_state(config, make_mesh(config))]
    average = jax.tree.map(np.asarray, states[0].params)
    for _ in range(2):
        _, state, _ = train(config, 1, jax.tree.map(jnp.copy, states[-1]))
        states.append(state)
        average = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * np.asarray(new), average, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states[-1].ema, average)
    new, old = (tree["encoder"]["norm"]["bias"] for tree in (states[-1].params, average))
    assert float(np.abs(new - old).max()) > 1e-4


def test_the_optimizer_is_optax_adam_behind_its_clipping_and_keeps_its_state_where_told():
    rng = np.random.default_rng(0)
    grads = {"a": jnp.asarray(rng.normal(size=(5, 3)) * 9, jnp.float32), "b": jnp.asarray(rng.normal(size=4))}
    ours = optax.chain(clip_by_global_norm(2.0), scale_by_adam(0.9, 0.95, 1e-8))
    theirs = optax.chain(optax.clip_by_global_norm(2.0), optax.scale_by_adam(0.9, 0.95, 1e-8))
    mine, reference = ours.init(grads), theirs.init(grads)
    for scale in (1.0, 0.01, 3.0):  # clipped, not clipped, clipped
        scaled = optax.tree.scale(scale, grads)
        updates, mine = ours.update(scaled, mine, finite=True)
        expected, reference = theirs.update(scaled, reference)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), updates, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), mine, reference)
    broken = jax.tree.map(lambda g: g * jnp.nan, grads)
    _, after = ours.update(broken, mine, finite=False)
    jax.tree.map(np.testing.assert_array_equal, after, mine)


def test_the_norm_of_all_is_that_of_optax():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "bias": (3,), "scale": (7,), "token": (1, 2, 4), "rate": ()}
    tree = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    for part in (tree, {"kernel": tree["kernel"]}, {"bias": tree["bias"]}):
        np.testing.assert_allclose(global_norm(part), optax.tree.norm(part), rtol=1e-6)


def test_an_update_compiled_ahead_is_the_step_and_takes_nothing_else():
    config = small_config(**BASE, mask__groups=4, mesh__data=2, mesh__fsdp=2)
    mesh = make_mesh(config)
    step = make_update(pretraining(config), mesh, learning_rate(config, 10, 2))
    planner = make_planner(config)
    blank = blank_batch(config, planner.example(config.mask.groups))
    update = BackgroundJit(step)
    update.start(abstract_state(config, mesh), batch_shapes(blank, mesh))
    batches = train_batches(config, open_source(config.data, "train"), planner, 0)
    ours, theirs = init_state(config, mesh), init_state(config, mesh)
    for _ in range(2):  # the second time from its own result
        batch = next(batches)
        assert jax.tree.map(np.shape, batch) == jax.tree.map(np.shape, blank)
        batch = jax.device_put(batch, batch_sharding(mesh))
        (ours, metrics), (theirs, expected) = update(ours, batch), step(theirs, batch)
    jax.tree.map(np.testing.assert_array_equal, (ours, metrics), (theirs, expected))
    assert step._cache_size() == 1 and update.flops > 0
    with pytest.raises(TypeError, match="compiled"):
        update(ours, batch._replace(images=batch.images.astype(jnp.float32)))


@pytest.mark.parametrize(
    "overrides",
    [
        dict(model__drop_path=0.2, optim__accumulation=2, ema=0.9),
        dict(method="simmim", mask__groups=4),
        dict(task="finetune", model__num_classes=10, model__drop_path=0.2, data__mixup=0.8, data__cutmix=1.0),
        dict(task="linear", model__num_classes=10, optim__name="lars"),
    ],
)
def test_an_update_stays_float32_where_jax_has_float64(overrides):
    """JAX_ENABLE_X64=1: the state keeps its types, and draws at random are those of float32."""
    config = small_config(mesh__data=1, **overrides)
    with jax.enable_x64(True):
        mesh = make_mesh(config)
        state = abstract_state(config, mesh)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
        if config.task == "pretrain":
            batch = blank_batch(config, make_planner(config).example(config.mask.groups))
            task = pretraining(config)
        else:
            batch = blank_labelled_batch(config)
            task = classification(config)
        after, metrics = make_update(task, mesh, learning_rate(config, 10, 1)).eval_shape(
            state, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
        )
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert all(metric.dtype.itemsize == 4 for metric in metrics.values())
