"""`greenjax.load_pretrained`: runs, files of greenjax, folders of transformers that say their model themselves."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors
from small import ONE_STAGE, small_config
from test_interop_layouts import random_model
from transformers_swin import randomise

import greenjax
from greenjax.config import flatten, resolve
from greenjax.config.inherit import inherit
from greenjax.config.transformers import described
from greenjax.errors import InputError
from greenjax.interop.weights import flat_weights
from greenjax.models import Classifier, GreenMIM, SimMIM
from greenjax.training.start import write_start

transformers.logging.set_verbosity_error()

ANY = {"task": "knn", "data.source": "python"}
CLASSES = ("ant", "bee", "cat")
NAMES = dict(id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)})
SWIN = dict(image_size=32, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=4, encoder_stride=4)
CONVNEXT = dict(image_size=32, hidden_sizes=[8, 12], depths=[1, 2], num_stages=2)
HIERA = dict(image_size=[48, 48], embed_dim=8, depths=[1, 1, 2], num_heads=[1, 2, 4], num_query_pool=2)
HIERA |= dict(masked_unit_size=[4, 4], masked_unit_attention=[True, False, False])
PVT = dict(image_size=32, num_encoder_blocks=2, hidden_sizes=[8, 12], depths=[1, 2], num_attention_heads=[2, 4])
PVT |= dict(sr_ratios=[2, 1], mlp_ratios=[3, 2], patch_sizes=[7, 3], strides=[4, 2])
VIT = dict(image_size=32, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
FAMILIES = {
    "Swin": SWIN,
    "Swinv2": SWIN,
    "ConvNext": CONVNEXT,
    "ConvNextV2": CONVNEXT,
    "Hiera": HIERA,
    "PvtV2": PVT,
    "ViT": VIT,
}
# As microsoft/swin-*, facebook/convnext-* and the rest have it on the hub.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = dict(do_normalize=True, do_resize=True, image_mean=MEAN, image_std=STD, resample=3)
EDGE = {"shortest_edge": 32}
PROCESSORS = {
    "ViT": dict(COLOURS, image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32}),
    "Swin": dict(COLOURS, feature_extractor_type="ViTFeatureExtractor", size=32),
    "Swinv2": dict(COLOURS, image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32}),
    "ConvNext": dict(COLOURS, feature_extractor_type="ConvNextFeatureExtractor", size=32, crop_pct=0.875),
    "ConvNextV2": dict(COLOURS, image_processor_type="ConvNextImageProcessor", size=EDGE, crop_pct=1.0),
    "Hiera": dict(
        COLOURS,
        image_processor_type="BitImageProcessor",
        size={"shortest_edge": 96},
        do_center_crop=True,
        crop_size={"height": 48, "width": 48},
    ),
    "PvtV2": dict(COLOURS, image_processor_type="PvtImageProcessor", size={"height": 32, "width": 32}),
}
CROPS = {"ConvNext": 0.875, "Hiera": 0.5}


def published(path, family, kind="ForImageClassification", **changes):
    """A folder as on the hub, of random weights, and the model of transformers in it."""
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | NAMES | changes)
    model = getattr(transformers, family + kind)(config).eval()
    randomise(model, seed=1)
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    return model


def some_images(model, count=2):
    size = (count, *model.config.image_size, model.config.model.in_channels)
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def theirs(model, images):
    with torch.no_grad():
        return model(torch.tensor(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_needs_no_config(family, tmp_path, caplog):
    """Classifier and bare encoder: their logits and pooled features; classes, size and colours are the folder's."""
    reference = published(tmp_path / "classifier", family)
    model = greenjax.load_pretrained(tmp_path / "classifier")
    images = some_images(model)
    assert isinstance(model, Classifier) and model.classes == CLASSES
    np.testing.assert_allclose(model(images), theirs(reference, images).logits, atol=1e-5)
    data = model.config.data
    assert (data.mean, data.std, data.eval_crop) == (MEAN, STD, CROPS.get(family, 1.0))
    squeezed = ["squeezes an image that is not square to 32 x 32" in record.message for record in caplog.records]
    assert any(squeezed) == (family in ("Swin", "Swinv2", "PvtV2", "ViT"))

    reference.base_model.save_pretrained(tmp_path / "encoder")
    encoder = greenjax.load_pretrained(str(tmp_path / "encoder"))
    assert encoder.head is None and encoder.config.image_size == model.config.image_size
    there = flat_weights(model)
    for key, value in flat_weights(encoder).items():
        np.testing.assert_array_equal(value, there[key], err_msg=key)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("Swin", "swin_t"),
        ("Swinv2", "swinv2_t"),
        ("ConvNext", "convnext_t"),
        ("ConvNextV2", "convnextv2_tiny"),
        ("Hiera", "hiera_b"),
        ("PvtV2", "pvt_v2_b0"),
        ("ViT", "vit_b"),
    ],
)
def test_published_sizes_have_their_names(family, name):
    """transformers' defaults are a published model, but for the window of its Swin V2."""
    found = getattr(transformers, f"{family}Config")()
    settings, _ = described(Path("nowhere"), json.loads(found.to_json_string(use_diff=False)))
    expected = {"model.name": name, "model.window": settings.get("model.window")}
    expected |= {"model.norm_epsilon": found.layer_norm_eps} if family == "ViT" else {}
    found, expected = (flatten(greenjax.resolve(ANY | each)) for each in (settings, expected))
    assert found == expected


