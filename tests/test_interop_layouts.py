"""Every layout has the names and shapes of its library, and a round trip keeps every bit."""

import jax
import numpy as np
import pytest
import torch
import torch_names
from small import small_config

import greenjax
from greenjax.backbones.registry import FAMILIES
from greenjax.config import flatten, resolve
from greenjax.errors import InputError
from greenjax.interop.loading import blank_model, initial_model, read_torch
from greenjax.interop.tensors import Reading, to_tensors
from greenjax.interop.weights import flat_weights, parameter_shapes, put_weights
from greenjax.training.start import write_start

SIZE, CLASSES = 64, 5
COLOURS = dict(model__in_channels=3, data__mean=(0.5,) * 3, data__std=(0.2,) * 3)
SWIN = dict(COLOURS, image_size=SIZE, model__patch=4, model__window=4, model__depths=(2, 2), model__embed_dim=8)
TWINS = dict(
    COLOURS,
    image_size=SIZE,
    model__patch=4,
    model__window=4,
    model__depths=(2, 2, 3),
    model__embed_dims=(8, 16, 32),
    model__num_heads=(2, 4, 8),
    model__sr_ratios=(4, 2, 1),
    model__mlp_ratio=(4, 2, 3),
)
PVT = dict(COLOURS, model__patch=4)  # the only one of its libraries
KINDS = {
    "green": dict(),
    "simmim": dict(method="simmim"),
    "classifier": dict(task="finetune", model__num_classes=CLASSES),
}


