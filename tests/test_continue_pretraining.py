"""docs/continue_pretraining.md by its commands, on random weights: ImageNet's Swin -> own images -> a classifier."""

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from small import config_file
from transformers import SwinConfig, SwinForImageClassification
from transformers_swin import copy_encoder, randomise

import greenjax
from greenjax import convert, tasks
from greenjax.interop.loading import initial_model
from greenjax.interop.weights import flat_weights
from greenjax.main import parse

SHAPE = dict(image_size=32, model__in_channels=3, model__patch=4, model__depths=(1, 1))
SHAPE |= dict(data__batch_size=8, steps=2, mesh__data=1)
COLOURS = dict(data__mean=(0.485, 0.456, 0.406), data__std=(0.229, 0.224, 0.225))  # those of ImageNet's weights
CLASSIFIER = dict(task="finetune", optim__base_lr=1e-30, optim__warmup_lr=0.0)  # a rate that changes no weight


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with transformers' Swin of random weights and 1000 classes, crops of two photographs, and configs."""
    monkeypatch.chdir(tmp_path)
    shape = dict(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=4)
    there = SwinForImageClassification(SwinConfig(**shape, num_labels=1000)).eval()
    randomise(there, seed=0)
    there.save_pretrained("swin_hf")
    for name, photograph in zip(("temple", "flower"), load_sample_images().images):
        for split, left in (("train", 0), ("val", 320)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                crop = photograph[40 * i : 40 * i + 64, left : left + 64, ::-1]
                cv2.imwrite(str(folder / f"{i}.png"), crop)
    images = dict(data__source="folder", data__path="photos", data__split="train")
    config_file(tmp_path / "continue.py", **SHAPE, **COLOURS, **images)
    config_file(tmp_path / "classify.py", **SHAPE, **COLOURS, **images, **CLASSIFIER, data__eval_split="val")
    return there


def greenjax_command(task, *words):
    """What `greenjax TASK WORDS` runs, in this process."""
    arguments, config = parse([f"greenjax {task}", *words], task)
    tasks.run(config, arguments.workdir)


def encoder_of(workdir, step=None):
    return {name: value for name, value in flat_weights(greenjax.load(workdir, step)).items() if name[:7] == "encoder"}


def test_weights_of_transformers_arrive_go_on_and_reach_the_classifier(world):
    convert.main(["", "from-torch", "--config=continue.py", "--layout=hf", "--input=swin_hf", "--workdir=continued"])
    begun = greenjax.load("continued", step=0)
    expected = greenjax.build(begun.config, seed=1)
    copy_encoder(expected.encoder, world.swin)
    start = encoder_of("continued", step=0)
    for name, value in start.items():
        np.testing.assert_array_equal(value, flat_weights(expected)[name], err_msg=name)
    by_init, _ = initial_model(greenjax.load_config("continue.py", {"init": "swin_hf"}))
    assert all((flat_weights(by_init)[name] == value).all() for name, value in start.items())
    pixels = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        pooled = world.swin(torch.tensor(pixels.transpose(0, 3, 1, 2))).pooler_output.numpy()
    everything = np.ones((8 // 2, 8 // 2), bool)
    np.testing.assert_allclose(begun(pixels, everything).latent.mean(1), pooled, rtol=1e-4, atol=1e-5)

    greenjax_command("pretrain", "--config=continue.py", "--workdir=continued")
    continued = encoder_of("continued", step=2)
    assert all((continued[name] != start[name]).any() for name in start)

    greenjax_command("finetune", "--config=classify.py", "--workdir=classifier", "--set", "init=continued")
    classifier = encoder_of("classifier")
    assert classifier.keys() == continued.keys()
    for name, value in classifier.items():
        np.testing.assert_array_equal(value, continued[name], err_msg=name)
    assert greenjax.load("classifier").classes == ("flower", "temple")
