"""Whole runs of a detector: what they leave, that they resume bit for bit, and that devices change nothing."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from small import LOSSES, small_config

import greenjax
import greenjax.interop.loading
from greenjax.config.inherit import describe
from greenjax.errors import InputError
from greenjax.runtime.files import read_metrics
from greenjax.tasks import detect, evaluate, pretrain
from greenjax.tasks.summary import next_lines
from greenjax.training.optim import learning_rate

DETECT = dict(
    task="detect",
    image_size=32,
    steps=4,
    model__depths=(1, 1),
    data__source="scenes",
    data__eval_split="test[:3]",
    data__batch_size=8,
    optim__base_lr=0.05,
    log__checkpoint_every=2,
    detect__fpn_dim=8,
    detect__anchor_sizes=(4, 8, 16),
    detect__pre_nms=20,
    detect__post_nms=20,
    detect__rpn_samples=16,
    detect__box_samples=16,
    detect__max_detections=5,
    detect__max_objects=6,
    detect__score_threshold=0.0,  # there are detections from the start
)


def detections(workdir):
    return [json.loads((workdir / f"detections_test__3.{kind}.json").read_text()) for kind in ("bbox", "segm")]


def trained(workdir):
    return [(line["step"], line["loss"]) for line in read_metrics(workdir) if "loss" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A detector from a pre-trained encoder, on one device."""
    folder = tmp_path_factory.mktemp("detect")
    encoder = dict(image_size=32, model__depths=(1, 1), steps=1, mask__groups=2, mesh__data=2)
    pretrain(small_config(**encoder), folder / "encoder")
    config = small_config(**DETECT, mesh__data=1, init=str(folder / "encoder"))
    return folder, config, detect(config, folder / "run")


def test_a_run_leaves_metrics_detections_and_pictures(finished):
    folder, _, state = finished
    assert int(state.step) == 4
    lines = [line for line in read_metrics(folder / "run") if "loss" in line]
    assert all(line.keys() >= LOSSES for line in lines)
    np.testing.assert_allclose(
        [line["loss"] for line in lines], [sum(line[key] for key in LOSSES) for line in lines], 1e-6
    )
    assert lines[-1]["loss"] < lines[0]["loss"]
    entry = json.loads((folder / "run" / "results.json").read_text())["test[:3]"]
    assert entry["images"] == 3 and 0 <= entry["box_ap"] <= entry["box_ap50"] <= 1
    boxes, masks = detections(folder / "run")
    assert 0 < len(boxes) == len(masks) <= 3 * 5
    assert {path.name for path in (folder / "run" / "detections").iterdir()} == {"00000000.png", "00000004.png"}
    assert greenjax.load(folder / "run").config.model.num_classes == 10
    assert json.loads((folder / "run" / "classes.json").read_text()) == list("0123456789")


def test_the_encoder_is_that_of_the_pre_training(finished, tmp_path, capsys):
    folder, config, _ = finished
    config = greenjax.resolve(greenjax.flatten(config) | {"model.num_classes": 10})
    model, report = greenjax.interop.loading.initial_model(config)
    kernel = greenjax.load(folder / "encoder").encoder.patch_embed.proj.kernel[...]
    np.testing.assert_array_equal(model.encoder.patch_embed.proj.kernel[...], kernel)
    assert all(name.startswith("encoder/norm/") or not name.startswith("encoder") for name in report.dropped)
    assert not any(name.startswith("encoder") for name in report.new) and any("rpn" in name for name in report.new)


def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(finished, tmp_path):
    folder, config, state = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    jax.tree.map(np.testing.assert_array_equal, detect(config, tmp_path / "run"), state)
    assert detections(tmp_path / "run") == detections(folder / "run")


def test_eight_devices_with_split_parameters_train_alike(finished, tmp_path):
    folder, config, _ = finished
    divided = small_config(**DETECT, mesh__data=4, mesh__fsdp=2, model__remat=True, init=config.init)
    detect(divided, tmp_path / "run")
    np.testing.assert_allclose(trained(tmp_path / "run"), trained(folder / "run"), rtol=1e-5)


def test_a_run_keeps_its_classes_and_suggests_an_export_that_holds_it_whole(finished, tmp_path):
    folder, config, _ = finished
    assert greenjax.load(folder / "run").classes == tuple(map(str, range(10)))
    rgb = {"model.in_channels": 3, "data.mean": (0.5,) * 3, "data.std": (0.5,) * 3, "model.border": "pad"}
    rgb = greenjax.resolve(greenjax.flatten(config) | rgb)
    assert next_lines(rgb, folder / "run", "detect.py")[1].count("--layout torchvision ") == 1
    assert not next_lines(config, folder / "run", "detect.py")  # torchvision has no grey detector
    with pytest.raises(InputError, match="run', a detector, whose encoder has no last norm: expected the run of a pre"):
        greenjax.embed(folder / "run", np.zeros((1, 32, 32, 1), np.uint8))


