"""The whole detector: its shapes, what cannot reach its results, and where gradients go."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import LOSSES, small_config

from greenjax.backbones.layers import Keys
from greenjax.data.detection.targets import packed
from greenjax.errors import InputError
from greenjax.models import Detector

SMALL = dict(
    task="finetune",
    model__depths=(1, 1),
    model__num_classes=3,
    detect__anchor_sizes=(8, 16, 32),
    detect__fpn_dim=8,
    detect__pre_nms=(40, 30),
    detect__post_nms=(24, 16),
    detect__box_samples=16,
    detect__rpn_samples=32,
    detect__max_detections=9,
    detect__score_threshold=0.2,
)


@pytest.fixture(scope="module")
def detector():
    """One whose heads are drawn large, so that scores and boxes differ."""
    model = jax.device_put(Detector(small_config(**SMALL), rngs=Keys(0)))
    for layer in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred):
        layer.kernel[...] = layer.kernel[...] * 100
    model.roi_heads.box_predictor.cls_score.kernel[...] *= 4
    return model


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)


def objects(*boxes, seed=0):
    masks = (np.random.default_rng(seed).random((len(boxes), 32, 32)) > 0.5).astype(np.uint8)
    labels = 1 + np.arange(len(boxes)) % 3
    return dict(boxes=np.array(boxes, np.float32).reshape(-1, 4), labels=labels, masks=masks)


TARGETS = [objects((2, 3, 14, 12), (10, 12, 30, 28)), objects((0, 0, 9, 9), seed=1)]


def test_detections_have_a_fixed_number_of_places_by_falling_score(detector, images):
    out = detector(images)
    assert [x.shape for x in out] == [(2, 9, 4), (2, 9), (2, 9), (2, 9, 28, 28), (2, 9)]
    assert out.valid.sum() > 0 and (np.diff(out.scores, axis=1) <= 0).all()
    valid = np.asarray(out.valid)
    assert (np.asarray(out.scores)[valid] > 0.2).all() and not np.asarray(out.scores)[~valid].any()
    assert set(np.asarray(out.labels)[valid]) <= {1, 2, 3} and not np.asarray(out.labels)[~valid].any()
    boxes = np.asarray(out.boxes)[valid]
    assert (boxes >= 0).all() and (boxes <= 32).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((np.asarray(out.masks) >= 0) & (np.asarray(out.masks) <= 1)).all()


def test_a_run_sees_pixels_as_the_loaded_detector_does(detector):
    """A run's images come from files, and its model says so. Their pixels are normalised once."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    of_run = nnx.merge(*nnx.split(detector))
    of_run.floats_are_raw = True
    sizes = jnp.full((2, 2), 32)
    normal = (pixels.astype(np.float32) / 255 - 0.3) / 0.4
    expected = detector.pyramid(jnp.asarray(normal), sizes)
    for model in (of_run, detector):
        for found, level in zip(model.pyramid(jnp.asarray(pixels), sizes), expected, strict=True):
            np.testing.assert_allclose(found, level, rtol=0, atol=1e-5)


