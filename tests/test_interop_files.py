"""Files: metadata, halves, wrappers; and every bad file is refused with one clear message, and nothing is loaded."""

import argparse
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small import small_config
from test_interop_layouts import SWIN, random_model

import greenjax
from greenjax import convert
from greenjax.config import flatten
from greenjax.config.inherit import recorded
from greenjax.interop import huggingface
from greenjax.interop.files import write_tensors
from greenjax.interop.loading import initial_model
from greenjax.interop.weights import flat_weights
from greenjax.runtime.files import replace_text


@pytest.fixture(scope="module")
def model():
    return random_model("swin", "classifier")


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    greenjax.save_torch(model, path, "swin", step=12)
    return path


def refusal(path, config, layout="swin", **options):
    with pytest.raises(ValueError) as refused:
        greenjax.load_torch(path, config, layout, **options)
    return str(refused.value)


def changed(path, change):
    """The file with its tensors changed in place, and without metadata, as another program would write it."""
    tensors = load_file(path)
    change(tensors)
    other = path.with_name("other.safetensors")
    save_file(tensors, other)
    return other


def test_metadata_says_what_is_in_a_file(model, saved):
    with safe_open(saved, "np") as opened:
        metadata = opened.metadata()
    expected = dict(format="pt", architecture="swin_t", window="4", image_size="64x64", layout="swin", step="12")
    assert expected.items() <= metadata.items()
    assert metadata["greenjax_version"] == greenjax.__version__
    assert json.loads(metadata["model"])["depths"] == [2, 2]
    assert json.loads(metadata["mean"]) == [0.5, 0.5, 0.5]


def test_metadata_of_another_program_says_nothing(model, saved):
    """Its keys may have the names of greenjax's own, and mean something else."""
    other = saved.with_name("other.safetensors")
    theirs = {"model": "swin_t", "layout": "NCHW", "image_size": "64", "classes": "cats, dogs", "format": "pt"}
    save_file(load_file(saved), other, theirs)
    config = greenjax.resolve(flatten(model.config) | {"init": str(other)})
    for found in (greenjax.load_torch(other, config, "swin"), initial_model(config)[0]):
        assert found.classes == ()
        for name, value in flat_weights(found).items():
            np.testing.assert_array_equal(value, flat_weights(model)[name])
    assert recorded(str(other)) == {}


def test_numbers_keep_their_shape_and_arrays_their_order(tmp_path):
    tensors = {"count": np.array(3, np.float32), "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_tensors(tmp_path / "weights.safetensors", tensors, {})
    for name, value in load_file(tmp_path / "weights.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name], strict=True)


def test_half_precision_becomes_float32(model, saved):
    for dtype in (torch.bfloat16, torch.float16):
        tensors = {name: torch.tensor(value) for name, value in load_file(saved).items()}
        halves = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        torch.save({"model": halves}, saved.with_suffix(".pth"))
        from safetensors.torch import save_file as save_torch_file

        save_torch_file(halves, saved.with_name("half.safetensors"))
        for path in (saved.with_suffix(".pth"), saved.with_name("half.safetensors")):
            weights = flat_weights(greenjax.load_torch(path, model.config, "swin"))
            expected = halves["norm.weight"].float().numpy()
            np.testing.assert_array_equal(weights["encoder/norm/scale"], expected)


def as_type(saved, dtype):
    """The floats of a file in another type; masks of -100 stay."""
    tensors = {name: torch.tensor(value) for name, value in load_file(saved).items()}
    return {
        name: value.to(dtype) if value.is_floating_point() and "mask" not in name else value
        for name, value in tensors.items()
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64], ids=str)
def test_floats_of_any_size_are_read(model, saved, dtype):
    from safetensors.torch import save_file as save_torch_file

    tensors = as_type(saved, dtype)
    torch.save(tensors, saved.with_suffix(".pth"))
    save_torch_file(tensors, saved.with_name("other.safetensors"))
    expected = tensors["layers.0.blocks.0.mlp.fc1.weight"].float().numpy().T
    for path in (saved.with_suffix(".pth"), saved.with_name("other.safetensors")):
        weights = flat_weights(greenjax.load_torch(path, model.config, "swin"))
        np.testing.assert_array_equal(weights["encoder/stages/0/blocks/0/mlp/fc1/kernel"], expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8], ids=str)
