"""Settings that come with the weights of `init`: the model always, the images of an evaluation where it has none."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small import small_config

import greenjax
from greenjax import main
from greenjax.backbones.registry import family_of
from greenjax.config import flags, flatten, load_config
from greenjax.config.inherit import describe, inherit, recorded
from greenjax.runtime import console

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = dict(model__in_channels=3, data__mean=(0.1, 0.2, 0.3), data__std=(0.4, 0.5, 0.6), data__source="folder")
SMALL |= dict(data__path="/data/mine", data__split="all[:90%]", data__eval_split="all[90%:]", data__eval_crop=0.875)


@pytest.fixture
def run(tmp_path):
    """The folder of a small run: nothing but its settings is read."""
    config = small_config(**SMALL, task="finetune", model__num_classes=4)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return tmp_path, config


def loaded(name, overrides, run):
    lines = []
    return load_config(CONFIGS / f"{name}.py", {"init": str(run)} | overrides, tell=lines.append), lines


@pytest.mark.parametrize("name", ["finetune_swin_b", "finetune_twins_l", "linear_swin_b", "swin_l"])
def test_the_model_is_that_of_the_weights_whatever_the_file_says(run, name):
    folder, there = run
    config, lines = loaded(name, {}, folder)
    for key in ("name", "patch", "window", "embed_dim", "embed_dims", "depths", "num_heads", "sr_ratios", "mlp_ratio"):
        assert config.model[key] == there.model[key], key
    assert (config.data.mean, config.data.std) == (there.data.mean, there.data.std)
    assert (config.data.source, config.model.num_classes, config.image_size) == ("tfds", None, (224, 224))
    (line,) = lines
    assert line.startswith(f"settings of init '{folder}': model.name='swin_t', model.embed_dim=8, ")
    assert line.endswith("; image_size is 224, and was [32, 32] there") == (config.task != "pretrain")


def test_a_config_keeps_what_is_no_part_of_the_weights(tmp_path):
    """How a ViT pools, and whether its positions are trained: the file's own, where it has one, else those of init."""
    there = small_config("vit", model__pool="mean", model__positions="sincos")
    file, silent = tmp_path / "config.py", there.to_dict()
    del silent["model"]["positions"]
    cases = ((there.to_dict(), "learned", "learned"), (there.to_dict(), None, "sincos"), (silent, "sincos", "sincos"))
    for settings, own, expected in cases:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        file.write_text(
            "from small import small_config\n\n\ndef get_config():\n    import greenjax\n"
            f"    config = greenjax.default_config()\n    config.steps = 1\n    config.model.positions = {own!r}\n"
            f"    config.init = {str(tmp_path)!r}\n    return config\n"
        )
        config = load_config(file, {"task": "finetune", "data.source": "digits"})
        assert (config.model.pool, config.model.positions) == ("mean", expected)


def test_a_pre_training_older_than_a_setting_of_the_decoder_goes_on_with_its_default(tmp_path):
    """Not with the config file's: the weights have no convolutions of a fusion."""
    there = small_config("hiera", decoder__depth=2).to_dict()
    for section, key in (("decoder", "fusion"), ("decoder", "positions"), ("model", "query_pools")):
        del there[section][key]
    (tmp_path / "config.json").write_text(json.dumps(there))
    config, (line,) = loaded("hiera_b", {}, tmp_path)
    assert (config.decoder.fusion, config.decoder.positions, config.decoder.depth) == (False, "sincos", 2)
    assert "decoder.fusion=False" in line and config.model.query_pools == 3
    assert loaded("hiera_b", {"model.query_pools": 1}, tmp_path)[0].model.query_pools == 1
    there["model"]["query_pools"] = 3  # the file has 2
    (tmp_path / "config.json").write_text(json.dumps(there))
    assert loaded("hiera_b", {}, tmp_path)[0].model.query_pools == 3
    assert loaded("hiera_b", {"task": "knn"}, tmp_path)[0].model.query_pools == 2