def test_a_masked_image_model_of_transformers_is_simmim(tmp_path):
    reference = published(tmp_path, "Swin", "ForMaskedImageModeling")
    model = greenjax.load_pretrained(tmp_path)
    images, visible = some_images(model), np.arange(64).reshape(8, 8) % 3 == 0
    assert isinstance(model, SimMIM)
    removed = torch.tensor(~visible.repeat(2, axis=0).repeat(2, axis=1).reshape(1, -1)).expand(2, -1)
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2), bool_masked_pos=removed).reconstruction
    pixels = np.asarray(model(images, visible).prediction).reshape(2, 8, 8, 4, 4, 3).transpose(0, 5, 1, 3, 2, 4)
    np.testing.assert_allclose(pixels.reshape(2, 3, 32, 32), expected, atol=1e-5)


def test_a_masked_autoencoder_of_transformers_has_its_decoder(tmp_path):
    decoder = dict(decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=4)
    config = transformers.ViTMAEConfig(
        **VIT | decoder, decoder_intermediate_size=32, norm_pix_loss=False, layer_norm_eps=1e-6, mask_ratio=0.5
    )
    reference = transformers.ViTMAEForPreTraining(config).eval()
    reference.decoder.initialize_weights(64)  # the positions of published files; those of a new model are zeros
    reference.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["ViT"]))
    model = greenjax.load_pretrained(tmp_path)
    assert isinstance(model, GreenMIM) and model.config.decoder.num_heads == 4 and model.config.mask.ratio == 0.5
    images, visible = some_images(model), np.arange(64).reshape(8, 8) % 2 == 0
    with torch.no_grad():
        noise = torch.tensor(~visible.reshape(1, -1)).float().expand(2, -1)
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2), noise=noise)
    found = model(images, visible)
    np.testing.assert_allclose(found.prediction, expected.logits, atol=1e-5)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize("pools", [1, 2])
