"""Weights in files of other programs: the dictionary and the prefix are found, or said."""

import re
import shlex

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small import small_config
from test_interop_layouts import random_model

import greenjax
from greenjax.backbones.registry import family_of
from greenjax.config import flatten, resolve
from greenjax.convert import make_parser
from greenjax.interop import files
from greenjax.interop.loading import blank_model, initial_model, read_torch
from greenjax.interop.selection import Place, find_places
from greenjax.interop.tensors import Reading, to_tensors
from greenjax.interop.weights import flat_weights, parameter_shapes


@pytest.fixture(scope="module")
def model():
    return random_model("swin", "classifier")


@pytest.fixture(scope="module")
def tensors(model, tmp_path_factory):
    """The encoder and head of the model, named as the official Swin."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    greenjax.save_torch(model, path, "swin")
    return {name: torch.tensor(value) for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def others(tensors):
    """The same names with other values; what follows from the geometry stays."""
    return {name: value if "index" in name or "mask" in name else value + 1 for name, value in tensors.items()}


def behind(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def read(tmp_path, saved, config, layout="swin", **options):
    """The model that a file of these things makes, and what is said of it."""
    path = tmp_path / "weights.pth"
    torch.save(saved, path)
    model, report = read_torch(path, config, layout, Reading(**options))
    return flat_weights(model), report.lines()


def taken(weights, tensors):
    """Are these the weights of the tensors, to the last?"""
    return (weights["encoder/norm/scale"] == tensors["norm.weight"].numpy()).all() and (
        weights["encoder/stages/0/blocks/0/mlp/fc1/kernel"] == tensors["layers.0.blocks.0.mlp.fc1.weight"].numpy().T
    ).all()


ONE_SET = {
    "torch.compile": lambda t: behind("_orig_mod.", t),
    "DataParallel, compiled": lambda t: {"state_dict": behind("module._orig_mod.", t)},
    "compiled, DataParallel": lambda t: {"model": behind("_orig_mod.module.", t)},
    "compiled inside": lambda t: {name.replace("layers.0.", "layers.0._orig_mod."): t[name] for name in t},
    "an encoder of a larger model": lambda t: {"state_dict": behind("encoder.", t)},
    "FSDP": lambda t: {f"_fsdp_wrapped_module.{k.replace('.mlp', '._checkpoint_wrapped_module.mlp')}": t[k] for k in t},
    "DeepSpeed": lambda t: {"module": behind("_forward_module.", t), "lr_scheduler": {"last": 3}},
    "Lightning": lambda t: {"epoch": 3, "state_dict": behind("model.net.", t), "callbacks": {"EMA": {"decay": 0.9}}},
    "mmengine": lambda t: {"meta": {"epoch": 1}, "state_dict": behind("backbone.", t), "optimizer": {"state": {}}},
    "a program's own names": lambda t: {"run": {"best": {"weights": behind("my.own.net.", t)}}},
    "with the optimizer's state": lambda t: {
        "model_state_dict": t,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1}]},
    },
    "parameters": lambda t: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in t.items()},
}


@pytest.mark.parametrize("kind", ONE_SET)
def test_the_one_set_of_weights_is_found_whole(kind, model, tensors, tmp_path):
    weights, lines = read(tmp_path, ONE_SET[kind](tensors), model.config)
    for name, value in flat_weights(model).items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert not lines


TWO_SETS = {
    "timm": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "--key state_dict", "key 'state_dict_ema'"),
    "mmengine": (
        lambda a, b: {"state_dict": a, "ema_state_dict": behind("module.", b)},
        "--key state_dict",
        "key 'ema_state_dict'",
    ),
    "Swin's own": (lambda a, b: {"model": a, "model_ema": b}, "--key model", "key 'model_ema'"),
    "DINO": (
        lambda a, b: {**behind("student.backbone.", a), **behind("teacher.backbone.", b)},
        "--prefix student.backbone.",
        "prefix 'teacher.backbone.'",
    ),
    "beside one another": (lambda a, b: {**a, **behind("ema.", b)}, "--prefix ''", "prefix 'ema.'"),
    "averaged": (
        lambda a, b: {"model": a, "swa_model": {**behind("module.", b), "n_averaged": torch.tensor(3)}},
        "--key model",
        "key 'swa_model'",
    ),
}


@pytest.mark.parametrize("kind", TWO_SETS)
def test_of_two_sets_the_average_is_taken_and_the_line_tells_how_to_take_the_other(
    kind, model, tensors, others, tmp_path
):
    made, typed, named = TWO_SETS[kind]
    weights, lines = read(tmp_path, made(tensors, others), model.config)
    assert taken(weights, others)
    said = next(line for line in lines if "sets of weights fit" in line)
    assert f"2 sets of weights fit: {named} was taken, a moving average; from-torch " in said
    typing = re.search(r"from-torch (.*) takes the other", said)[1]
    assert typing == typed
    given = make_parser().parse_args(
        ["from-torch", "--layout", "swin", "--input", "x", "--workdir", "y", *shlex.split(typing)]
    )
    weights, lines = read(tmp_path, made(tensors, others), model.config, key=given.key, prefix=given.prefix)
    assert taken(weights, tensors)
    assert not [line for line in lines if "sets of weights fit" in line]


def test_three_sets_are_named_by_what_tells_them_apart(model, tensors, others, tmp_path):
    saved = {"last": {**behind("net.", tensors), **behind("net_ema.", others)}, "best": behind("net_ema.", others)}
    _, lines = read(tmp_path, saved, model.config)
    said = "3 sets of weights fit: key 'last' prefix 'net_ema.' was taken, a moving average; from-torch "
    assert said + "--key last --prefix net. or --key best --prefix net_ema. takes another" in lines


def test_where_none_is_an_average_the_first_is_taken(model, tensors, others, tmp_path):
    saved = {**behind("encoder_q.", tensors), **behind("encoder_k.", others)}
    weights, lines = read(tmp_path, saved, model.config)
    assert taken(weights, tensors)
    assert any(
        "prefix 'encoder_q.' was taken, the first in the file; from-torch --prefix encoder_k." in x for x in lines
    )
    assert f"left out, not behind 'encoder_q.': encoder_k ({len(tensors)} tensors)" in lines
    weights, _ = read(tmp_path, saved, model.config, prefix="encoder_k")  # where it begins is enough
    assert taken(weights, others)


def test_the_set_that_fits_the_model_goes_before_an_average_that_does_not(model, tensors, tmp_path):
    """A student and a larger teacher: only one of them is the configured model."""
    larger = {name: torch.ones([2 * side for side in value.shape]) for name, value in tensors.items()}
    weights, lines = read(tmp_path, {"teacher": larger, "student": tensors}, model.config)
    assert taken(weights, tensors)
    assert not [line for line in lines if "sets of weights fit" in line]


def test_what_stands_beside_the_weights_is_left_out_and_named(model, tensors, tmp_path):
    encoder = {name: value for name, value in tensors.items() if not name.startswith("head")}
    beside = {"model.head.fc.weight": torch.ones(2), "neck.a": torch.ones(2), "neck.b": torch.ones(2)}
    _, lines = read(tmp_path, {"state_dict": {**behind("model.backbone.", encoder), **beside}}, model.config)
    assert "left out, not behind 'model.backbone.': model.head (1 tensor), neck (2 tensors)" in lines
    _, lines = read(tmp_path, {**behind("module.", tensors), "n_averaged": torch.tensor(3)}, model.config)
    assert lines == ["left out, not behind 'module.': n_averaged (1 tensor)"]


def test_a_layouts_own_prefix_stays_with_its_decoder(tmp_path):
    for layout, kind in (("greenmim", "green"), ("simmim", "simmim"), ("hf", "simmim")):
        model = random_model("swin", kind)
        path = tmp_path / f"{layout}.safetensors"
        greenjax.save_torch(model, path, layout)
        tensors = {name: torch.tensor(value) for name, value in load_file(path).items()}
        weights, lines = read(tmp_path, {"state_dict": behind("net.", tensors)}, model.config, layout)
        for name, value in flat_weights(model).items():
            np.testing.assert_array_equal(weights[name], value, err_msg=f"{layout}: {name}")
        assert not [line for line in lines if "left out" in line or "new" in line]


def test_a_key_or_a_prefix_that_is_not_there_is_refused_with_those_that_are(model, tensors, tmp_path):
    with pytest.raises(ValueError, match=r"key is 'modle': the file has 'model', 'best\.ema'"):
        read(
            tmp_path,
            {"model": tensors, "best": {"ema": {"norm.weight": tensors["norm.weight"]}}},
            model.config,
            key="modle",
        )
    with pytest.raises(ValueError, match=r"prefix is 'nets.': names in the file begin with 'head.', 'module.', 'net.'"):
        saved = {**behind("net.", tensors), "module.x": torch.ones(1), "head.x": torch.ones(1)}
        read(tmp_path, saved, model.config, prefix="nets.")


def test_many_misfits_are_ten_and_a_count(model, tmp_path):
    with pytest.raises(ValueError) as refused:
        read(tmp_path, {"model": {f"x.{i}": torch.ones(1) for i in range(327)}}, model.config)
    lines = str(refused.value).splitlines()
    total = int(re.search(r"as layout 'swin', (\d+) misfits:$", lines[0])[1])
    assert total > 327
    assert len(lines) == 12
    assert lines[-1] == f"  and {total - 10} more"


def test_the_layout_is_named_that_fits_behind_a_prefix(model, tensors, tmp_path):
    with pytest.raises(ValueError, match=r"as layout 'mmdet', \d+ misfits \(the names look like layout swin\)"):
        read(tmp_path, {"state_dict": behind("module.net.", tensors)}, model.config, "mmdet")


@pytest.mark.parametrize("layout", ["swin", "timm", "hf", "torchvision", "mmdet", "simmim"])
def test_init_takes_a_file_of_any_program_in_the_layout_that_it_fits(layout, tmp_path):
    """A folder of transformers, a *.pth with or without a prefix, *.safetensors without metadata."""
    model = random_model("swin", "simmim" if layout == "simmim" else "classifier")
    path = tmp_path / ("hf" if layout == "hf" else "weights.pth")
    greenjax.save_torch(model, path, layout)
    if layout == "torchvision":
        torch.save({"state_dict": behind("module.", torch.load(path))}, path)
    start, report = initial_model(resolve(flatten(model.config) | {"init": str(path), "seed": 7}))
    weights = flat_weights(start)
    for name, value in flat_weights(model).items():
        if layout != "mmdet" or name.startswith("encoder"):
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert layout == "hf" or f"layout {layout}, by the names in the file" in report.lines()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_read_once(suffix, model, tmp_path, monkeypatch):
    """Pickles of a training have gigabytes."""
    path, read, reads = tmp_path / f"weights{suffix}", files._read, []
    greenjax.save_torch(model, path, "timm")
    monkeypatch.setattr(files, "_read", lambda *args: reads.append(args) or read(*args))
    initial_model(resolve(flatten(model.config) | {"init": str(path)}))
    assert len(reads) == 1
    if suffix == ".safetensors":  # says its model
        greenjax.load_pretrained(path)
        assert len(reads) == 2


def test_init_refuses_what_no_layout_or_more_than_one_model_fits(model, tensors, tmp_path):
    def refusal(saved):
        torch.save(saved, tmp_path / "weights.pth")
        with pytest.raises(ValueError) as refused:
            initial_model(resolve(flatten(model.config) | {"init": str(tmp_path / "weights.pth")}))
        return str(refused.value)

    assert "its names are those of no layout of a swin_t, swin, timm" in refusal({"x.y": torch.ones(1)})
    message = refusal(behind("encoder.", {k: v for k, v in tensors.items() if not k.startswith("head")}))
    assert "its names fit layout swin or greenmim or simmim, and do not tell the order of patch merging" in message
    assert f"python -m greenjax.convert from-torch --layout swin --input {tmp_path}/weights.pth --config" in message
    assert "as layout 'swin', 1 misfit:" in refusal({k: v for k, v in tensors.items() if k != "norm.bias"})


@pytest.mark.parametrize("family", ["swin", "twins", "pcpvt"])
def test_every_layout_is_found_behind_a_prefix(family):
    """By names alone, of each encoder and whatever else its layout has."""
    config = small_config(family)
    zeros = {
        name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(blank_model(config)).items()
    }
    for name, layout in family_of(config.model.name).layouts.items():
        tensors, _ = to_tensors(zeros, config, name)
        assert find_places({"sd": behind("my.net.", tensors)}, layout) == [Place("sd", "my.net.")], name