def test_losses_have_the_names_of_torchvision_and_depend_on_the_key_alone(detector, images):
    first, again, other = (detector.losses(images, TARGETS, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.keys() == LOSSES
    assert all(np.isfinite(value) and value > 0 for value in first.values())
    assert first == again != other


def test_bfloat16_gives_the_losses_within_its_precision(images):
    """All anchors and boxes are taken: a sample would depend on the last bits of scores."""
    options = SMALL | dict(detect__rpn_samples=4000, detect__box_samples=4000)
    losses = [
        Detector(small_config(**options, model__dtype=dtype), rngs=Keys(0)).losses(images, TARGETS)
        for dtype in ("float32", "bfloat16")
    ]
    for name in LOSSES:
        wide, narrow = (float(found[name]) for found in losses)
        assert 0 < abs(narrow - wide) < 2**-6 * wide, name  # four times the error of one rounding


def test_padding_of_images_reaches_nothing(detector, images):
    """A batch of a smaller image is the same alone, and with anything beyond its true size."""
    sizes = np.array([[26, 21], [26, 21]])
    noisy = images.copy()
    noisy[:, 26:], noisy[:, :, 21:] = 1e3, -1e3
    alone, padded = detector(images[:, :26, :21]), detector(noisy, sizes)
    jax.tree.map(np.testing.assert_array_equal, alone, padded)
    assert (np.asarray(padded.boxes) <= [21, 26, 21, 26]).all()


def test_padding_of_targets_reaches_neither_losses_nor_gradients(detector, images):
    graphdef, params = nnx.split(detector)

    def losses(params, targets):
        model = nnx.merge(graphdef, params)
        return model.training_losses(jnp.asarray(images), targets, jnp.full((2, 2), 32), jax.random.key(0))

    targets = packed(TARGETS, (32, 32), 3)
    noisy = jax.tree.map(np.copy, targets)
    for x, noise in ((noisy.boxes, np.nan), (noisy.labels, 3), (noisy.masks, np.nan), (noisy.regions, 0.0)):
        x[~targets.valid] = noise
    total = jax.jit(jax.grad(lambda params, targets: sum(losses(params, targets).values())))
    clean = total(params, jax.tree.map(jnp.asarray, targets))
    jax.tree.map(np.testing.assert_array_equal, clean, total(params, jax.tree.map(jnp.asarray, noisy)))
    assert total._cache_size() == 1
    without = [path for path, leaf in jax.tree.leaves_with_path(clean) if not np.asarray(leaf).any()]
    assert not without, without


def test_a_detector_on_pvt_v2_learns_in_every_parameter(images):
    """Its last stage ends with a norm of its own, and its embeddings overlap."""
    graphdef, params = nnx.split(jax.device_put(Detector(small_config("pvt_v2", **SMALL), rngs=Keys(0))))
    targets = jax.tree.map(jnp.asarray, packed(TARGETS, (32, 32), 3))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def learn(params):
        model = nnx.merge(graphdef, params)
        losses = model.training_losses(jnp.asarray(images), targets, jnp.full((2, 2), 32), jax.random.key(0))
        return sum(losses.values()), losses

    (_, losses), gradients = learn(params)
    assert losses.keys() == LOSSES and all(np.isfinite(value) and value > 0 for value in losses.values())
    without = [path for path, leaf in jax.tree.leaves_with_path(gradients) if not np.asarray(leaf).any()]
    assert not without, without


def test_an_image_without_objects_has_losses_of_the_background_alone(detector, images):
    none = packed(TARGETS, (32, 32), 3)
    none.valid[:] = False
    losses = detector.losses(images, none, key=jax.random.key(0))
    assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    assert losses["loss_objectness"] > 0 and losses["loss_classifier"] > 0


WRONG = {
    "images: found shape .1, 40, 32, 1.*up to": (np.zeros((1, 40, 32, 1), np.float32), [objects()], None),
    "sizes: found": (np.zeros((1, 32, 32, 1), np.float32), [objects()], np.array([32, 32])),
    "expected one for each of the 1 images": (np.zeros((1, 32, 32, 1), np.float32), TARGETS, None),
    "found 2, expected one for each of the 1 images": (
        np.zeros((1, 32, 32, 1), np.float32),
        packed(TARGETS, (32, 32), 3),
        None,
    ),
    "has no 'masks'": (np.zeros((1, 32, 32, 1), np.float32), [dict(boxes=[], labels=[])], None),
    "'labels'.*from 1 to 3": (np.zeros((1, 32, 32, 1), np.float32), [objects((1, 1, 2, 2)) | dict(labels=[4])], None),
    "'boxes'.*x0 < x1": (np.zeros((1, 32, 32, 1), np.float32), [objects((5, 1, 2, 2))], None),
    "'masks'.*h, w": (
        np.zeros((1, 32, 32, 1), np.float32),
        [objects((1, 1, 2, 2)) | dict(masks=np.ones((1, 4)))],
        None,
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_refused_in_one_line(detector, message):
    images, targets, sizes = WRONG[message]
    with pytest.raises(InputError, match=message):
        detector.losses(images, targets, sizes)
