"""Files of official pre-training: FCMAE's sparse modules, and the masked autoencoder of Hiera."""

import math

import numpy as np
import torch
from safetensors.numpy import load_file
from test_interop_layouts import random_model

import greenjax
from greenjax.config import flatten, resolve
from greenjax.interop.loading import initial_model
from greenjax.interop.weights import flat_weights


def exported(model, path, layout):
    greenjax.save_torch(model, path / f"{layout}.safetensors", layout)
    return load_file(path / f"{layout}.safetensors")


def begun_with(model, tensors, path):
    """The weights of a run whose `init` is a file of these tensors, and what is said of it."""
    torch.save({"model": {name: torch.tensor(value) for name, value in tensors.items()}}, path / "weights.pth")
    config = resolve(flatten(model.config) | {"init": str(path / "weights.pth"), "seed": 7})
    start, report = initial_model(config)
    return flat_weights(start), report.lines()


def dense(sparse):
    """Tensors of sparse modules as those of the dense network: position k of a kernel is row k % side of column k //
    side, vectors are rows, and a wrapper stands around norms and linear layers."""
    tensors = {}
    for name, value in sparse.items():
        module, _, part = name.replace(".ln.", ".").replace(".linear.", ".").rpartition(".")
        if part == "kernel":
            side, (inputs, outputs) = (
                math.isqrt(len(value)),
                value.shape[1:] if value.ndim == 3 else (1, value.shape[1]),
            )
            weight = np.empty((outputs, inputs, side, side), np.float32)
            for k, tap in enumerate(value.reshape(-1, inputs, outputs)):
                weight[:, :, k % side, k // side] = tap.T
            tensors[f"{module}.weight"] = weight
        elif part in ("gamma", "beta"):
            tensors[f"{module}.{part}"] = value[None, None]
        else:
            tensors[f"{module}.{part}"] = value.ravel() if part == "bias" else value
    return tensors


def test_fcmae_has_sparse_kernels_and_no_last_norm(tmp_path):
    model = random_model("convnextv2", "green")
    sparse = exported(model, tmp_path, "fcmae")
    expected = {k: v for k, v in exported(model, tmp_path, "convnext").items() if not k.startswith("norm.")}
    found = dense(sparse)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    beside = {"mask_token": np.ones((1, 8, 1, 1)), "proj.weight": np.ones(2), "decoder.0.dwconv.weight": np.ones(2)}
    weights, lines = begun_with(model, {f"encoder.{name}": value for name, value in sparse.items()} | beside, tmp_path)
    for name, value in flat_weights(model).items():
        if name.startswith("encoder") and not name.startswith("encoder/norm"):
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert (weights["encoder/norm/scale"] == 1).all() and "layout fcmae, by the names in the file" in lines
    assert "files of layout 'fcmae' have no encoder/norm" in lines
    assert any(line.startswith("left out, not behind 'encoder.': mask_token") for line in lines)


def test_the_masked_autoencoder_of_hiera_gives_its_encoder(tmp_path):
    model = random_model("hiera", "green")
    encoder = exported(model, tmp_path, "hiera")
    encoder = {
        name.replace("norm.", "encoder_norm.") if name[:5] == "norm." else name: encoder[name] for name in encoder
    }
    beside = {"mask_token": np.ones((1, 1, 4)), "decoder_blocks.0.norm1.weight": np.ones(4)}
    beside |= {"multi_scale_fusion_heads.0.weight": np.ones((4, 4, 1, 1)), "decoder_pos_embed": np.ones((1, 4, 4))}
    weights, lines = begun_with(model, encoder | beside, tmp_path)
    for name, value in flat_weights(model).items():
        if name.startswith("encoder"):
            np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert "layout hiera_mae, by the names in the file" in lines
    dropped = next(line for line in lines if line.startswith("dropped: "))
    assert all(part in dropped for part in ("mask_token", "decoder_blocks", "multi_scale_fusion_heads"))
