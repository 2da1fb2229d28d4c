"""Files of ONNX in onnxruntime: equal to the model for every family, output and batch, and refused in one line."""

import json
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import FAMILIES, small_config

import greenjax
from greenjax import convert
from greenjax.errors import InputError, RunError
from greenjax.interop.loading import filled, with_image_size
from greenjax.interop.weights import flat_weights
from greenjax.runtime.classes import write_classes
from greenjax.training.start import write_start

pytestmark = pytest.mark.extra
TASK = dict(task="finetune", model__num_classes=5)
SHORT = dict(TASK, model__depths=(1, 1))
COLOURS = dict(model__in_channels=3, data__mean=(0.4, 0.5, 0.6), data__std=(0.2, 0.25, 0.3))
DETECT = dict(COLOURS, task="detect", model__num_classes=3, detect__fpn_dim=8)


def model_of(*args, **settings):
    """A model whose weights are all spread: biases, norms and the head are not what a fresh model has."""
    rng, model = np.random.default_rng(0), greenjax.build(small_config(*args, **settings))
    weights = {key: value + 0.1 * rng.standard_normal(value.shape) for key, value in flat_weights(model).items()}
    model = filled(model, {key: value.astype(np.float32) for key, value in weights.items()}, 0)
    model.floats_are_raw = True
    return model


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def pixels(model, count=3):
    config = model.config
    return np.random.default_rng(1).integers(0, 256, (count, *config.image_size, config.model.in_channels), np.uint8)


def assert_same(found, expected):
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_computes_what_the_model_does_at_any_batch(family, tmp_path):
    model = model_of(family, **TASK)
    model.classes = ("a", "ä", "c,d", '"e"', "f")
    outputs, metadata = greenjax.save_onnx(model, tmp_path / "a.onnx", outputs=("logits", "maps", "features"), step=7)
    assert outputs.startswith("outputs: features, logits, stage_0") and "differs from the model by" in metadata
    images = pixels(model)
    maps = dict(enumerate(jax.jit(model.feature_maps)(images)))
    expected = {"features": jax.jit(model.pooled)(images), "logits": model(images)}
    expected |= {f"stage_{stage}": value for stage, value in maps.items()}
    session = session_of(tmp_path / "a.onnx")
    for first, last in ((0, 3), (1, 2)):
        found = dict(zip(expected, session.run(list(expected), {"images": images[first:last]}), strict=True))
        for name, value in expected.items():
            assert_same(found[name], np.asarray(value)[first:last])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == list(model.classes) and said["step"] == "7"
    assert said["image_size"] == "32x32" and said["channels"] == "1" and json.loads(said["mean"]) == [0.3]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "vit"])  # it has no pyramid
def test_a_detectors_pyramid_sees_the_true_sizes(family, tmp_path):
    stages = 3 if family == "hiera" else 2
    depths = dict(model__depths=(1,) * stages, detect__anchor_sizes=(4, 8, 16, 32)[: stages + 1])
    model = model_of(family, **DETECT, **depths)
    greenjax.save_onnx(model, tmp_path / "a.onnx")
    images, sizes = pixels(model), np.array([(32, 32), (20, 9), (32, 31)], np.int32)
    expected = jax.jit(model.pyramid)(jnp.asarray(images), jnp.asarray(sizes))
    found = session_of(tmp_path / "a.onnx").run(None, {"images": images, "sizes": sizes})
    for one, other in zip(found, expected, strict=True):
        assert_same(one, np.asarray(other))