@pytest.mark.parametrize(("family", "kind"), [("swin", "file"), ("vit", "file"), ("vit", "hf"), ("hiera", "hf")])
def test_a_pre_training_goes_on_with_the_decoder_of_a_file_or_a_folder(family, kind, tmp_path):
    """Also in settings that no weight tells: the number of heads, and what is predicted."""
    own = dict(decoder__depth=2, decoder__num_heads=8, decoder__norm_pixels=False)
    own |= dict(decoder__fusion=True, decoder__positions="learned") if family == "hiera" else {}
    there = small_config(family, **own)
    if kind == "file":
        init = tmp_path / "weights.safetensors"
        save_file({"x": np.zeros(1)}, init, describe(there) | {"greenjax_version": greenjax.__version__})
    else:
        init = tmp_path
        described = family_of(there.model.name).layouts["hf"].folder(there, {"encoder", "decoder"})
        (tmp_path / "config.json").write_text(json.dumps(described))
    config, (line,) = loaded("digits", {}, init)
    assert config.decoder == there.decoder and "decoder.num_heads=8" in line
    assert loaded("digits", {"decoder.num_heads": 2}, init)[0].decoder.num_heads == 2
    for others in ({"task": "finetune"}, {"method": "simmim"}):  # have no such decoder
        assert loaded("digits", others, init)[0].decoder == load_config("digits").decoder


