"""The model card of an exported folder: what the hub reads, what a reader needs, and nothing of the machine."""

import ast
import json
import re

import cv2
import numpy as np
import pytest
import transformers
from huggingface_hub import ModelCard
from small import small_config

import greenjax
from greenjax import convert
from greenjax.evaluation.results import write_results
from greenjax.interop.card import CARD, Origin, last, model_card, plain, settings

transformers.logging.set_verbosity_error()

CLASSES = ("ant", "bee | wasp", "cat")
RGB = dict(image_size=16, model__depths=(1,), model__num_heads=(2,), model__in_channels=3)
RGB |= dict(data__mean=(0.4, 0.5, 0.6), data__std=(0.2, 0.3, 0.4), data__source="folder")
KINDS = {
    "classifier": dict(task="finetune", model__num_classes=3),
    "encoder": dict(),
    "grey": dict(model__in_channels=1, data__mean=(0.3,), data__std=(0.4,)),
    "simmim": dict(method="simmim"),
    "pvt_v2": dict(family="pvt_v2", model__depths=(1, 1), model__num_heads=(2, 4)),
}


def run_of(kind, root, **changes):
    """A model, and the workdir of the run that would have made it, in folders of somebody's."""
    places = dict(data__path=(f"{root}/secret/photos", "s3://bucket/more/"), init=f"{root}/secret/before")
    model = greenjax.build(small_config(**RGB | places | KINDS[kind] | changes), seed=1)
    model.classes = CLASSES if kind == "classifier" else ()
    workdir = root / "secret" / "run"
    workdir.mkdir(parents=True)
    (workdir / "data.json").write_text(json.dumps({"images": 12345}))
    losses = [{"step": 0, "best_constant_loss": 0.9}, *({"step": n, "held_out_loss": 1 / n} for n in (2, 4, 8))]
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in losses))
    results = {"all[90%:]": {"step": 4, "init": str(root), "images": 10, "top1": 0.75, "ece": None}}
    results |= {f"{root}/secret/other@test": {"top1": 0.5, "temperature": 0.07}, "old": {"step": 2, "top1": 0.1}}
    (workdir / "results.json").write_text(json.dumps(results))
    return model, workdir


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def exported(kind, root, **changes):
    model, workdir = run_of(kind, root, **changes)
    notes = greenjax.save_torch(model, root / "mine", "hf", step=4, workdir=workdir)
    return (root / "mine" / CARD).read_text(), notes


def test_the_card_of_a_classifier_tells_its_run(tmp_path, monkeypatch, capsys):
    """Its lines for transformers and for greenjax run as they are, beside the folder and a photograph."""
    text, notes = exported("classifier", tmp_path)
    front = ModelCard(text).data.to_dict()
    assert notes == [] and front == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["greenjax", "swin"],
    }
    assert "# license: yours to set" in text and "# base_model: OWNER/NAME of before" in text
    for line in (
        "# mine",
        "A fine-tuned classifier of images: swin_t, `SwinForImageClassification` in transformers.",
        "Images: 16 x 16 pixels, 3 channels, mean 0.4, 0.5, 0.6 and deviation 0.2, 0.3, 0.4 of pixels divided by the"
        " largest value of their type.",
        "It began with the weights of `before`.",
        f"Written by greenjax {greenjax.__version__}, at step 4.",
        "12,345 images: `photos`, `more`, split `train`.",
        r"3 classes: ant, bee \| wasp, cat.",
        "| `data.batch_size` | 16 |",
        "| `optim.label_smoothing` | 0.1 |",
        "| held-out loss | 0.2500 |",
        r"| top1, all\[90%:\] | 0.7500 |",
        "| top1, other@test | 0.5000 |",
    ):
        assert line in text.splitlines(), line
    assert text.count("yours to fill in") == 3 and "0.1000" not in text and "temperature" not in text
    assert "secret" not in text and "bucket" not in text and str(tmp_path) not in text

    cv2.imwrite(str(tmp_path / "photo.jpg"), np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    theirs, ours = blocks(text)
    exec(theirs, {})
    assert capsys.readouterr().out.strip() in CLASSES
    found = {}
    exec(ours, found)
    assert found["vectors"].shape == (1, 8) and found["files"] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("kind", "how", "said"),
    [
        ("encoder", "green masked image modelling: swin_t, `SwinModel`", "[1, 64, 8]"),
        ("grey", "green masked image modelling: swin_t, `SwinModel`", "[1, 64, 8]"),
        ("pvt_v2", "green masked image modelling: pvt_v2_b0, `PvtV2Model`", "[1, 16, 4, 4]"),
        ("simmim", "SimMIM: swin_t, `SwinForMaskedImageModeling`", "reconstruction"),
    ],
)
def test_the_cards_of_encoders_load_them(kind, how, said, tmp_path, monkeypatch, capsys):
    text, _ = exported(kind, tmp_path)
    front = ModelCard(text).data
    family = "pvt_v2" if kind == "pvt_v2" else "swin"
    assert front.pipeline_tag == (None if kind == "simmim" else "image-feature-extraction")
    assert front.tags == ["greenjax", family, "masked-image-modeling"]
    assert f"\nAn encoder pre-trained without labels, by {how}" in text
    assert "| `mask.ratio` | 0.75 |" in text and "`optim.label_smoothing`" not in text
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((16, 24, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    exec(blocks(text)[0], {})
    assert said in capsys.readouterr().out


def test_weights_without_a_run_tell_no_settings(tmp_path):
    """Nor do those that a run begins with, at step 0."""
    model, workdir = run_of("encoder", tmp_path)
    for step, of in ((None, None), (0, workdir)):
        greenjax.save_torch(model, tmp_path / f"at {step}", "hf", step=step, workdir=of)
        text = (tmp_path / f"at {step}" / CARD).read_text()
        assert "## Settings" not in text and "## Results" not in text and "12,345" not in text
        assert "\nWhat the images show, and who may use them: *yours to fill in*." in text


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/home/me/train.tar", "train.tar"),
        ("https://host/train.tar?X-Amz-Signature=SECRET", "train.tar"),
        ("https://host/train.tar?next=https://other/SECRET#SECRET", "train.tar"),
        ("https://user:SECRET@host/", "host"),
        ("https://user:SECRET@host", "host"),
        ("simplecache::https://user:SECRET@host/?SECRET", "host"),
        ("https://[SECRET", "a URL"),
        ("s3://bucket/a/b/", "b"),
        ("x\n---\nlicense: mit\x00", "x --- license: mit"),
    ],
)
def test_a_place_is_one_line_without_keys(place, shown, tmp_path):
    """Neither the front matter nor the text tells a key of a URL, and no name adds a line to them."""
    assert last(place) == shown
    text, _ = exported("encoder", tmp_path, data__path=(place,), init=place)
    assert "SECRET" not in text and "\nlicense:" not in text
    assert ModelCard(text).data.license is None