def test_a_masked_autoencoder_of_hiera_has_its_decoder(pools, tmp_path):
    """As facebook/hiera-*-224-mae-hf, whose last stage does not pool; saved again, it is the same for transformers."""
    decoder = dict(decoder_hidden_size=8, decoder_depth=1, decoder_num_heads=4, mask_ratio=0.5, num_query_pool=pools)
    reference = published(tmp_path / "theirs", "Hiera", "ForPreTraining", **decoder)
    model = greenjax.load_pretrained(tmp_path / "theirs")
    assert isinstance(model, GreenMIM) and model.config.decoder.num_heads == 4 and model.config.mask.ratio == 0.5
    images, visible = some_images(model), np.arange(9).reshape(3, 3) % 2 == 1
    noise = torch.tensor(~visible.reshape(1, -1)).float().expand(2, -1)

    def predicted(theirs):
        with torch.no_grad():
            return theirs(torch.tensor(images).permute(0, 3, 1, 2), noise=noise)

    expected, found = predicted(reference), model(images, visible)
    patches = expected.logits.numpy().reshape(*expected.logits.shape[:2], 3, -1).swapaxes(2, 3)
    np.testing.assert_allclose(found.prediction, patches.reshape(found.prediction.shape), atol=1e-5)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)

    greenjax.save_torch(model, tmp_path / "own", "hf")
    own, info = transformers.HieraForPreTraining.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not any(info.values())
    np.testing.assert_array_equal(predicted(own.eval()).logits, expected.logits)
    again = greenjax.load_pretrained(tmp_path / "own")
    same_weights(model, again)
    assert again.config.decoder.to_dict() == model.config.decoder.to_dict()

    config = resolve(flatten(model.config) | {"task": "finetune", "model.num_classes": 3, "model.query_pools": 2})
    tuned = greenjax.load_torch(tmp_path / "theirs", config, "hf")
    assert tuned.grid.side(-1) == 1 and same_encoder(tuned, model)
    plain = greenjax.load_torch(tmp_path / "theirs", resolve(flatten(model.config) | {"decoder.fusion": False}), "hf")
    assert same_encoder(plain, model) and len(plain.decoder.fusion) == 0


def same_encoder(one, other):
    there = flat_weights(other)
    return all(np.array_equal(value, there[key]) for key, value in flat_weights(one).items() if key[:7] == "encoder")


def same_weights(one, other):
    for name, value in flat_weights(one).items():
        np.testing.assert_array_equal(flat_weights(other)[name], value, err_msg=name)


@pytest.mark.parametrize("kind", ["green", "classifier"])
def test_runs_and_files_of_greenjax_come_back_whole(kind, tmp_path):
    """With decoder or head, and the view of the run."""
    layout = {"green": "greenmim", "classifier": "timm"}[kind]
    view = dict(data__eval_crop=0.75, data__scale=100.0, data__dtype="uint16", data__no_data="0")
    view |= dict(data__channels=(2, 0, 1), data__alpha="keep", data__page=1)
    own = random_model("swin", kind, **view, decoder__num_heads=4, mask__ratio=0.5)
    own.classes = tuple("abcde") if kind == "classifier" else ()
    greenjax.save_torch(own, tmp_path / "file.safetensors", layout)
    write_start(tmp_path / "run", own, greenjax.resolve(own.config))
    for path in (tmp_path / "file.safetensors", tmp_path / "run"):
        model = greenjax.load_pretrained(path)
        assert isinstance(model, {"green": GreenMIM, "classifier": Classifier}[kind])
        assert model.classes == own.classes and model.config.image_size == own.config.image_size
        for section in ("model", *(["decoder"] if kind == "green" else [])):
            assert model.config[section].to_dict() == own.config[section].to_dict()
        for key in ("mean", "std", "scale", "eval_crop", "dtype", "no_data", "channels", "alpha", "page"):
            assert model.config.data[key] == own.config.data[key], key
        assert kind != "green" or model.config.mask.ratio == 0.5
        same_weights(own, model)


def test_an_export_of_another_epsilon_comes_back_as_it_is(tmp_path):
    """What greenjax wrote beside the tensors goes before config.json, which cannot say all of it."""
    own = greenjax.build(small_config(task="finetune", model__num_classes=3, model__norm_epsilon=1e-3))
    greenjax.save_torch(own, tmp_path / "hf", "hf")
    assert greenjax.load_pretrained(tmp_path / "hf").config.model.to_dict() == own.config.model.to_dict()


