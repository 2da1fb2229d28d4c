"""Whole detectors in layout torchvision: the names of its Mask R-CNN, and what their tensors mean in PyTorch.

tests/parity_torchvision.py compares whole detectors where torchvision is installed.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import small_config

import greenjax
from greenjax.backbones.swin.weights import LAYOUTS
from greenjax.errors import InputError
from greenjax.interop.layouts import export_line, layout_names
from greenjax.interop.loading import initial_model
from greenjax.interop.weights import flat_weights

SMALL = dict(
    task="detect",
    model__in_channels=3,
    data__mean=(0.0,) * 3,
    data__std=(1.0,) * 3,
    model__depths=(1, 1),
    model__num_classes=3,
    model__border="pad",
    detect__fpn_dim=8,
    detect__anchor_sizes=(8, 16, 32),
)


CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def detector():
    model = greenjax.build(small_config(**SMALL), seed=1)
    model.classes = CLASSES
    return model


@pytest.fixture(scope="module")
def tensors(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    assert greenjax.save_torch(detector, path, "torchvision") == []
    return path, load_file(path)


def test_names_and_shapes_are_those_of_torchvisions_mask_rcnn(tensors):
    expected = {
        "backbone.norms.0": (8,),
        "backbone.norms.1": (16,),
        "backbone.fpn.inner_blocks.0.0": (8, 8, 1, 1),
        "backbone.fpn.inner_blocks.1.0": (8, 16, 1, 1),
        "backbone.fpn.layer_blocks.0.0": (8, 8, 3, 3),
        "backbone.fpn.layer_blocks.1.0": (8, 8, 3, 3),
        "rpn.head.conv.0.0": (8, 8, 3, 3),
        "rpn.head.cls_logits": (3, 8, 1, 1),
        "rpn.head.bbox_pred": (12, 8, 1, 1),
        "roi_heads.box_head.fc6": (32, 8 * 7 * 7),
        "roi_heads.box_head.fc7": (32, 32),
        "roi_heads.box_predictor.cls_score": (4, 32),
        "roi_heads.box_predictor.bbox_pred": (16, 32),
        **{f"roi_heads.mask_head.{i}.0": (8, 8, 3, 3) for i in range(4)},
        "roi_heads.mask_predictor.conv5_mask": (8, 8, 2, 2),
        "roi_heads.mask_predictor.mask_fcn_logits": (4, 8, 1, 1),
    }
    found = {name: tuple(tensor.shape) for name, tensor in tensors[1].items()}
    weights = {name[:-7]: shape for name, shape in found.items() if name.endswith(".weight")}
    body = {name for name in found if name.startswith("backbone.body.features.")}
    assert {name: weights[name] for name in weights if not name.startswith("backbone.body.")} == expected
    assert body | {f"{name}.{part}" for name in expected for part in ("weight", "bias")} == set(found)


def test_it_comes_back_to_the_last_bit_with_its_classes(detector, tensors):
    again = greenjax.load_torch(tensors[0], detector.config, "torchvision")
    before, after = flat_weights(detector), flat_weights(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert again.classes == greenjax.load_pretrained(tensors[0]).classes == CLASSES


def test_a_file_that_says_a_crop_of_evaluation_opens(tensors, tmp_path):
    """A detector makes no use of it, and earlier versions took any."""
    with safe_open(tensors[0], "np") as file:
        metadata = file.metadata() | {"crop_pct": "0.875"}
    save_file(tensors[1], tmp_path / "older.safetensors", metadata)
    assert greenjax.load_pretrained(tmp_path / "older.safetensors").config.data.eval_crop == 1


def test_a_layout_without_a_detector_refuses_one_and_is_not_offered(detector, tmp_path):
    """The encoder alone would lack the last norm."""
    others = [name for name in layout_names() if name in LAYOUTS and name != "torchvision"]
    for name in others:
        with pytest.raises(InputError) as refused:
            greenjax.save_torch(detector, tmp_path / "file.safetensors", name, encoder_only=True)
        assert str(refused.value) == f"layout {name!r}: the model is a detector: expected layout torchvision"
    assert export_line(detector.config).startswith("weights as they are: torchvision; not: swin, timm, hf, mmdet, ")
    twins = greenjax.build(small_config("twins", **SMALL | dict(model__num_heads=(2, 4), model__border="cut")))
    with pytest.raises(InputError, match=r"^layout 'timm': the model is a detector: no layout has its parts; to-onnx"):
        greenjax.save_torch(twins, tmp_path / "file.safetensors", "timm")
    assert not list(tmp_path.iterdir())


def test_a_detector_has_maps_and_no_pooled_features(detector):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for call in (lambda: detector.embed(images), lambda: greenjax.embed(detector, images)):
        with pytest.raises(InputError, match=r"^a detector has no pooled features, as it has no last norm: expected"):
            call()
    np.testing.assert_allclose(
        greenjax.embed(detector, images, stage=1)[0], greenjax.features(detector, images)[1], atol=1e-5
    )


def test_convolutions_mean_the_same_in_pytorch(detector, tensors):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32)
    pixels = torch.tensor(x).permute(0, 3, 1, 2)
    for ours, name, convolve in (
        (detector.roi_heads.mask_head[1], "roi_heads.mask_head.1.0", lambda *a: F.conv2d(*a, padding=1)),
        (detector.fpn.inner_blocks[0], "backbone.fpn.inner_blocks.0.0", F.conv2d),
    ):
        expected = convolve(pixels, tensors[1][f"{name}.weight"], tensors[1][f"{name}.bias"])
        np.testing.assert_allclose(ours(jnp.asarray(x)), expected.permute(0, 2, 3, 1), atol=1e-5)


def test_masks_of_the_labels_are_those_among_the_masks_of_all_classes_in_pytorch(detector, tensors):
    """Their gradients too: those of the classes that no box has are zero."""
    x, labels = np.random.default_rng(0).normal(size=(3, 5, 4, 8)).astype(np.float32), np.array([2, 0, 2])
    prefix, predictor = "roi_heads.mask_predictor", detector.roi_heads.mask_predictor
    names = [f"{prefix}.{layer}.{part}" for layer in ("conv5_mask", "mask_fcn_logits") for part in ("weight", "bias")]
    pixels, *arrays = [a.requires_grad_() for a in (torch.tensor(x), *(tensors[1][name].clone() for name in names))]
    upsampled = F.conv_transpose2d(pixels.permute(0, 3, 1, 2), *arrays[:2], stride=2).relu()
    expected = F.conv2d(upsampled, *arrays[2:])[torch.arange(3), torch.tensor(labels)]
    expected.square().sum().backward()

    def squares(predictor, x):
        logits = predictor(x, jnp.asarray(labels))
        return jnp.square(logits).sum(), logits

    (d_predictor, dx), logits = nnx.grad(squares, argnums=(0, 1), has_aux=True)(predictor, jnp.asarray(x))
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, pixels.grad, atol=1e-4)
    last = arrays[2].grad[:, :, 0, 0].T
    np.testing.assert_allclose(d_predictor.mask_fcn_logits.kernel[...][0, 0], last, atol=1e-4)
    np.testing.assert_allclose(d_predictor.mask_fcn_logits.bias[...], arrays[3].grad, atol=1e-4)
    assert not last[:, [1, 3]].any() and last[:, [0, 2]].all()


def test_the_box_head_reads_a_box_channel_by_channel(detector, tensors):
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 8)).astype(np.float32)
    flat = torch.tensor(x).permute(0, 3, 1, 2).flatten(1)
    for name in ("fc6", "fc7"):
        weight, bias = (tensors[1][f"roi_heads.box_head.{name}.{part}"] for part in ("weight", "bias"))
        flat = F.linear(flat, weight, bias).relu()
    np.testing.assert_allclose(detector.roi_heads.box_head(jnp.asarray(x)), flat, atol=1e-5)


def test_a_detector_starts_from_a_classifiers_file(detector, tmp_path):
    """Its last norm and its head have no place in the detector, whose own parts stay as initialised."""
    classifier = greenjax.build(small_config(**SMALL | dict(task="finetune")), seed=2)
    path = tmp_path / "classifier.safetensors"
    greenjax.save_torch(classifier, path, "torchvision")
    before, fresh = flat_weights(classifier), flat_weights(detector)
    after = flat_weights(greenjax.load_torch(path, detector.config, "torchvision", seed=1))
    assert after.keys() == fresh.keys() and "encoder/norm/scale" not in after
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name] if name.startswith("encoder/") else fresh[name])


def test_a_detector_starts_from_one_for_other_classes(detector, tensors):
    """The file gives the number of classes. `new_head` draws the predictors anew, and nothing else."""
    path, own = tensors[0], greenjax.flatten(detector.config)
    assert own["model.num_classes"] != 7
    unset = greenjax.load_torch(path, greenjax.resolve(own | {"model.num_classes": None}), "torchvision")
    assert unset.config.model.num_classes == own["model.num_classes"]
    other = greenjax.resolve(own | {"model.num_classes": 7, "init": str(path)})
    with pytest.raises(InputError, match="cls_score"):
        greenjax.load_torch(path, other, "torchvision")
    renewed = greenjax.resolve(greenjax.flatten(other) | {"new_head": True})
    before, fresh = flat_weights(detector), flat_weights(greenjax.build(other, seed=1))
    for model in (
        greenjax.load_torch(path, other, "torchvision", new_head=True, seed=1),
        initial_model(greenjax.resolve(greenjax.flatten(renewed) | {"seed": 1}))[0],
    ):
        after = flat_weights(model)
        assert after.keys() == before.keys()
        drawn = {name for name in after if "box_predictor" in name or "mask_fcn_logits" in name}
        assert len(drawn) == 6
        for name, value in after.items():
            np.testing.assert_array_equal(value, (fresh if name in drawn else before)[name])
