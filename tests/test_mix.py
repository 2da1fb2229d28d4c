"""Mixup and CutMix: targets have the shares of the pixels, whatever is mixed and wherever it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from greenjax.tasks.mix import mix, one_hot, own_weights

B, H, W = 16, 12, 20
OFF = dict(mixup=0.0, cutmix=0.0)


def batch(dtype=np.float32, b=B):
    """Image i has the value i everywhere and class i."""
    values = np.arange(b, dtype=dtype)[:, None, None, None]
    return jnp.asarray(np.broadcast_to(values, (b, H, W, 2))), jnp.eye(b, dtype=jnp.float32)


compiled = jax.jit(mix, static_argnames=("mixup", "cutmix", "prob", "switch"))


def mixed(seed=0, dtype=np.float32, b=B, **how):
    images, targets = compiled(*batch(dtype, b), jax.random.key(seed), **(OFF | how))
    return np.asarray(images), np.asarray(targets)


def own_and_partner(targets):
    """Each image's own share and its partner's."""
    b = len(targets)
    return targets[np.arange(b), np.arange(b)], targets[np.arange(b), b - 1 - np.arange(b)]


HOWS = [dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0), dict(mixup=0.8, cutmix=1.0, prob=0.5)]


@pytest.mark.parametrize("how, dtype", [*((how, np.float32) for how in HOWS), (HOWS[2], np.uint8)])
def test_targets_sum_to_one_and_images_keep_their_kind(how, dtype):
    images, targets = mixed(dtype=dtype, **how)
    assert images.shape == (B, H, W, 2) and images.dtype == dtype
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    own, partner = own_and_partner(targets)
    np.testing.assert_allclose(own + partner, 1, rtol=1e-6)  # no one else has a share


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_cutmix_shares_are_the_counted_pixels(dtype):
    cuts = 0
    for seed in range(4):
        images, targets = mixed(seed, dtype, cutmix=1.0)
        for i, (image, own) in enumerate(zip(images, own_and_partner(targets)[0])):
            ours = image[..., 0] == i
            assert (image[..., 0] == np.where(ours, i, B - 1 - i)).all() and (image[..., 0] == image[..., 1]).all()
            assert own == pytest.approx(ours.sum() / (H * W), abs=1e-7)
            rows, columns = (~ours).any(axis=1).sum(), (~ours).any(axis=0).sum()
            assert (~ours).sum() == rows * columns  # one box
            cuts += rows > 0
    assert cuts > 3 * B


@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_cutmix_leaves_missing_pixels_where_they_are(prob):
    """NaN of the partner stays outside of what is cut from it, and images that are not mixed stay as they are."""
    images, targets = batch()
    holes = np.random.default_rng(0).random(images.shape) < 0.1
    found, shares = compiled(
        jnp.where(holes, jnp.nan, images), targets, jax.random.key(0), **OFF | dict(cutmix=1.0, prob=prob)
    )
    whole, expected = mixed(cutmix=1.0, prob=prob)
    ours = whole == np.asarray(images)
    np.testing.assert_array_equal(found, np.where(np.where(ours, holes, holes[::-1]), np.nan, whole))
    np.testing.assert_array_equal(shares, expected)


@pytest.mark.parametrize("how", [dict(mixup=0.8), HOWS[3]])
def test_the_mean_of_an_image_is_that_of_its_target(how):
    """True for both kinds: the value of image i is i, so its mean is the expected class."""
    images, targets = mixed(**how)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), targets @ np.arange(B), rtol=1e-5)  # float32 sums


def test_mixup_mixes_bytes_to_the_nearest():
    (ours, _), (exact, _) = mixed(dtype=np.uint8, mixup=0.8), mixed(mixup=0.8)
    np.testing.assert_array_equal(ours, np.round(exact))
    assert exact.var(axis=(1, 2, 3)).max() < 1e-9  # the same share everywhere


def shares(count=4096, **how):
    """The own shares of many images and which of them are cut."""
    options = dict(mixup=0.0, cutmix=0.0, prob=1.0, switch=0.5) | how
    weights = np.asarray(own_weights(jax.random.key(1), (count, 16, 16), **options))
    flat = weights.reshape(count, -1)
    return flat.mean(axis=1), np.isin(flat, (0, 1)).all(axis=1) & (np.ptp(flat, axis=1) > 0)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_the_share_of_mixup_is_beta_distributed(alpha):
    lam, _ = shares(mixup=alpha)
    assert lam.mean() == pytest.approx(0.5, abs=0.03)
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)
    assert len(np.unique(lam)) > 4000 or alpha < 0.5  # every image draws its own


def test_the_share_of_cutmix_is_spread_and_boxes_may_touch_any_border():
    lam, cut = shares(cutmix=1.0)
    assert lam.min() < 0.2
    assert lam.mean() > 0.5 and np.histogram(lam, 5, (0, 1))[0].min() > 10  # cut at borders: smaller boxes
    assert cut.mean() > 0.9
    weights = np.asarray(own_weights(jax.random.key(1), (4096, 16, 16), 0.0, 1.0, 1.0, 0.5))
    cut_where = 1 - weights.mean(axis=0)
    assert cut_where.min() > 0.1 and np.abs(cut_where - cut_where[:, ::-1]).max() < 0.1


def test_probabilities_say_which_images_are_mixed_and_how():
    lam, cut = shares(mixup=1.0, cutmix=1.0, prob=0.6, switch=0.25)
    assert (lam < 1).mean() == pytest.approx(0.6, abs=0.04)
    assert cut.mean() == pytest.approx(0.6 * 0.25, abs=0.03)
    assert not shares(mixup=1.0, cutmix=1.0, switch=0.0)[1].any()


@pytest.mark.parametrize("how", [OFF, dict(mixup=0.8, cutmix=1.0, prob=0.0)])
def test_off_is_the_identity(how):
    images, targets = batch()
    ours, theirs = mix(images, targets, jax.random.key(0), **how)
    assert ours is images and theirs is targets


def test_an_image_without_partner_is_mixed_with_itself():
    images, targets = mixed(b=5, mixup=0.8, cutmix=1.0)
    assert images[2] == pytest.approx(2) and targets[2, 2] == pytest.approx(1)


def test_devices_change_nothing():
    """Partners may lie on different devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    step = partial(compiled, mixup=0.8, cutmix=1.0)
    images, targets = batch(np.uint8)
    placed = jax.device_put((images, targets), NamedSharding(mesh, P("data")))
    key = jax.random.key(3)
    for ours, expected in zip(step(*placed, key), step(images, targets, key)):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(expected), atol=1e-6)


def test_different_keys_mix_differently():
    assert not np.array_equal(mixed(0, mixup=0.8)[0], mixed(1, mixup=0.8)[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_targets(smoothing):
    targets = np.asarray(one_hot(jnp.array([2, 0]), 4, smoothing))
    off = smoothing / 4
    expected = np.full((2, 4), off)
    expected[[0, 1], [2, 0]] = 1 - smoothing + off
    np.testing.assert_allclose(targets, expected, atol=1e-7)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