def test_every_norm_of_a_vit_has_the_epsilon_of_its_folder(tmp_path, caplog):
    """So large that another one would be seen; and there is nothing to tell, on the way in or out."""
    reference = published(tmp_path / "theirs", "ViT", layer_norm_eps=0.5)
    model = greenjax.load_pretrained(tmp_path / "theirs")
    images = some_images(model)
    np.testing.assert_allclose(model(images), theirs(reference, images).logits, atol=1e-5)
    assert not any("epsilon" in record.message or "eps" in record.message for record in caplog.records)
    assert greenjax.save_torch(model, tmp_path / "own", "hf") == []
    own = transformers.ViTForImageClassification.from_pretrained(tmp_path / "own").eval()
    np.testing.assert_allclose(model(images), theirs(own, images).logits, atol=1e-5)


def test_a_training_takes_the_model_of_a_folder_of_transformers(tmp_path):
    published(tmp_path, "ConvNextV2")
    settings, line = inherit({"init": str(tmp_path), "task": "finetune"}, ())
    assert settings["model.embed_dims"] == (8, 12) and settings["data.mean"] == MEAN
    assert "model.embed_dims=(8, 12)" in line and line.endswith("image_size is None, and was (32, 32) there")


def test_a_name_of_the_hub_is_asked_of_its_library(tmp_path, monkeypatch):
    """Without a network: the library's cache is filled by hand, and its offline mode is on."""
    reference = published(tmp_path / "there", "Swin")
    commit = "0" * 40
    cached = tmp_path / "cache" / "models--owner--tiny"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    os.rename(tmp_path / "there", cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model = greenjax.load_pretrained("owner/tiny")
    images = some_images(model)
    np.testing.assert_allclose(model(images), theirs(reference, images).logits, atol=1e-5)
    assert model.config.init == "owner/tiny"
    with pytest.raises(ValueError, match="'owner/other': no such file or folder, and the hub does not") as error:
        greenjax.load_pretrained("owner/other")
    assert "\n" not in str(error.value) and isinstance(error.value.__cause__, errors.LocalEntryNotFoundError)


def test_any_fault_of_the_download_is_a_line(monkeypatch):
    """The HTTP client's errors are neither OSError nor ValueError."""

    def snapshot_download(*_, **__):
        raise RuntimeError("x\ny")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"'owner/tiny': no such file or folder, and the hub does not give it: x y$"):
        greenjax.load_pretrained("owner/tiny")