def random_model(family, kind, seed=0, **overrides):
    """A model of random weights everywhere: a constant would hide a mistaken place."""
    base = {"swin": SWIN, "twins": TWINS, "pcpvt": dict(TWINS, model__window=0), "pvt_v2": PVT}
    base = base.get(family, COLOURS)
    model, rng = blank_model(small_config(family, **base | KINDS[kind] | overrides)), np.random.default_rng(seed)
    shapes = parameter_shapes(model)
    put_weights(model, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    return model


def shapes_of(model, layout, **options):
    tensors, left_out = to_tensors(flat_weights(model), model.config, layout, **options)
    return {name: tuple(value.shape) for name, value in tensors.items()}, left_out


def swin_arguments(config, **more):
    model = config.model
    names = ("patch", "in_channels", "embed_dim", "depths", "num_heads", "window", "mlp_ratio")
    patch, channels, *rest = (model[name] for name in names)
    return dict(
        image_size=config.image_size,
        patch=patch,
        in_chans=channels,
        **dict(zip(("embed_dim", "depths", "num_heads", "window", "mlp_ratio"), rest)),
        **more,
    )


def twins_arguments(config, **more):
    model = config.model
    shape = dict(embed_dims=model.embed_dims, depths=model.depths, num_heads=model.num_heads)
    ratios = dict(mlp_ratios=model.mlp_ratio, sr_ratios=model.sr_ratios, window=model.window)
    return dict(shape, **ratios, patch=model.patch, in_chans=model.in_channels, **more)


@pytest.mark.parametrize(
    ("layout", "reference", "head"),
    [
        ("swin", torch_names.swin_official, True),
        ("timm", torch_names.swin_timm, True),
        ("torchvision", torch_names.swin_torchvision, True),
        ("mmdet", torch_names.swin_mmdet, False),
    ],
)
def test_swin_has_the_names_and_shapes_of_the_library(layout, reference, head):
    encoder, classifier = random_model("swin", "green"), random_model("swin", "classifier")
    arguments = swin_arguments(encoder.config)
    assert shapes_of(encoder, layout) == (reference(**arguments), ["decoder"])
    if head:
        assert shapes_of(classifier, layout) == (reference(**arguments, num_classes=CLASSES), [])
    else:
        assert shapes_of(classifier, layout) == (reference(**arguments), ["head"])


def test_a_window_larger_than_a_grid_has_the_librarys_table_and_no_mask():
    model = random_model("swin", "green", model__window=16)  # grids of 16 and 8
    arguments = swin_arguments(model.config)
    assert shapes_of(model, "swin")[0] == torch_names.swin_official(**arguments)
    assert shapes_of(model, "timm")[0] == torch_names.swin_timm(**arguments)


@pytest.mark.parametrize("family", ["twins", "pcpvt"])
def test_twins_has_the_names_and_shapes_of_the_library(family):
    encoder, classifier = random_model(family, "green"), random_model(family, "classifier")
    arguments = twins_arguments(encoder.config)
    for layout in ("twins", "timm"):
        assert shapes_of(encoder, layout)[0] == torch_names.twins_official(**arguments)
        assert shapes_of(classifier, layout) == (torch_names.twins_official(**arguments, num_classes=CLASSES), [])
    assert shapes_of(encoder, "mmdet")[0] == torch_names.twins_mm(**arguments)


@pytest.mark.parametrize(
    ("token", "pool", "last"), [(True, "token", "norm"), (True, "mean", "fc_norm"), (False, "mean", "fc_norm")]
)
def test_vit_has_the_names_and_shapes_of_timm(token, pool, last):
    model = random_model("vit", "classifier", model__class_token=token, model__pool=pool)
    expected = torch_names.vit_timm(32, 4, 3, 8, 2, class_token=token, norm_name=last, num_classes=CLASSES)
    assert shapes_of(model, "timm") == (expected, [])


@pytest.mark.parametrize(("layout", "pool"), [("timm", "token"), ("timm", "mean"), ("hf", "token"), (None, "mean")])
def test_the_head_of_a_vit_is_not_taken_for_one_of_another_pooling(layout, pool, tmp_path):
    """timm's name of the last norm tells which it is, transformers has the class token, and a run its settings; without
    the head, the encoder fits both."""
    model, path = random_model("vit", "classifier", model__pool=pool), tmp_path / {"timm": "vit.pth"}.get(layout, "vit")
    other = "mean" if pool == "token" else "token"
    if layout:
        greenjax.save_torch(model, path, layout)
    else:
        write_start(path, model, model.config)

    def loaded(**settings):
        config = resolve(flatten(model.config) | {"init": str(path)} | settings)
        return read_torch(path, config, layout, Reading(new_head=config.new_head)) if layout else initial_model(config)

    expected = f"expected '{pool}', that of the weights' head, or a new head, by --config.new_head"
    with pytest.raises(InputError, match=f"pool is '{other}': {expected}"):
        loaded(**{"model.pool": other})
    features = {"task": "knn", "model.num_classes": None}
    for fine in ({}, {"model.pool": other, "new_head": True}, {"model.pool": other} | features):
        found, report = loaded(**fine)
        np.testing.assert_array_equal(found.encoder.norm.scale, model.encoder.norm.scale)
    assert f"dropped: {'classifier' if layout == 'hf' else 'head'} (2 tensors)" in report.lines()


def test_the_pooling_is_that_of_the_weights_that_are_read(tmp_path):
    """A file may hold others; without a class token there is none to read."""
    model, path = random_model("vit", "classifier", model__pool="mean", model__class_token=False), tmp_path / "all.pth"
    mean = {name: torch.tensor(x) for name, x in to_tensors(flat_weights(model), model.config, "timm")[0].items()}
    token = {name.replace("fc_norm", "norm"): x for name, x in mean.items()}
    torch.save({"model": token, "ema": {f"net.{name}": x for name, x in mean.items()}}, path)
    loaded = greenjax.load_torch(path, model.config, "timm", key="ema")
    np.testing.assert_array_equal(loaded.head.kernel, model.head.kernel)
    with pytest.raises(InputError, match="pool is 'mean': expected 'token', that of the weights' head, or a new"):
        greenjax.load_torch(path, model.config, "timm", key="model")


def test_simmim_has_the_names_and_shapes_of_the_library():
    model = random_model("swin", "simmim")
    assert shapes_of(model, "simmim") == (torch_names.simmim_official(**swin_arguments(model.config)), [])


def test_the_paper_sized_models_have_the_names_of_the_libraries():
    """Swin-B and Twins-L, by shapes alone."""
    for name, layout, reference, of in (
        ("swin_b", "timm", torch_names.swin_timm, swin_arguments),
        ("twins_l", "mmdet", torch_names.twins_mm, twins_arguments),
    ):
        config = greenjax.load_config(f"configs/{name}.py", {"task": "knn"})
        weights = {
            key: np.broadcast_to(np.float32(0), shape) for key, shape in parameter_shapes(blank_model(config)).items()
        }
        tensors, _ = to_tensors(weights, config, layout)
        arguments = of(config)
        if "mlp_ratios" in arguments:
            arguments["mlp_ratios"] = [config.model.mlp_ratio] * 4
        assert {key: tuple(value.shape) for key, value in tensors.items()} == reference(**arguments)


def test_integers_are_64_bits():
    tensors, _ = to_tensors(flat_weights(random_model("swin", "green")), random_model("swin", "green").config, "swin")
    assert {value.dtype for name, value in tensors.items() if "index" in name} == {np.dtype(np.int64)}


CASES = [(layout, name, kind) for name, family in FAMILIES.items() for layout in family.layouts for kind in KINDS]


@pytest.mark.parametrize(
    ("layout", "family", "kind", "suffix"),
    [
        *((*case, ".safetensors") for case in CASES),
        ("greenmim", "twins", "green", ".pth"),
        ("hf", "swin", "simmim", ""),
    ],
)
def test_a_round_trip_keeps_every_bit(layout, family, kind, suffix, tmp_path):
    model = random_model(family, kind)
    path = tmp_path / f"weights{suffix}"
    greenjax.save_torch(model, path, layout)
    _, left_out = to_tensors(flat_weights(model), model.config, layout)
    assert "encoder" not in left_out
    back = flat_weights(greenjax.load_torch(path, model.config, layout, seed=7))
    for name, value in flat_weights(model).items():
        if name.startswith(tuple(left_out)):
            continue
        np.testing.assert_array_equal(back[name], value, err_msg=name)
        assert back[name].dtype == value.dtype


@pytest.mark.parametrize("order", ["swin", "raster"])
def test_merge_order_goes_both_ways_and_matters(order, tmp_path):
    model = random_model("swin", "green")
    path = tmp_path / "weights.safetensors"
    greenjax.save_torch(model, path, "greenmim", merge_order=order)
    same = greenjax.load_torch(path, model.config, "greenmim", merge_order=order)
    other = greenjax.load_torch(path, model.config, "greenmim", merge_order="raster" if order == "swin" else "swin")
    here, back, swapped = (
        flat_weights(m)["encoder/stages/0/downsample/reduction/kernel"] for m in (model, same, other)
    )
    np.testing.assert_array_equal(back, here)
    c = model.config.model.embed_dim
    np.testing.assert_array_equal(swapped, here.reshape(4, c, -1)[[0, 2, 1, 3]].reshape(4 * c, -1))


def test_mmdets_reduction_of_an_unfolded_map_is_greenjaxs_merge():
    """nn.Unfold puts out (channel, row, column); ours merges (column, row, channel)."""
    import torch

    model = random_model("swin", "green")
    tensors, _ = to_tensors(flat_weights(model), model.config, "mmdet")
    merging, c, side = model.encoder.stages[0].downsample, 8, 16
    tokens = np.random.default_rng(1).normal(size=(1, side, side, c)).astype(np.float32)

    unfolded = torch.nn.Unfold(2, stride=2)(torch.tensor(tokens).permute(0, 3, 1, 2)).transpose(1, 2)
    name = "stages.0.downsample"
    weight, bias, reduction = (
        torch.tensor(np.array(tensors[f"{name}.{part}"])) for part in ("norm.weight", "norm.bias", "reduction.weight")
    )
    expected = torch.nn.functional.layer_norm(unfolded, (4 * c,), weight, bias) @ reduction.T

    from greenjax.planning.tokens import to_grid, to_unit_major

    ours = merging(jax.numpy.asarray(to_unit_major(tokens, 2).reshape(1, -1, c)))
    ours = to_grid(np.asarray(ours), model.grid.units, 1).reshape(1, -1, 2 * c)
    np.testing.assert_allclose(ours, expected.numpy(), atol=2e-5)


def test_a_transposed_decoder_pos_embed_is_the_same_function(tmp_path):
    """GreenMIM's file with the row's half of the channels first: predictions do not change."""
    from safetensors.numpy import load_file, save_file

    model = random_model("swin", "green")
    path, turned = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    greenjax.save_torch(model, path, "greenmim")
    tensors = load_file(path)
    half = model.config.decoder.dim // 2
    swap = lambda x, axis: np.roll(x, half, axis)  # noqa: E731
    for name in tensors:
        if name in ("decoder_embed.weight", "decoder_embed.bias") or name.endswith(
            ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
        ):
            tensors[name] = swap(tensors[name], 0) if name.startswith("decoder") else tensors[name]
        elif name.startswith("decoder") and ("norm" in name or name == "decoder_pos_embed"):
            tensors[name] = swap(tensors[name], -1)
        elif name.startswith("decoder") and name.endswith(("qkv.weight", "fc1.weight", "pred.weight")):
            tensors[name] = swap(tensors[name], 1)
    tensors["mask_token"] = swap(tensors["mask_token"], -1)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, turned)
    back = greenjax.load_torch(turned, greenjax.resolve({**greenjax.flatten(model.config)}), "greenmim")
    here, there = flat_weights(model), flat_weights(back)
    for name in here:
        np.testing.assert_array_equal(there[name], here[name], err_msg=name)


