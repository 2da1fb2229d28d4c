"""What other libraries make of an image file before our weights see it is what evaluation here makes of it."""

import json

import cv2
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from small import ONE_STAGE, small_config

import greenjax
from greenjax import convert
from greenjax.data.augment import CentreView
from greenjax.data.open import open_labelled
from greenjax.interop.huggingface import image_processor
from greenjax.interop.loading import with_rgb

transformers.logging.set_verbosity_error()

SIDE = 56  # 28 x 28 tokens; at crop 0.875 the shorter side is resized to 64 pixels
CLASSES = ("ant", "bee", "cat", "dog", "emu")


def classifier(**changes):
    rgb = dict(model__in_channels=3, data__mean=(0.4, 0.5, 0.6), data__std=(0.2, 0.3, 0.4))
    config = small_config(**ONE_STAGE | rgb | dict(task="finetune", model__num_classes=5, image_size=SIDE) | changes)
    model = greenjax.build(config, seed=1)
    model.head.kernel[...] = 30 * model.head.kernel[...]  # logits that differ
    model.classes = CLASSES
    return model


def write(folder, sizes, channels=3):
    """A file of each size (height, width), smooth enough that ways of resizing agree."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        (folder / "all" / "ant").mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, channels)).astype(np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "all" / "ant" / f"{number}.png"), image)


def logits_here(model, folder):
    """By file."""
    data = greenjax.resolve(
        greenjax.flatten(model.config)
        | {"data.source": "folder", "data.path": str(folder / "all"), "data.split": "all"}
    ).data
    source, view = open_labelled(data, "all"), CentreView.from_config(model.config)
    images = np.stack([view(source[i][0], i) for i in range(len(source))])
    return dict(zip(map(source.name_of, range(len(source))), np.asarray(model(images)), strict=True))


def logits_there(exported, folder, files):
    """Of transformers' pipeline, which opens the files itself; with the label that it gives each."""
    pipeline = transformers.pipeline("image-classification", str(exported), device="cpu")
    found = pipeline(files, function_to_apply="none", top_k=5)
    return {
        file: (np.array([{row["label"]: row["score"] for row in rows}[name] for name in CLASSES]), rows[0]["label"])
        for file, rows in zip(files, found, strict=True)
    }


@pytest.mark.parametrize(("crop", "short"), [(1.0, SIDE), (0.875, 64)])
def test_transformers_pipeline_sees_what_evaluation_sees(crop, short, tmp_path):
    """Files whose shorter side needs no resizing: the same logits. Others: the same class."""
    model = classifier(data__eval_crop=crop)
    assert greenjax.save_torch(model, tmp_path / "hf", "hf") == []
    for name, sizes in {
        "exact": [(3 * short, short), (short, 3 * short), (short, short)],
        "resized": [(96, 32), (32, 96), (32, 32), (300, 100), (100, 300), (200, 200)],
    }.items():
        write(tmp_path / name, sizes)
        here = logits_here(model, tmp_path / name)
        there = logits_there(tmp_path / "hf", tmp_path / name, list(here))
        assert len(here) == len(sizes)
        for file, logits in here.items():
            assert there[file][1] == CLASSES[logits.argmax()]
            if name == "exact":
                np.testing.assert_allclose(there[file][0], logits, atol=1e-4)


def test_a_grey_classifier_is_exported_for_colours(tmp_path, monkeypatch, capsys):
    """Its pictures look grey to the pipeline; without --rgb there is no preprocessor, rather than one that fails."""
    model = classifier(model__in_channels=1, data__mean=(0.3,), data__std=(0.4,))
    monkeypatch.setattr("greenjax.interop.loading.load_run", lambda *_: (model, 7))
    command = ["convert", "to-torch", "--workdir=run", "--layout=hf", f"--output={tmp_path / 'hf'}"]
    convert.main([*command, "--rgb"])
    for channels in (1, 3):
        write(tmp_path / str(channels), [(168, SIDE), (SIDE, SIDE)], channels)
        here = logits_here(model, tmp_path / str(channels))
        there = logits_there(tmp_path / "hf", tmp_path / str(channels), list(here))
        for file, logits in here.items():  # here, grey is rounded to whole numbers
            np.testing.assert_allclose(there[file][0], logits, atol=1e-4 if channels == 1 else 0.05)
    assert "preprocessor" not in capsys.readouterr().out
    convert.main(command)
    assert "no preprocessor_config.json: transformers reads files as RGB, and the" in capsys.readouterr().out
    assert not (tmp_path / "hf" / "preprocessor_config.json").exists()
    with pytest.raises(ValueError, match="rgb is for a classifier of grey images: the model is one of 3 channels"):
        with_rgb(classifier())


def test_a_view_that_transformers_does_not_have_is_not_exported(tmp_path):
    notes = greenjax.save_torch(classifier(image_size=(56, 112)), tmp_path / "hf", "hf")
    assert notes == [
        "no preprocessor_config.json: transformers cannot cover 56 x 112 pixels: docs/interop.md has a line that does"
    ]


@pytest.mark.parametrize("size", [(SIDE, SIDE), (56, 112)])
def test_the_line_of_the_docs_is_the_view_of_evaluation(size, tmp_path):
    """From nothing but the metadata of a file, as a user of timm or torchvision would."""
    from PIL import Image, ImageOps

    model = classifier(data__eval_crop=0.875, image_size=size)
    greenjax.save_torch(model, tmp_path / "weights.safetensors", "timm")
    with safe_open(tmp_path / "weights.safetensors", "pt") as opened:
        meta = opened.metadata()
    assert json.loads(meta["classes"]) == list(CLASSES)
    cover = tuple(round(side / 0.875) for side in size)  # files of this size need no resizing, only the crop
    sizes = {"exact": [cover], "resized": [(192, 64), (128, 128), (64, 192)]}
    height, width = map(int, meta["image_size"].split("x"))
    mean, std = (torch.tensor(json.loads(meta[key])) for key in ("mean", "std"))
    for name, files in sizes.items():
        write(tmp_path / name, files)
        for file, logits in logits_here(model, tmp_path / name).items():
            image, bleed = Image.open(file).convert("RGB"), (1 - float(meta["crop_pct"])) / 2
            view = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, bleed=bleed)
            pixels = (torch.tensor(np.asarray(view)) / 255 - mean) / std
            there = np.asarray(model(pixels.numpy()[None]))[0]
            assert there.argmax() == logits.argmax()
            if name == "exact":
                np.testing.assert_allclose(there, logits, atol=1e-4)


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_images_of_other_channels_have_no_preprocessor_and_no_remedy(task):
    numbers = (0.5, 0.5)
    config = small_config(task=task, model__in_channels=2, data__mean=numbers, data__std=numbers)
    assert image_processor(config) == "transformers reads files as RGB, and the model takes images of 2 channels"


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "uint16"), ("channels", (2, 1, 0)), ("alpha", "white"), ("page", 1), ("no_data", "0")],
)
def test_images_that_transformers_reads_otherwise_have_no_preprocessor(key, value):
    rgb = dict(model__in_channels=3, data__mean=(0.5,) * 3, data__std=(0.5,) * 3)
    found = image_processor(small_config(**rgb, **{f"data__{key}": value}))
    assert found == f"transformers reads files as 8-bit RGB, and the model with data.{key} {value!r}"
    assert isinstance(image_processor(small_config(**rgb, data__channels=(0, 1, 2))), dict)