def test_only_the_files_of_one_kind_of_weights_are_downloaded(tmp_path, monkeypatch):
    asked = []
    published(tmp_path / "model", "Swin")
    torch.save(greenjax.load_pretrained(tmp_path / "model").config.to_dict(), tmp_path / "unused.bin")

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    greenjax.load_pretrained("owner/tiny", revision="v1")
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("owner/tiny", "v1") and not any("bin" in pattern for pattern in patterns)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the hub has no model\.safetensors or "):
        greenjax.load_pretrained("owner/tiny")
    assert any("pytorch_model-*.bin" in pattern for pattern in asked[-1][2])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"model_type": "clip"}, "model_type is 'clip' in config.json: expected swin or swinv2 or "),
        ({"hidden_act": "relu"}, "hidden_act is 'relu': expected 'gelu', which is all that a swin has here"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings is True: expected False"),
        ({"window_size": None}, "has no window_size: expected the config.json of a swin"),
        ({"num_heads": [3, 4]}, "model.num_heads is (3, 4): expected a divisor of the 8 channels of stage 1"),
        ({"patch_size": [2, 4]}, "patch_size is [2, 4]: expected 2"),
    ],
)
def test_what_greenjax_has_not_is_refused_in_a_line(entries, expected, tmp_path):
    published(tmp_path, "Swin")
    config = json.loads((tmp_path / "config.json").read_text()) | entries
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        greenjax.load_pretrained(tmp_path)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "entries", "expected"),
    [
        ("config", {"hidden_size": ...}, "has no hidden_size: expected the config.json of a vit"),
        ("config", {"hidden_size": None}, "has no hidden_size: expected the config.json of a vit"),
        ("config", {"hidden_size": 0}, "cannot be read: ZeroDivisionError("),
        ("config", {"intermediate_size": "24"}, "cannot be read: TypeError("),
        ("config", {"patch_size": []}, "cannot be read: IndexError("),
        ("config", {"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5': expected a number"),
        ("preprocessor_config", {"rescale_factor": 0}, "cannot be read: ZeroDivisionError("),
        ("preprocessor_config", {"size": {"width": 3}}, "cannot be read: KeyError('height')"),
    ],
)
def test_damaged_entries_are_refused_in_a_line(file, entries, expected, tmp_path, monkeypatch):
    """`...` stands for an entry that is not there."""
    monkeypatch.chdir(tmp_path)
    files = {"config": dict(VIT, model_type="vit", num_channels=3), "preprocessor_config": PROCESSORS["ViT"]}
    files[file] = {key: value for key, value in (files[file] | entries).items() if value is not ...}
    Path("preprocessor_config.json").write_text(json.dumps(files["preprocessor_config"]))
    with pytest.raises(InputError) as error:
        described(Path(), files["config"])
    assert str(error.value).startswith(f"'{file}.json'") and expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "notes"),
    [
        ({}, ["squeezes an image that is not square to 32 x 32"]),
        ({"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": 32}, ["not square to 40 x 40"]),
        ({"size": EDGE, "do_center_crop": True, "crop_size": 32}, []),
        ({"size": EDGE, "resample": 2}, ["resample is 2 in preprocessor_config.json; greenjax resizes bicubically"]),
        ({"do_resize": False, "resample": 2}, ["at their own size (do_resize is false); greenjax resizes them"]),
    ],
)
def test_preprocessors_unlike_greenjax_are_told(entries, notes, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["ViT"] | entries))
    found = described(tmp_path, dict(VIT, model_type="vit", num_channels=3)).notes
    assert len(found) == len(notes) and all(map(str.__contains__, found, notes))


def test_the_windows_of_a_folder_s_pre_training_come_with_it(tmp_path):
    """As published for Swin V2 `window12to16`: its offsets are divided by them. Pairs of sides are refused."""
    reference = published(tmp_path, "Swinv2", window_size=16, pretrained_window_sizes=[12, 6])
    model = greenjax.load_pretrained(tmp_path)
    assert model.config.model.pretrained_windows == (12, 6)
    images = some_images(model)
    np.testing.assert_allclose(model(images), theirs(reference, images).logits, atol=1e-5)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"pretrained_window_sizes": [[12, 6], [6, 6]]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"^model\.pretrained_windows is \(\[12, 6\], .*expected whole numbers"):
        greenjax.load_pretrained(tmp_path)


def test_places_that_say_no_model_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = greenjax.build(small_config(**ONE_STAGE))
    greenjax.save_torch(model, "weights.pth", "timm")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "weights.pth": "'weights.pth' does not say its model: expected the workdir of a run, ",
        "nowhere": "'nowhere': no such file or folder: expected the workdir",
        "empty": "workdir 'empty': expected the folder of a run",
    }.items():
        with pytest.raises(ValueError) as error:
            greenjax.load_pretrained(name)
        assert expected in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="revision is 'v1': expected none, as 'empty' is a path"):
        greenjax.load_pretrained("empty", revision="v1")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"asks the hub for it: `pip install 'greenjax\[huggingface\]'` installs it"):
        greenjax.load_pretrained("owner/name")