def test_weights_that_are_no_floats_are_refused(model, saved, dtype):
    """Integers would be quantised weights without their scales."""
    from safetensors.torch import save_file as save_torch_file

    tensors = as_type(saved, torch.float32) | {"norm.weight": torch.ones(16, dtype=dtype)}
    torch.save(tensors, saved.with_suffix(".pth"))
    save_torch_file(tensors, saved.with_name("other.safetensors"))
    for path in (saved.with_suffix(".pth"), saved.with_name("other.safetensors")):
        found = str(dtype).removeprefix("torch.")
        assert refusal(path, model.config).splitlines() == [
            "the file does not fit swin_t as layout 'swin', 1 misfit:",
            f"  other type: norm.weight is {found}, expected floats (here encoder/norm/scale)",
        ]


def test_quantised_and_sparse_tensors_are_read_and_those_without_values_refused(model, saved):
    path, name = saved.with_suffix(".pth"), "layers.0.blocks.0.mlp.fc1.weight"
    tensors = as_type(saved, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, on quantised tensors
        quantised = torch.quantize_per_tensor(tensors[name], 0.1, 0, torch.qint8)
    for changed_to in (quantised, tensors[name].to_sparse()):
        torch.save(tensors | {name: changed_to}, path)
        weights = flat_weights(greenjax.load_torch(path, model.config, "swin"))
        expected = quantised.dequantize() if changed_to is quantised else tensors[name]
        np.testing.assert_array_equal(weights["encoder/stages/0/blocks/0/mlp/fc1/kernel"], expected.numpy().T)
    torch.save(tensors | {name: tensors[name].to("meta")}, path)
    assert refusal(path, model.config) == f"{name} is a meta tensor: the file holds its shape, but no values"


def test_types_that_numpy_does_not_have_are_refused(model, saved):
    data = saved.read_bytes()
    head = int.from_bytes(data[:8], "little")
    spoilt = data[8 : 8 + head].replace(b'"F32"', b'"F4"', 1)
    start = json.loads(spoilt)
    name = next(key for key, value in start.items() if value.get("dtype") == "F4")
    start[name]["shape"][-1] *= 8
    spoilt = json.dumps(start).encode()
    saved.write_bytes(len(spoilt).to_bytes(8, "little") + spoilt + data[8 + head :])
    assert f"1 of {len(start) - 1} tensors are F4, which cannot be read: {name!r}" in refusal(saved, model.config)


def test_a_prefix_goes_before_every_name(model, tmp_path):
    greenjax.save_torch(model, tmp_path / "a.safetensors", "swin", prefix="backbone.")
    assert all(name.startswith("backbone.") for name in load_file(tmp_path / "a.safetensors"))
    greenjax.load_torch(tmp_path / "a.safetensors", model.config, "swin")


def test_a_file_cut_short_is_refused(model, saved):
    whole = saved.read_bytes()
    for cut in (4, 200, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:cut])
        assert "cannot be read, the file is damaged or cut short" in refusal(saved, model.config)
    greenjax.save_torch(model, saved.with_suffix(".pth"), "swin")
    whole = saved.with_suffix(".pth").read_bytes()
    for cut in (4, len(whole) // 2):
        saved.with_suffix(".pth").write_bytes(whole[:cut])
        assert "cannot be read, the file is damaged or cut short" in refusal(saved.with_suffix(".pth"), model.config)


class Harmful:
    def __reduce__(self):
        return (print, ("this must not be printed",))


@pytest.mark.parametrize("container", ["zip", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_with_the_way_round_it(model, tmp_path, capsys, container):
    path = tmp_path / "weights.pth"
    if container == "zip":
        torch.save({"model": {"norm.weight": torch.zeros(3)}, "config": Harmful()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Harmful()}, protocol=2))
    message = refusal(path, model.config)
    assert "hold more than tensors (" in message
    assert "(print), and reading that could run any code, so nothing was read" in message
    assert "weights_only=False" in message
    assert "extract --trust" in message
    assert "must not be printed" not in capsys.readouterr().out


class Net(torch.nn.Module):
    """A module as a program saves it whole."""

    def __init__(self, tensors):
        super().__init__()
        for name, value in tensors.items():
            parent = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, torch.nn.Module())
                parent = parent.get_submodule(part)
            parent.register_buffer(last, value)


def beside(tensors, kind):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    return {
        "settings": lambda: {"model": tensors, "args": argparse.Namespace(lr=1.0)},
        "the state of an optimizer": lambda: {
            "model": tensors,
            "optimizer": optimizer.state_dict(),
            "best": np.float64(0.5),
        },
        "an optimizer": lambda: {"model": tensors, "optimizer": optimizer},
        "numbers of NumPy": lambda: {"state_dict": tensors, "accuracy": np.float32(0.5), "epoch": np.int64(3)},
        "arrays of NumPy": lambda: {"model": {name: value.numpy() for name, value in tensors.items()}},
        "a whole module": lambda: Net(tensors),
        "a module beside": lambda: {"epoch": 3, "ema": Net(tensors)},
    }[kind]()


def printed_command(message):
    """What the refusal of a file says to type."""
    return shlex.split(re.search(r"python -m greenjax\.convert extract .*$", message)[0])


KINDS_BESIDE = ["settings", "the state of an optimizer", "an optimizer", "numbers of NumPy", "arrays of NumPy"]


@pytest.mark.parametrize("kind", [*KINDS_BESIDE, "a whole module", "a module beside"])
def test_the_command_that_a_refusal_prints_makes_a_file_that_is_read(model, saved, tmp_path, kind, capsys):
    path = tmp_path / "it's (new) weights.pth"
    torch.save(beside(as_type(saved, torch.float32), kind), path)
    command = printed_command(refusal(path, model.config))
    convert.main(command[2:])
    made = tmp_path / "it's (new) weights.safetensors"
    assert f"{made}: " in capsys.readouterr().out
    weights = flat_weights(greenjax.load_torch(made, model.config, "swin"))
    for name, value in flat_weights(model).items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    with pytest.raises(SystemExit, match="is there: expected a new file"):
        convert.main(command[2:])


@pytest.mark.parametrize("given", ["index", "folder", "weights.safetensors", "beside"])
def test_the_printed_command_names_the_whole_input_and_a_new_output(model, saved, tmp_path, given, capsys):
    tensors = as_type(saved, torch.float32)
    path = tmp_path / (given if given.endswith(".safetensors") else "weights.pth")
    if given in ("index", "folder"):
        index = sharded(tmp_path / "shards", load_file(saved), "bin")
        for shard in index.parent.glob("*.bin"):
            torch.save(torch.load(shard) | {"args": argparse.Namespace(lr=1.0)}, shard)
        path = index if given == "index" else index.parent
    else:
        torch.save({"model": tensors, "args": argparse.Namespace(lr=1.0)}, path)
    if given == "beside":
        for name in ("weights.safetensors", "weights_tensors.safetensors"):
            (tmp_path / name).touch()
    command = printed_command(refusal(path, model.config))
    convert.main(command[2:])
    made = Path(capsys.readouterr().out.partition(": ")[0])
    weights = flat_weights(greenjax.load_torch(made, model.config, "swin"))
    for name, value in flat_weights(model).items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_the_printed_command_runs_as_a_process_that_finds_the_modules_class(model, saved, tmp_path):
    """A module saved by a program whose classes lie in the folder where the command is typed."""
    (tmp_path / "nets.py").write_text("import torch\n\nclass Net(torch.nn.Module):\n    pass\n")
    program = (
        "import sys, torch; sys.path.insert(0, '.'); import nets; net = nets.Net(); net.norm = torch.nn.LayerNorm(3)"
    )
    subprocess.run([sys.executable, "-c", f"{program}; torch.save(net, 'net.pth')"], cwd=tmp_path, check=True)
    command = printed_command(refusal(tmp_path / "net.pth", model.config))
    with pytest.raises(SystemExit, match=r"need a class that cannot be imported here \(No module named 'nets'\)"):
        convert.main(command[2:])
    command[0] = sys.executable
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert {name: value.tolist() for name, value in load_file(tmp_path / "net.safetensors").items()} == {
        "norm.weight": [1.0, 1.0, 1.0],
        "norm.bias": [0.0, 0.0, 0.0],
    }


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_that_pytorch_did_not_write_are_read_when_trusted(model, saved, tmp_path, protocol):
    """Model zoos have dictionaries of NumPy arrays."""
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": load_file(saved), "by": "a program"}, protocol=protocol))
    convert.main(printed_command(refusal(tmp_path / "zoo.pkl", model.config))[2:])
    weights = flat_weights(greenjax.load_torch(tmp_path / "zoo.safetensors", model.config, "swin"))
    np.testing.assert_array_equal(weights["head/bias"], flat_weights(model)["head/bias"])


def test_extract_without_trust_runs_no_code_and_leaves_nothing(tmp_path, capsys):
    torch.save({"model": {"norm.weight": torch.zeros(3)}, "config": Harmful()}, tmp_path / "a.pth")
    arguments = ["extract", "--input", str(tmp_path / "a.pth"), "--output", str(tmp_path / "out" / "b.safetensors")]
    with pytest.raises(SystemExit, match="hold more than tensors"):
        convert.main(["greenjax.convert", *arguments])
    assert "must not be printed" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_extract_names_what_it_leaves_out(tmp_path, capsys):
    saved = {"ema": {"w": torch.ones(2)}, "x": torch.ones(2, dtype=torch.complex64), "y": torch.ones(2, device="meta")}
    torch.save(saved, tmp_path / "a.pth")
    convert.main(["c", "extract", "--input", str(tmp_path / "a.pth"), "--output", str(tmp_path / "b.safetensors")])
    assert list(load_file(tmp_path / "b.safetensors")) == ["ema.w"]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  left out: x is complex64",
        "  left out: y is a meta tensor: the file holds its shape, but no values",
    ]