IMAGES = {
    "channels": dict(model__in_channels=13, data__mean=(0.4,) * 13, data__std=(0.2,) * 13, data__dtype="uint16"),
    "missing": dict(data__dtype="int16", data__no_data="-5"),
    "floats": dict(data__dtype="float32", data__no_data="-9", data__scale=10.0),
    "odd": dict(image_size=(30, 44), model__border="pad", data__dtype="uint16"),
    "wide": dict(image_size=(24, 48), model__window=5),
    "bfloat16": dict(model__dtype="bfloat16", model__remat=True),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_files_take_pixels_of_any_kind(kind, tmp_path):
    settings = SHORT | IMAGES[kind]
    model = model_of("swin", **settings)
    greenjax.save_onnx(model, tmp_path / "a.onnx")
    shape = (2, *model.config.image_size, model.config.model.in_channels)
    values = np.random.default_rng(2).integers(-9 if kind in ("missing", "floats") else 0, 250, shape)
    images = values.astype(model.config.data.dtype)
    if kind == "floats":
        images[0, :5], images[1, :, 3] = np.nan, -9
    expected = np.asarray(model_of("swin", **settings | dict(model__dtype="float32"))(images))
    found = session_of(tmp_path / "a.onnx").run(["logits"], {"images": images})[0]
    assert_same(found, expected)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("settings", [{}, dict(method="simmim")])
def test_a_masked_image_model_gives_its_features(settings, tmp_path):
    model = model_of(**settings, model__depths=(1, 1))
    greenjax.save_onnx(model, tmp_path / "a.onnx")
    expected, _ = greenjax.embed(model, list(pixels(model, 2)))
    assert_same(session_of(tmp_path / "a.onnx").run(["features"], {"images": pixels(model, 2)})[0], expected)


def test_a_table_of_biases_is_written_once_and_weights_have_names(tmp_path):
    import onnx

    model = model_of("swin", **TASK)
    greenjax.save_onnx(model, tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    name = "encoder/stages/0/blocks/1/attn/relative_position_bias_table"
    assert shapes[name] == (49, 2) and shapes["head/kernel"] == (16, 5)
    assert (
        sum(value.size for value in flat_weights(model).values()) * 4 < (tmp_path / "a.onnx").stat().st_size < 200_000
    )


def command(*arguments):
    convert.main(["greenjax convert", "to-onnx", *map(str, arguments)])


def test_the_command_takes_runs_and_files(tmp_path, capsys):
    model, run, file = model_of("swin", **SHORT), tmp_path / "run", tmp_path / "a.safetensors"
    write_start(run, model, greenjax.resolve(model.config))
    write_classes(run, "abcde")
    greenjax.save_torch(model, file, layout="timm")
    expected = np.asarray(model(pixels(model)))
    for place, said in ((run, "swin_t of step 0"), (file, "swin_t")):
        out = tmp_path / f"{place.name}.onnx"
        command("--model", place, "--output", out, "--outputs", "logits,features")
        assert f"{out}: {said}\n  outputs: features, logits" in capsys.readouterr().out
        session = session_of(out)
        assert_same(session.run(["logits"], {"images": pixels(model)})[0], expected)
        assert ("classes" in session.get_modelmeta().custom_metadata_map) == (place == run)
    command("--model", run, "--output", out, "--image-size", "48,32", "--overwrite")
    other, _ = with_image_size(model, (48, 32))
    assert_same(session_of(out).run(["logits"], {"images": pixels(other)})[0], np.asarray(other(pixels(other))))
    for arguments, message in (
        (("--model", run, "--output", out), "is there: expected a new file, or --overwrite"),
        (("--model", run, "--output", tmp_path / "a.pth"), "expected a file named *.onnx"),
        (("--model", tmp_path, "--output", tmp_path / "b.onnx"), "expected the"),
        (("--model", file, "--step", 3, "--output", tmp_path / "b.onnx"), "step is 3: expected none"),
        (
            ("--model", run, "--outputs", "logit", "--output", tmp_path / "b.onnx"),
            "outputs has 'logit': expected logits",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            command(*arguments)
        assert message in str(ended.value) and "\n" not in str(ended.value)
    command("--model", run, "--output", out, "--overwrite")


def test_what_cannot_be_written_is_one_line_and_no_file(tmp_path, monkeypatch):
    saving = import_module("greenjax.interop.onnx.saving")
    model, path = model_of("swin", **SHORT), tmp_path / "a.onnx"
    with pytest.raises(InputError, match="outputs has 'pyramid': expected logits or features or maps of a classifier"):
        greenjax.save_onnx(model, path, outputs=("pyramid",))
    with monkeypatch.context() as patch, pytest.raises(InputError, match="GiB: expected less than 2 GiB"):
        patch.setattr(saving, "LARGEST", 0)
        greenjax.save_onnx(model, path)
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"pip install 'greenjax\[onnx\]'"):
        patch.setattr(saving, "find_spec", lambda name: None)
        greenjax.save_onnx(model, path)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="a swin_t: JAX's erf has no rule"):
        patch.delitem(import_module("greenjax.interop.onnx.functions").FUNCTIONS, "gelu")
        patch.delitem(import_module("greenjax.interop.onnx.operators").BROADCASTING, "erf")
        greenjax.save_onnx(model, path)
    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"output logits differs by .* nothing written"):
        patch.setattr(saving, "TOLERANCE", -1)
        greenjax.save_onnx(model, path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(saving, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert "not compared with the model" in greenjax.save_onnx(model, path)[1]
