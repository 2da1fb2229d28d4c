"""Files: metadata, halves, wrappers; and every bad file is refused with one clear message, and nothing is loaded."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small import small_config
from test_interop_layouts import SWIN, random_model

import greenjax
from greenjax.interop.weights import flat_weights


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


@pytest.mark.parametrize("wrapper", ["module.", "backbone."])
def test_prefixes_and_containers_of_training_scripts_come_off(model, saved, wrapper):
    tensors = {wrapper + name: torch.tensor(value) for name, value in load_file(saved).items()}
    torch.save({"epoch": 3, "state_dict": tensors}, saved.with_suffix(".pth"))
    weights = flat_weights(greenjax.load_torch(saved.with_suffix(".pth"), model.config, "swin"))
    np.testing.assert_array_equal(weights["head/bias"], flat_weights(model)["head/bias"])


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
    assert "must not be printed" not in capsys.readouterr().out


def test_what_is_not_finite_is_refused(model, saved):
    def spoil(tensors):
        tensors["norm.weight"][1] = np.nan
        tensors["layers.0.blocks.0.norm1.bias"][0] = np.inf

    message = refusal(changed(saved, spoil), model.config)
    assert "2 of" in message
    assert "tensors are not finite: layers.0.blocks.0.norm1.bias, norm.weight" in message


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
    assert "layout is 'keras': expected swin or twins" in refusal(saved, model.config, "keras")
    assert "layout is 'twins', which has no swin_t" in refusal(saved, model.config, "twins")
    assert "merge_order is 'raster' with layout 'swin'" in refusal(saved, model.config, merge_order="raster")


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


def test_inputs_that_are_not_there_are_refused(model, tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.pth", model.config)
    assert "expected model.safetensors in the folder" in refusal(tmp_path, model.config)
    (tmp_path / "a.txt").write_text("")
    assert "expected a file named *.safetensors" in refusal(tmp_path / "a.txt", model.config)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "expected tensors by name, found list" in refusal(tmp_path / "list.pth", model.config)


def test_a_failed_write_leaves_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save", full)
    with pytest.raises(ValueError, match=r"cannot be written: .*No space left"):
        greenjax.save_torch(model, saved, "swin")
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