def test_extract_of_nothing_writes_nothing(tmp_path):
    torch.save({"y": torch.ones(2, device="meta")}, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match="nothing in it can be written: left out: y is a meta tensor"):
        convert.main(["c", "extract", "--input", str(tmp_path / "a.pth"), "--output", str(tmp_path / "b.safetensors")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def sharded(folder, tensors, ending):
    """A folder of transformers with two shards and their index."""
    folder.mkdir()
    stem = "model" if ending == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{n}-of-00002.{ending}" for n in (1, 2)]
    shards = [dict(list(tensors.items())[n::2]) for n in (0, 1)]
    for name, shard in zip(files, shards):
        save_file(shard, folder / name) if ending == "safetensors" else torch.save(
            {key: torch.tensor(value) for key, value in shard.items()}, folder / name
        )
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": {key: files[n] for n in (0, 1) for key in shards[n]}}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_by_their_folder_or_index(model, saved, tmp_path, ending):
    index = sharded(tmp_path / "shards", load_file(saved), ending)
    for path in (index.parent, index):
        weights = flat_weights(greenjax.load_torch(path, model.config, "swin"))
        for name, value in flat_weights(model).items():
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
    first, second = sorted(path for path in index.parent.iterdir() if path != index)
    assert f"are one of 2 shards: expected {str(index)!r}" in refusal(first, model.config)
    second.unlink()
    assert refusal(index, model.config) == f"weights {str(index)!r}: 1 of 2 shards are not there: {second.name!r}"
    shutil.copy(first, second)
    assert "tensors are not in the shards: " in refusal(index, model.config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"weight_map": ', "expected JSON with a weight_map of names"),
        ("[]", "expected JSON with a weight_map of names"),
        ('{"weight_map": 3}', "expected JSON with a weight_map of names"),
        ('{"weight_map": {}}', "the weight_map names no tensors"),
        ('{"weight_map": {"a": 3}}', "the weight_map names 3: expected a file beside the index"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "names '../b.safetensors': expected a file beside the index"),
    ],
)
def test_a_damaged_index_is_refused_in_one_line(model, tmp_path, text, expected):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    message = refusal(index, model.config)
    assert expected in message
    assert "\n" not in message


IMPOSTORS = {
    "html.pth": (b"\n<!DOCTYPE html><html>", "a web page, not weights"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, not the weights"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the weights"),
    "empty.pth": (b"", "the file is empty"),
    "empty.safetensors": (b"", "the file is empty"),
    "text.pth": (b"hello", "neither safetensors nor a checkpoint of PyTorch"),
    "json.bin": (b'{"a": 1}', "neither safetensors nor a checkpoint of PyTorch"),
    "gzip.tar": (b"\x1f\x8b\x08\x00\x00", "a gzip archive: expected the file in it"),
    "keras.pth": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "weights.npz": (b"PK\x03\x04", "expected a file named *.safetensors, *.pth, *.pt, *.bin, *.ckpt, *.tar, *.pkl or"),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_what_is_no_weights_is_named_for_what_it_is(model, tmp_path, name):
    data, expected = IMPOSTORS[name]
    (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path / name, model.config)
    assert message.startswith(f"weights {str(tmp_path / name)!r}")
    assert expected in message
    assert "\n" not in message


def test_archives_and_special_files_are_named(model, saved, tmp_path):
    with tarfile.open(tmp_path / "weights.pth.tar", "w") as archive:
        archive.add(saved)
    assert "a tar archive: expected the file in it" in refusal(tmp_path / "weights.pth.tar", model.config)
    np.savez(tmp_path / "weights.npz", a=np.ones(2))
    shutil.copy(tmp_path / "weights.npz", tmp_path / "npz.pth")
    assert "a NumPy archive: expected weights of PyTorch" in refusal(tmp_path / "npz.pth", model.config)
    os.mkfifo(tmp_path / "fifo.pth")
    assert "fifo.pth': not a regular file" in refusal(tmp_path / "fifo.pth", model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is going away
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    message = refusal(tmp_path / "script.pt", model.config)
    assert "script.pt' are a TorchScript archive, a program, so nothing was read" in message
    convert.main(printed_command(message)[2:])
    assert set(load_file(tmp_path / "script.safetensors")) == {"weight", "bias"}


def test_a_file_is_read_by_what_is_in_it(model, saved, tmp_path):
    """safetensors named *.pth, and the other way round."""
    shutil.copy(saved, tmp_path / "a.pth")
    torch.save(as_type(saved, torch.float32), tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        weights = flat_weights(greenjax.load_torch(tmp_path / name, model.config, "swin"))
        np.testing.assert_array_equal(weights["head/bias"], flat_weights(model)["head/bias"])


def test_what_is_not_finite_is_refused(model, saved):
    def spoil(tensors):
        tensors["norm.weight"][1] = np.nan
        tensors["layers.0.blocks.0.norm1.bias"][0] = np.inf

    message = refusal(changed(saved, spoil), model.config)
    assert "2 of" in message
    assert "tensors are not finite: 'layers.0.blocks.0.norm1.bias', 'norm.weight'" in message


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    spoilt = random_model("swin", "green")
    spoilt.encoder.norm.bias[...] = spoilt.encoder.norm.bias[...].at[0].set(np.nan)
    with pytest.raises(ValueError, match=r"1 of .* not finite, such as encoder/norm/bias: nothing written"):
        greenjax.save_torch(spoilt, tmp_path / "a.safetensors", "swin")
    assert not list(tmp_path.iterdir())


def test_all_misfits_are_reported_at_once_with_both_names(model, saved):
    def spoil(tensors):
        del tensors["norm.weight"]
        tensors["layers.0.blocks.1.attn.qkv.bias"] = np.zeros(7, np.float32)
        tensors["layers.9.blocks.0.norm1.weight"] = np.zeros(8, np.float32)

    message = refusal(changed(saved, spoil), model.config).splitlines()
    assert message[0].startswith("the file does not fit swin_t as layout 'swin', 3 misfits")
    assert [line.strip() for line in message[1:]] == [
        "other shape: layers.0.blocks.1.attn.qkv.bias is [7], expected [24]"
        " (here encoder/stages/0/blocks/1/attn/qkv/bias)",
        "missing: norm.weight [16] (here encoder/norm/scale)",
        "unexpected: layers.9.blocks.0.norm1.weight [8] (nothing here)",
    ]


def test_another_architecture_is_refused(model, saved):
    deeper = small_config(**SWIN | dict(model__depths=(2, 4), task="finetune", model__num_classes=5))
    assert "another architecture, swin_t: model.depths is [2, 2] in the file, [2, 4] here" in refusal(saved, deeper)
    bare = changed(saved, lambda tensors: None)
    assert "missing: layers.1.blocks.2.norm1.weight" in refusal(bare, deeper)
    twins = random_model("twins", "classifier")
    greenjax.save_torch(twins, saved, "timm")
    assert "another architecture, twins_s: model.embed_dim is None" in refusal(saved, model.config, "timm")


def test_another_layout_is_refused_and_the_right_one_named(model, saved):
    assert "layout is 'timm': the file says 'swin'" in refusal(saved, model.config, "timm")
    bare = changed(saved, lambda tensors: None)
    assert "(the names look like layout swin)" in refusal(bare, model.config, "mmdet")
    assert "layout is 'keras': expected swin or timm or hf or" in refusal(saved, model.config, "keras")
    assert "layout is 'twins': expected swin or timm or hf or" in refusal(saved, model.config, "twins")
    assert "merge_order is 'raster': expected 'swin' with layout 'swin' of a swin_t" in refusal(
        saved, model.config, merge_order="raster"
    )


def test_a_wrong_window_is_refused(model, saved):
    name = "layers.0.blocks.0.attn.relative_position_bias_table"

    def rows(count):
        def change(tensors):
            tensors[name] = np.zeros((count, 2), np.float32)

        return change

    for count in (48, 25):  # of no window, and of a window of 3
        message = refusal(changed(saved, rows(count)), model.config)
        assert "relative_position_index in the file is that of a window of 4" in message
        assert f"has {count} rows: expected 49" in message
    greenjax.save_torch(model, saved.with_name("timm.safetensors"), "timm")  # without an index
    message = refusal(changed(saved.with_name("timm.safetensors"), rows(48)), model.config, "timm")
    assert f"other shape: {name} is [48, 2], expected [49, 2]" in message
    wider = small_config(**SWIN | dict(model__window=8, task="finetune", model__num_classes=5))
    message = refusal(saved, wider, resize="none")
    assert "relative_position_bias_table: the window is 4 in the weights, 8 here, and resize is 'none'" in message


@pytest.mark.parametrize("buffer", ["attn.relative_position_index", "attn_mask"])
def test_buffers_that_mean_something_else_are_refused(model, saved, buffer):
    def spoil(tensors):
        tensors[f"layers.0.blocks.1.{buffer}"][0, 0] += 1

    assert f"layers.0.blocks.1.{buffer}" in refusal(changed(saved, spoil), model.config)


def test_an_encoder_in_a_classifier_and_the_other_way_round_name_what_is_new_and_dropped(
    model, saved, caplog, tmp_path
):
    green = random_model("swin", "green")
    path = tmp_path / "green.safetensors"
    greenjax.save_torch(green, path, "greenmim")
    classifier = greenjax.load_torch(path, model.config, "greenmim")
    assert "new, as initialised: head (2 tensors)" in caplog.text
    assert "dropped: " in caplog.text
    assert "decoder_blocks (12 tensors)" in caplog.text
    here, there = flat_weights(green), flat_weights(classifier)
    assert all((there[name] == here[name]).all() for name in here if name.startswith("encoder"))
    caplog.clear()
    greenjax.load_torch(saved, green.config, "swin")
    assert "new, as initialised: decoder (19 tensors)" in caplog.text
    assert "dropped: head (2 tensors)" in caplog.text


def test_half_a_decoder_is_a_misfit(tmp_path):
    green = random_model("swin", "green")
    path = tmp_path / "green.safetensors"
    greenjax.save_torch(green, path, "greenmim")
    half = changed(path, lambda tensors: tensors.pop("decoder_norm.weight"))
    assert "missing: decoder_norm.weight [16] (here decoder/norm/scale)" in refusal(half, green.config, "greenmim")


def test_a_head_of_another_size_is_refused_unless_a_new_one_is_wanted(model, saved):
    other = greenjax.resolve({**greenjax.flatten(model.config), "model.num_classes": 3})
    message = refusal(saved, other)
    assert "other shape: head.weight is [5, 16], expected [3, 16] (here head/kernel)" in message
    fresh = greenjax.load_torch(saved, other, "swin", new_head=True)
    assert fresh.head.kernel.shape == (16, 3)


def test_greenmims_own_files_get_their_epsilon(tmp_path):
    green = random_model("swin", "green")
    path = tmp_path / "green.safetensors"
    greenjax.save_torch(green, path, "greenmim")
    assert greenjax.load_torch(path, green.config, "greenmim").config.model.norm_epsilon == 1e-5  # written here
    theirs = changed(path, lambda tensors: None)
    assert greenjax.load_torch(theirs, green.config, "greenmim").config.model.norm_epsilon == 1e-6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weights", "expected a file named *.safetensors or *.pth"),
        ("weights.h5", "expected a file named *.safetensors or *.pth"),
        ("file/weights.pth", "cannot be written: "),
    ],
)
def test_outputs_that_cannot_be_are_refused(model, tmp_path, name, expected):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError) as refused:
        greenjax.save_torch(model, tmp_path / name, "swin")
    assert expected in str(refused.value)


def test_a_folder_may_have_a_dot_in_its_name(model, tmp_path):
    (tmp_path / "my.model").mkdir()
    for name in ("swin_b_v1.0", "my.model"):
        greenjax.save_torch(model, tmp_path / name, "hf")
        assert (tmp_path / name / "config.json").is_file() and (tmp_path / name / "model.safetensors").is_file()
        (tmp_path / name / "checkpoints").mkdir()  # of another program: this makes no run of it
        (tmp_path / name / "checkpoints" / "best.pt").touch()
        assert greenjax.load_pretrained(tmp_path / name).config.model.name == model.config.model.name
    with pytest.raises(ValueError, match=r"x\.safetensor': expected a file named .* or a folder; one of this name has"):
        greenjax.save_torch(model, tmp_path / "x.safetensor", "hf")
    (tmp_path / "run_v1.0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="is the workdir of a run: expected another folder"):
        greenjax.save_torch(model, tmp_path / "run_v1.0", "hf")


def test_an_export_leaves_the_workdir_of_a_run_as_it_is(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="is the workdir of a run: expected another folder"):
        greenjax.save_torch(model, tmp_path, "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_inputs_that_are_not_there_are_refused(model, tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.pth", model.config)
    assert "expected model.safetensors in the folder" in refusal(tmp_path, model.config)
    (tmp_path / "a.txt").write_text("")
    assert "expected a file named *.safetensors" in refusal(tmp_path / "a.txt", model.config)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "expected tensors by name, found list" in refusal(tmp_path / "list.pth", model.config)


@pytest.mark.parametrize(
    "raised", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_failed_write_leaves_the_old_file_and_no_draft(model, tmp_path, monkeypatch, suffix, raised):
    path = tmp_path / f"weights{suffix}"
    greenjax.save_torch(model, path, "swin")
    before = path.read_bytes()

    def fail(*args):
        raise raised

    monkeypatch.setattr("os.replace", fail)
    expected = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else ValueError
    with pytest.raises(expected) as failed:
        greenjax.save_torch(model, path, "swin")
    assert expected is KeyboardInterrupt or "cannot be written: No space left on device" in str(failed.value)
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    with pytest.raises(expected):
        greenjax.save_torch(model, tmp_path / "new" / "folder" / path.name, "swin")
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "new/a.pth", "new/a.safetensors"])
def test_a_full_disk_leaves_no_draft(tmp_path, name):
    """The limit on the size of a file stands for the disk: PyTorch's own error does not say what is wrong."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(ValueError, match=r"a\.\w+' cannot be written: File too large$"):
            write_tensors(tmp_path / name, {"a": np.ones(100_000, np.float32)}, {})
        with pytest.raises(ValueError, match=r"config.json' cannot be written: File too large$"):
            replace_text(tmp_path / "config.json", "a" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["new/weights.pth", "new/folder/weights.safetensors", "new/hf"])
def test_a_refused_export_leaves_no_folder(tmp_path, output):
    """The window is larger than the last grid: transformers and torchvision cannot have it."""
    wide = random_model("swin", "green", model__window=16)
    with pytest.raises(ValueError, match="smaller than the window of 16"):
        greenjax.save_torch(wide, tmp_path / output, "torchvision" if Path(output).suffix else "hf")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_finished_is_removed(model, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface, "replace_text", fail)
    with pytest.raises(OSError, match="No space left"):
        greenjax.save_torch(model, tmp_path / "new" / "hf", "hf")
    assert not list(tmp_path.iterdir())