@pytest.mark.parametrize("kind", ["run", "timm", "simmim"])
def test_simmim_leaves_no_decoder_behind(kind, tmp_path):
    there, init = small_config(method="simmim"), tmp_path
    if kind == "run":
        (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    else:
        init = tmp_path / "weights.safetensors"
        greenjax.save_torch(greenjax.build(there, seed=0), init, kind)
        assert greenjax.load_pretrained(init).config.task == ("knn" if kind == "timm" else "pretrain")
    before = load_config("digits").decoder
    assert loaded("digits", {}, init)[0].decoder == before != there.decoder


def test_a_pre_training_from_a_classifier_has_a_decoder_of_its_own(run):
    folder, there = run
    before = load_config("digits").decoder
    assert loaded("digits", {}, folder)[0].decoder == before != there.decoder
    metadata = describe(there) | {"greenjax_version": greenjax.__version__}
    save_file({"x": np.zeros(1)}, folder / "weights.safetensors", metadata)
    assert loaded("digits", {}, folder / "weights.safetensors")[0].decoder == before


WIDER = {"image_size": 32, "model.window": 16}


@pytest.mark.parametrize(
    ("before", "given", "expected"),
    [
        ({}, {}, None),  # the same windows
        ({}, {"image_size": 96}, (8, 4)),
        ({}, WIDER, (8, 4)),
        ({}, {**WIDER, "model.pretrained_windows": (0, 0)}, None),
        ({}, {**WIDER, "model.pretrained_windows": (6, 6)}, (6, 6)),
        ({"model__pretrained_windows": (6, 3)}, {}, (6, 3)),
        ({"model__pretrained_windows": (6, 0)}, WIDER, (6, 4)),
        ({"image_size": 4, "task": "knn"}, {}, (2, 0)),  # a window of one token has no offsets
    ],
    ids=str,
)
def test_a_position_bias_stays_that_of_the_windows_of_the_weights(before, given, expected, tmp_path):
    """Swin V2's, where windows here are others: by the window, or by grids that they shrink to."""
    there = small_config("swinv2", **dict(image_size=16, model__window=8) | before)
    (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    config, lines = loaded("finetune_swinv2_b", {"image_size": 16} | given, tmp_path)
    assert config.model.pretrained_windows == expected
    told = any("model.pretrained_windows=" in line for line in lines)
    assert told == (expected is not None and "model.pretrained_windows" not in given)


def test_what_follows_from_the_name_is_not_told(tmp_path):
    there = load_config(CONFIGS / "swin_t.py")
    (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    config, lines = loaded("finetune_swin_b", {}, tmp_path)
    assert config.model.depths == (2, 2, 6, 2)
    assert lines == [f"settings of init '{tmp_path}': model.name='swin_t'"]
    assert loaded("finetune_swin_t", {}, tmp_path)[1] == []


DEEP = dict(data__dtype="uint16", data__no_data="0", data__scale=10000.0, data__channels=(2, 1, 0))


@pytest.mark.parametrize("task", ["pretrain", "finetune", "linear", "knn"])
def test_images_are_read_as_those_of_the_weights_unless_the_config_says_how(task, tmp_path):
    there = small_config(**SMALL, **DEEP)
    (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    own = {"init": str(tmp_path), "task": task, "data.mixup": 0, "data.randaugment": 0}
    lines = []
    config = load_config("digits", own, tell=lines.append)
    for key in ("dtype", "no_data", "scale", "channels", "alpha", "page"):
        assert config.data[key] == there.data[key], key
    assert "data.dtype='uint16', data.channels=[2, 1, 0], data.no_data='0'" in lines[0]
    given = load_config("digits", own | {"data.dtype": "int16"})
    assert (given.data.dtype, given.data.no_data, given.data.scale) == ("int16", "0", None)  # a scale is of its type
    (tmp_path / "own.yaml").write_text("steps: 9\ndata: {source: digits, dtype: float32, scale: 3}\n")
    config = load_config(tmp_path / "own.yaml", own)
    assert (config.data.dtype, config.data.no_data, config.data.channels) == ("float32", "none", ())
    assert config.data.scale == 3
    (tmp_path / "own.yaml").write_text("steps: 9\ndata: {source: digits, dtype: uint16, scale: 3}\n")
    assert load_config(tmp_path / "own.yaml", own).data.scale == 10000


def test_a_detector_refuses_weights_of_other_images_unless_it_is_told_to_read_pictures(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small_config(**SMALL, data__alpha="white").to_dict()))
    init = {"init": str(tmp_path), "detect.anchor_sizes": (4, 8, 16)}
    with pytest.raises(ValueError, match=r"data\.alpha is 'white': expected 'drop' for task 'detect'.* that of init '"):
        load_config("detect_swin_b", init)
    assert load_config("detect_swin_b", init | {"data.alpha": "drop"}).data.alpha == "drop"
    deep = small_config(**SMALL, data__dtype="uint16", data__scale=10000.0)
    (tmp_path / "config.json").write_text(json.dumps(deep.to_dict()))
    assert load_config("detect_swin_b", init | {"data.dtype": "uint8"}).data.scale is None


def test_an_evaluation_takes_images_and_classes_too(run):
    folder, there = run
    for name, classes in (("eval", 4), ("knn", None)):
        config, _ = loaded(name, {}, folder)
        assert config.model.num_classes == classes
        assert (config.image_size, config.data.eval_crop) == ((32, 32), 0.875)
        for key in ("source", "path", "split", "eval_split"):
            assert config.data[key] == there.data[key], key
    config, _ = loaded("eval", {"data.path": "/other", "data.eval_split": "test", "image_size": 64}, folder)
    assert (config.data.source, config.data.path, config.data.eval_split) == ("folder", "/other", "test")
    assert config.image_size == (64, 64)
    config, _ = loaded("eval", {"data.source": "digits"}, folder)
    assert (config.data.path, config.data.eval_split) == ("", "")
    (folder / "config.json").write_text(json.dumps(small_config(task="finetune").to_dict()))  # of digits
    with pytest.raises(ValueError, match=r"^data\.path is '/other': expected '' for data\.source 'digits'"):
        loaded("eval", {"data.path": "/other"}, folder)


def test_an_evaluation_of_a_detector_has_the_batch_of_its_training(tmp_path):
    settings = dict(data__source="scenes", data__eval_split="test", data__batch_size=4, optim__accumulation=2)
    there = small_config(**settings, task="detect", model__num_classes=3, detect__anchor_sizes=(4, 8, 16))
    (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    for given, expected in (({}, (4, 2)), ({"optim.accumulation": 4}, (4, 4)), ({"data.batch_size": 1}, (1, 1))):
        config, _ = loaded("eval", given, tmp_path)
        assert (config.data.batch_size, config.optim.accumulation) == expected


def test_a_file_that_names_its_images_keeps_them(run, tmp_path):
    own = tmp_path / "own.py"
    text = (CONFIGS / "eval.py").read_text()
    own.write_text(
        text.replace("    return", "    config.data.source, config.data.path = 'folder', '/mine'\n    return")
    )
    config = load_config(own, {"init": str(run[0])})
    assert (config.data.path, config.data.split, config.data.eval_split) == ("/mine", "train", "")


def test_images_of_an_evaluation_are_read_as_those_of_the_run_unless_its_file_says_how(tmp_path):
    there = small_config(**SMALL, task="finetune", model__num_classes=4, data__dtype="int16", data__no_data="-5")
    (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    own = tmp_path / "own.yaml"
    for text, given, expected in (
        ("{}", {}, ("int16", "-5")),
        ("{}", {"data.source": "python"}, ("int16", "-5")),
        ("{}", {"data.dtype": "uint8", "data.no_data": "none"}, ("uint8", "none")),
        ("data: {source: folder, path: /mine}", {}, ("int16", "-5")),
        ("data: {source: folder, path: /mine, dtype: uint16}", {}, ("uint16", "none")),
    ):
        own.write_text(text)
        config = load_config(own, {"init": str(tmp_path)} | given, task="eval")
        assert (config.data.dtype, config.data.no_data) == expected
        assert config.data.path == ("/mine" if "mine" in text else "" if "data.source" in given else "/data/mine")


def test_the_command_line_goes_before_where_weights_allow_it(run):
    folder, _ = run
    config, _ = loaded("finetune_swin_b", {"model.window": 8, "data.mean": (0.0, 0.0, 0.0)}, folder)
    assert (config.model.window, config.data.mean) == (8, (0.0, 0.0, 0.0))
    for key, value in {"model.name": "swin_b", "model.embed_dim": 16, "model.depths": (2, 4)}.items():
        with pytest.raises(ValueError, match=rf"^{key} is .*: expected .*, as the weights of init '.*' have it$"):
            loaded("finetune_swin_b", {key: value}, folder)
    assert loaded("finetune_swin_b", {"model.embed_dim": 8, "model.embed_dims": (0,)}, folder)[0].model.embed_dim == 8


def test_statistics_that_are_given_go_before_those_of_the_weights(run):
    folder, there = run
    found = dict(mean=[0.7] * 3, std=[0.2] * 3, dtype="uint8", scale=None, channels=[], no_data="none")
    (folder / "statistics.json").write_text(json.dumps(found))
    config, (line,) = loaded("finetune_swin_b", {"data.statistics": str(folder / "statistics.json")}, folder)
    assert (config.data.mean, config.data.std) == ((0.7,) * 3, (0.2,) * 3) and there.data.mean != config.data.mean
    assert "data.mean" not in line and "data.statistics" not in line


def test_a_file_may_leave_open_what_the_weights_bring(run, tmp_path):
    folder, there = run
    (tmp_path / "own.yaml").write_text(
        "steps: 9\nmodel: {name: null}\ndata: {source: folder, path: x, mean: null, std: null}\n"
    )
    config = load_config(tmp_path / "own.yaml", {"init": str(folder)})
    assert (config.model.name, config.data.mean) == (there.model.name, there.data.mean)


def test_paths_may_be_those_of_pathlib(run):
    folder, lines = run[0], []
    own = {"init": folder, "data.source": "folder"}
    config = load_config("digits", own | {"data.path": (Path("/a"), "/b")}, tell=lines.append)
    assert (config.init, config.data.path) == (str(folder), ("/a", "/b"))
    assert lines[0].startswith(f"settings of init '{folder}': ")
    assert load_config("digits", own | {"data.path": Path("/a")}).data.path == "/a"


def test_a_file_of_weights_brings_its_model(run, tmp_path):
    _, there = run
    file = tmp_path / "weights.safetensors"
    save_file({"x": np.zeros(1)}, file, describe(there) | {"greenjax_version": greenjax.__version__})
    config, _ = loaded("eval", {"data.source": "digits", "data.eval_split": "test"}, file)
    assert (config.model, config.image_size) == (there.model, there.image_size)
    assert (config.data.mean, config.data.eval_crop) == (there.data.mean, 0.875)
    save_file({"x": np.zeros(1)}, file)
    assert recorded(str(file)) == {}


def test_weights_that_say_nothing_change_nothing(tmp_path):
    before = flatten(greenjax.load_config(CONFIGS / "finetune_swin_b.py"))
    for init in (tmp_path, tmp_path / "nowhere", tmp_path / "none.safetensors"):
        assert inherit(before | {"init": str(init)}, ()) == (before | {"init": str(init)}, "")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # a folder of transformers
    assert inherit(before | {"init": str(tmp_path)}, ())[1] == ""
    (tmp_path / "config.json").write_text('{"model": {')
    with pytest.raises(ValueError, match=r"config\.json' is cut short or damaged: expected the settings of a run"):
        inherit(before | {"init": str(tmp_path)}, ())


def test_the_command_line_says_what_came_with_the_weights(run, capsys):
    folder, _ = run
    argv = ["greenjax", f"--config={CONFIGS / 'finetune_swin_b.py'}", f"--config.init={folder}"]
    _, config = flags.parse_command(flags.Parser("python -m greenjax.main"), argv)
    assert config.model.name == "swin_t"
    assert capsys.readouterr().out.startswith(f"settings of init '{folder}': model.name='swin_t', ")


def test_one_process_of_a_run_says_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "_silent", False)
    for name in ("start", "run"):
        monkeypatch.setattr(main, name, lambda *_: None)
    for process, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv("JAX_PROCESS_ID", process)
        main.main(["greenjax", "--config", str(CONFIGS / "finetune_swin_b.py"), f"--config.init={tmp_path}"])
        assert capsys.readouterr().out.count("settings of init") == count
