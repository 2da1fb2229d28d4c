"""Kept from before the package's modules were rearranged: runs and files that load, go on and give the same values.

The runs are those of `before/pretrain.py` and `before/finetune.py`, as they were after 2 of their 4 updates. Nothing in
`before` is ever made anew: a change that these tests find would break the runs and files of users.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import greenjax
from greenjax.backbones.geometry import make_planner
from greenjax.tasks import finetune, pretrain

FOLDER = Path(__file__).parent / "before"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
IMAGES = (np.arange(2 * 16 * 16) ** 2 % 251).astype(np.uint8).reshape(2, 16, 16, 1)
VISIBLE = (np.arange(64) * 29 % 64 < 16).reshape(8, 8)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def encoder_of(model):
    return nnx.to_pure_dict(nnx.state(model.encoder, nnx.Param))


def losses_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_pretrained_run_loads():
    model, expected = greenjax.load(FOLDER / "pretrained"), EXPECTED["pretrained"]
    out = model(IMAGES, VISIBLE)
    close(out.losses, expected["losses"])
    close(out.prediction[0, :4], expected["prediction"])
    close(out.latent[1, :4], expected["latent"])
    (stage,) = greenjax.features(model, IMAGES)
    close(stage[0, 2], expected["features"])


def test_a_finetuned_run_loads():
    model = greenjax.load(FOLDER / "finetuned")
    assert model.classes == tuple("0123456789")
    close(model(IMAGES), EXPECTED["finetuned"]["logits"])


def test_converted_files_load():
    """Their encoders are those of the runs that they were made of, bit for bit."""
    for run, suffix, layout in (("pretrained", ".safetensors", "timm"), ("finetuned", ".pth", "swin")):
        here = greenjax.load(FOLDER / run)
        model = greenjax.load_torch(FOLDER / f"{run}{suffix}", here.config, layout)
        jax.tree.map(np.testing.assert_array_equal, encoder_of(model), encoder_of(here))
        if run == "finetuned":
            close(model(IMAGES), EXPECTED[run]["logits"])


@pytest.mark.parametrize(
    ("train", "config", "run"), [(pretrain, "pretrain.py", "pretrained"), (finetune, "finetune.py", "finetuned")]
)
def test_a_run_goes_on(train, config, run, tmp_path):
    shutil.copytree(FOLDER / run, tmp_path / run)
    train(greenjax.load_config(FOLDER / config), tmp_path / run)
    close(losses_of(tmp_path / run), EXPECTED[run]["losses_of_updates"])


@pytest.mark.parametrize("init", ["pretrained", "pretrained.safetensors"])
def test_a_run_starts_from_weights(init, tmp_path):
    config = greenjax.load_config(FOLDER / "finetune.py", {"init": str(FOLDER / init)})
    finetune(config, tmp_path)
    close(losses_of(tmp_path), EXPECTED["finetuned"]["losses_of_updates"])


@pytest.mark.parametrize("name", ["swin_b_win14", "twins_l"])
def test_plans_are_the_same(name, tmp_path, monkeypatch):
    """The layouts, 100 training masks and the first held-out ones, and how many were redrawn; no cache is read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    planner, total = make_planner(greenjax.load_config(f"configs/{name}.py")), hashlib.sha256()
    for leaf in jax.tree.leaves(
        (planner.layouts, planner.plans(0, 50), planner.plans(1, 50), planner.held_out_plans(0, 4))
    ):
        array = np.asarray(leaf)
        total.update(f"{array.dtype} {array.shape};".encode() + array.tobytes())
    assert total.hexdigest() == EXPECTED["plans"][name]