def test_a_detector_is_evaluated_alone(finished, tmp_path):
    folder, _, _ = finished
    given = {"task": "eval", "init": str(folder / "run"), "data.source": "scenes", "data.eval_split": "test[:3]"}
    # As a recipe for classifiers has them.
    given |= {"data.mixup": 0.8, "data.quarter_turns": True, "data.eval_crop": 0.875, "optim.label_smoothing": 0.3}
    given |= {"epochs": 100, "optim.warmup_epochs": 20, "optim.warmup_steps": 20}
    given |= {"optim.layer_decay": 0.9, "optim.name": "lars"}
    config = greenjax.load_config("configs/eval.py", given | {"data.batch_size": 8, "mesh.data": 1})
    evaluate(config, tmp_path / "run")
    assert detections(tmp_path / "run") == detections(folder / "run")
    (alone,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    (before,) = json.loads((folder / "run" / "results.json").read_text()).values()
    assert (alone["task"], before["task"]) == ("eval", "detect")
    assert {key: alone[key] for key in alone if "ap" in key} == {key: before[key] for key in before if "ap" in key}
    assert (tmp_path / "run" / "detections" / "test__3.png").is_file()


def unnamed(path, count, kind):
    """What an evaluation reads first of a detector that does not name its classes: a run, or a file of weights."""
    config = small_config(**DETECT | dict(model__num_classes=count))
    if kind == "run":
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config.to_dict()))
        return path
    file = path.with_suffix(".safetensors")
    tensors = {"roi_heads.box_predictor.cls_score.bias": np.zeros(count + 1, np.float32)}
    save_file(tensors, file, describe(config) | {"greenjax_version": greenjax.__version__, "layout": "torchvision"})
    return file


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_detector_without_names_takes_those_of_as_many_classes(kind, tmp_path, monkeypatch, capsys):
    def judged(init):
        given = {"init": str(init), "data.source": "scenes", "data.eval_split": "test[:3]", "mesh.data": 1}
        evaluate(greenjax.load_config("configs/eval.py", given | {"data.batch_size": 8}), tmp_path / "eval")

    found = r"does not name its 12 classes, and test\[:3\] has 10, '0', .*'9': expected as many, or their names"
    with pytest.raises(InputError, match=found):
        judged(unnamed(tmp_path / "twelve", 12, kind))

    def reached(config, mesh):
        raise RuntimeError(f"a detector of {config.model.num_classes}, {config.detect.fpn_dim} channels")

    monkeypatch.setattr(sys.modules["greenjax.tasks.detect"], "given_model", reached)
    with pytest.raises(RuntimeError, match="a detector of 10, 8 channels"):
        judged(unnamed(tmp_path / "ten", 10, kind))
    assert "does not name its classes: they are taken to be those of test[:3], '0', '1'" in capsys.readouterr().out
    about = {"greenjax_version": greenjax.__version__, "layout": "timm"}
    save_file(
        {"norm.bias": np.zeros(8, np.float32)},
        tmp_path / "encoder.safetensors",
        describe(small_config(**DETECT)) | about,
    )
    with pytest.raises(InputError, match="has no predictors of a detector"):
        judged(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(data__source="digits"),
            "data.source is 'digits': expected one whose images have objects, 'coco', 'scenes'",
        ),
        (dict(model__num_classes=3), "model.num_classes is 3: expected at least the 10 classes of the data"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        detect(small_config(**DETECT | changes), tmp_path / "run")


def test_every_level_needs_a_size_of_anchors():
    with pytest.raises(InputError, match=r"detect.anchor_sizes is \(4, 8\): expected 3 sizes"):
        small_config(**DETECT | dict(detect__anchor_sizes=(4, 8)))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(data__dtype="uint16"), r"data.dtype is 'uint16': expected 'uint8' for task 'detect', whose images are"),
        (dict(data__no_data="0"), r"data.no_data is '0': expected 'none' for task 'detect'"),
        (
            dict(model__in_channels=4, data__mean=(0.5,) * 4, data__std=(0.5,) * 4),
            "model.in_channels is 4: expected 1 or 3 for task 'detect'",
        ),
    ],
)
def test_images_of_other_kinds_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small_config(**DETECT | changes)


@pytest.mark.parametrize(
    "key, value",
    [
        ("data__per_class", 3),
        ("data__randaugment", 9.0),
        ("data__mixup", 0.8),
        ("data__cutmix", 1.0),
        ("data__erasing", 0.25),
        ("data__quarter_turns", True),
        ("data__eval_crop", 0.875),
        ("optim__label_smoothing", 0.3),
    ],
)
def test_settings_that_a_detector_does_without_are_refused(key, value):
    key, text = key.replace("__", "."), re.escape(str(value))
    with pytest.raises(InputError, match=rf"{key} is {text}: expected .*, the default, for task 'detect'"):
        small_config(**DETECT | {key: value})
    small_config(**DETECT | dict(optim__label_smoothing=0.0))


@pytest.mark.parametrize("name", ["swin_b", "swin_l", "twins_l"])
def test_the_recipes_are_the_paper_s(name):
    """Batch 16, rate 1e-4, weight decay 0.05, 36 epochs, the rate falls tenfold after 27 and 33 (section 4.1)."""
    config = greenjax.load_config(f"configs/detect_{name}.py")
    rate = learning_rate(config, config.steps, config.optim.warmup_steps)
    found = [rate(step) for step in (0, 1000, int(0.76 * config.steps), int(0.92 * config.steps))]
    np.testing.assert_allclose(found, [1e-7, 1e-4, 1e-5, 1e-6], rtol=1e-5)
    assert (config.data.batch_size, config.optim.weight_decay, config.model.border) == (16, 0.05, "pad")
    assert round(config.steps * 16 / 117_266) == 36