def test_names_are_text_and_no_links(tmp_path):
    """Of classes and of the folder; a folder of any name is a string of Python in the lines that load it."""
    assert plain("[x](http://a)\\|\n`<b>`") == r"\[x\](http://a)\\\| '&lt;b>'"
    model, _ = run_of("encoder", tmp_path)
    name = 'it"s [mine](http:é)'
    config = {"architectures": ["SwinModel"], "model_type": "swin"}
    text = model_card(name, config, model.config, (), Origin(), True)
    assert r'# it"s \[mine\](http:é)' in text.splitlines()
    for block in blocks(text):
        (found,) = (node.value for node in ast.walk(ast.parse(block)) if getattr(node, "value", "") == name)
        assert found == name


def test_results_of_other_weights_are_not_told(tmp_path):
    """An evaluation may be told to write beside another run, and its entries have no step."""
    model, workdir = run_of("classifier", tmp_path)
    found = {"top1": 0.125, "images": 10}
    for task, split in (("eval", "test"), ("knn", "test k=20")):
        write_results(workdir, f"other {split}", dict(task=task, init=str(tmp_path / "other"), split=split) | found)
        write_results(workdir, f"own {split}", dict(task=task, init=f"{workdir}/", split=split) | found)
    greenjax.save_torch(model, tmp_path / "mine", "hf", step=4, workdir=workdir)
    lines = (tmp_path / "mine" / CARD).read_text().splitlines()
    told = [line for line in lines if line.endswith("| 0.1250 |")]
    assert told == ["| top1, own test | 0.1250 |", "| top1, own test k=20 | 0.1250 |"]


def test_settings_of_the_decoder_and_of_the_pooling_are_told():
    hiera = settings(small_config("hiera", model__query_pools=1, decoder__positions="learned"))
    swin = settings(small_config("swinv2", model__pretrained_windows=(4, 2)))
    told = {"| `model.query_pools` | 1 |", "| `decoder.positions` | learned |", "| `decoder.fusion` | False |"}
    assert told <= {*hiera} and "| `model.pretrained_windows` | (4, 2) |" in swin


def test_a_card_that_is_there_stays(tmp_path, monkeypatch, capsys):
    model, workdir = run_of("encoder", tmp_path)
    monkeypatch.setattr("greenjax.interop.loading.load_run", lambda *_: (model, 4))
    command = ["convert", "to-torch", f"--workdir={workdir}", "--layout=hf", f"--output={tmp_path / 'hf'}"]
    convert.main(command)
    card = tmp_path / "hf" / CARD
    assert "| held-out loss | 0.2500 |" in card.read_text() and CARD not in capsys.readouterr().out
    card.write_text("mine")
    convert.main(command)
    assert card.read_text() == "mine"
    assert "README.md stays as it is: without it, the same command writes a new one" in capsys.readouterr().out