@pytest.mark.parametrize("size", [(32, 64), (32, 128)])  # the latter has as many units as a square
def test_a_decoder_comes_back_from_images_that_are_no_squares(size, tmp_path):
    model = random_model("swin", "green", image_size=size)
    greenjax.save_torch(model, tmp_path / "a.safetensors", "greenmim")
    back = flat_weights(greenjax.load_torch(tmp_path / "a.safetensors", model.config, "greenmim"))
    for name, value in flat_weights(model).items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_other_decoder_positions_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = random_model("swin", "green")
    path = tmp_path / "a.safetensors"
    greenjax.save_torch(model, path, "greenmim")
    tensors = load_file(path)
    save_file(tensors | {"decoder_pos_embed": tensors["decoder_pos_embed"] + 0.01}, path)
    with pytest.raises(ValueError, match=r"not made of sines and cosines .*positions=learned takes the encoder alone"):
        greenjax.load_torch(path, model.config, "greenmim")
    learned = greenjax.resolve(greenjax.flatten(model.config) | {"decoder.positions": "learned"})
    back, here = flat_weights(greenjax.load_torch(path, learned, "greenmim")), flat_weights(model)
    assert all(np.array_equal(back[name], here[name]) for name in here if name.startswith("encoder/"))
    assert not np.array_equal(back["decoder/head/kernel"], here["decoder/head/kernel"])


def test_buffers_of_the_official_swin_equal_its_definition():
    """Index and mask by brute force: what two tokens are to each other after the roll."""
    tensors, _ = to_tensors(flat_weights(random_model("swin", "green")), random_model("swin", "green").config, "swin")
    window, side = 4, 16
    index = tensors["layers.0.blocks.0.attn.relative_position_index"]
    for query in range(window**2):
        for key in range(window**2):
            dy, dx = query // window - key // window, query % window - key % window
            assert index[query, key] == (dy + window - 1) * (2 * window - 1) + dx + window - 1
    mask = tensors["layers.0.blocks.1.attn_mask"]
    rolled = np.roll(np.arange(side), -window // 2)
    for number in range(len(mask)):
        top, left = (number // (side // window)) * window, (number % (side // window)) * window
        rows, columns = rolled[top : top + window], rolled[left : left + window]
        y, x = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
        near = (abs(y[:, None] - y) < window) & (abs(x[:, None] - x) < window)
        np.testing.assert_array_equal(mask[number], np.where(near, 0, -100))
