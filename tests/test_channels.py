"""Images of any channels and depth: from arrays in files to batches, to the model, and to pictures."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import FrozenConfigDict
from PIL import Image
from safetensors.numpy import load_file
from small import ONE_STAGE, small_config

import greenjax
from greenjax.backbones.geometry import make_planner
from greenjax.data.augment import CentreView, RandomView, resize
from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.labels import Listed, Matched
from greenjax.data.loader import Batch, eval_batches, train_batches
from greenjax.data.open import open_source
from greenjax.data.prepare import How, prepare
from greenjax.data.reading import Reading, is_there
from greenjax.data.statistics import measure
from greenjax.data.statistics.__main__ import main as statistics
from greenjax.errors import InputError
from greenjax.evaluation.classify import Evaluation, Predictions
from greenjax.evaluation.held_out import HeldOut
from greenjax.evaluation.pictures.canvas import Canvas, coloured
from greenjax.evaluation.pictures.reconstruct import Colours, paste, sheet
from greenjax.models.mim import GreenMIM
from greenjax.tasks import finetune, pretrain
from greenjax.tasks.pretrain import pretraining
from greenjax.tasks.report import report
from greenjax.training.state import abstract_model, model_graph

DTYPES = ("uint8", "uint16", "int16", "float16", "float32")


def noise(dtype, *shape, seed=0):
    values = np.random.default_rng(seed).integers(0, 256 if dtype == "uint8" else 2000, shape)
    return (values - 900 * (dtype == "int16")).astype(dtype) if dtype[0] != "f" else (values / 64).astype(dtype)


def bands(channels, dtype, **more):
    """The settings of images with so many channels of a type."""
    pixels = dict(model__in_channels=channels, data__dtype=dtype, data__mean=(0.3,) * channels)
    return (
        pixels | dict(data__std=(0.2,) * channels, data__source="folder", data__path="images", data__split="all") | more
    )


def folder(path, dtype, channels, n=20, size=(32, 32)):
    """A folder of .npy files; returns the arrays by name."""
    arrays = {f"{i}.npy": noise(dtype, *size, channels, seed=i) for i in range(n)}
    for name, array in arrays.items():
        np.save(path / name, array)
    return arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_a_batch_has_the_bits_of_the_files(tmp_path, dtype, channels):
    arrays = folder(tmp_path, dtype, channels, n=16)
    config = small_config(**bands(channels, dtype, data__path=str(tmp_path)))
    source = open_source(config.data, "all")
    batch = next(eval_batches(config, source, make_planner(config)))
    assert batch.images.dtype == dtype and batch.valid.all()
    expected = np.stack([arrays[name] for name in source.names])
    np.testing.assert_array_equal(batch.images.reshape(expected.shape), expected)


def test_channels_are_picked_in_the_order_given():
    array = noise("int16", 8, 8, 6)
    view = CentreView((8, 8), 3, reading=Reading("int16", 0, (5, 0, 2)))
    np.testing.assert_array_equal(view(array, 0), array[..., [5, 0, 2]])
    with pytest.raises(DecodeError, match=r"it has 6 channels: expected more than 6 \(data\.channels\)"):
        CentreView((8, 8), 1, reading=Reading("int16", 0, (6,)))(array, 0)


def test_images_of_another_kind_are_refused():
    array = noise("uint16", 8, 8, 5)
    with pytest.raises(DecodeError, match=r"pixels are uint16 of 5 channels: expected uint8 \(data\.dtype\)"):
        CentreView((8, 8), 3)(array, 0)
    with pytest.raises(DecodeError, match=r"has 5 channels: expected 4 \(model\.in_channels\); data\.channels takes"):
        CentreView((8, 8), 4, reading=Reading("uint16", 4))(array, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(20, 14), (40, 31), (31, 29), (90, 70)])
def test_every_channel_is_resized_as_if_it_were_alone(dtype, size):
    array = noise(dtype, 50, 40, 9)
    alone = [resize(np.ascontiguousarray(array[..., i : i + 1]), size) for i in range(9)]
    together = resize(array, size)
    assert together.dtype == dtype
    near = {"float16": 0.05, "float32": 1e-3}.get(dtype, 1)
    np.testing.assert_allclose(together.astype(float), np.concatenate(alone, axis=2).astype(float), rtol=0, atol=near)


def test_quarter_turns_are_all_drawn_and_only_turn():
    array = noise("uint16", 8, 8, 5)
    view = RandomView(0, (8, 8), 5, (1.0, 1.0), (1.0, 1.0), False, reading=Reading("uint16", 5), quarter_turns=True)
    turns = [next(k for k in range(4) if np.array_equal(view(array, i), np.rot90(array, k))) for i in range(40)]
    assert set(turns) == {0, 1, 2, 3}


# Normalisation


def normal(dtype, array, **more):
    """What a run's model makes of raw pixels, [b, h, w, c]."""
    config = small_config(**bands(array.shape[-1], dtype, image_size=array.shape[1:3], **more))
    model = nnx.merge(model_graph(config), nnx.to_pure_dict(nnx.state(greenjax.build(config), nnx.Param)))
    return np.asarray(model._normalise(model._units(jnp.asarray(array))))


def test_one_picture_gives_equal_batches_in_every_type():
    array = noise("uint16", 2, 32, 32, 5)
    found = [normal(dtype, array.astype(dtype), data__scale=10000.0) for dtype in ("uint16", "int16", "float32")]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert abs(found[0].mean() - ((array / 10000 - 0.3) / 0.2).mean()) < 1e-5


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 255), ("uint16", 65535), ("int16", 32767), ("float16", 1)])
def test_the_scale_is_the_largest_value_of_the_type(dtype, scale):
    array = noise(dtype, 1, 32, 32, 2)
    expected = (array.astype(np.float64) / scale - 0.3) / 0.2
    np.testing.assert_allclose(np.sort(normal(dtype, array).ravel()), np.sort(expected.ravel()), rtol=1e-5, atol=1e-5)


def test_floats_of_a_caller_are_normalised_already():
    config = small_config(**bands(2, "float32"))
    model, raw = greenjax.build(config), noise("uint16", 2, 32, 32, 2)
    visible = np.arange(64).reshape(8, 8) % 4 == 0
    normalised = (raw.astype(np.float32) / 65535 - np.float32(0.3)) / np.float32(0.2)
    np.testing.assert_allclose(model(raw, visible).losses, model(normalised, visible).losses, rtol=1e-5)


# No data


def losses(images, method="green", **more):
    config = small_config(method=method, **bands(images.shape[-1], images.dtype.name, **more))
    params = nnx.to_pure_dict(nnx.state(greenjax.build(config), nnx.Param))
    plan = jax.tree.map(lambda leaf: leaf[0], make_planner(config).example(1))

    def loss(params):
        out = nnx.merge(model_graph(config), params).forward(jnp.asarray(images), plan)
        return out.loss, out.losses

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    return np.asarray(found), np.asarray(plan.masked_units)


@pytest.mark.parametrize("method", ["green", "simmim"])
def test_without_missing_values_nothing_changes(method):
    images = noise("uint16", 2, 32, 32, 2)
    plain, missing = losses(images, method)[0], losses(images, method, data__no_data="60000")[0]
    np.testing.assert_allclose(plain, missing, rtol=1e-5)


@pytest.mark.parametrize("method", ["green", "simmim"])
def test_values_without_data_count_nowhere(method):
    """Whatever stands for no data, the loss is the same; in floats it may be NaN, too."""
    images = noise("float32", 2, 32, 32, 2)
    gone = np.random.default_rng(1).random(images.shape) < 0.3
    found = [
        losses(np.where(gone, np.float32(v), images), method, data__no_data=str(v))[0] for v in (-9999, -0.25, "nan")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_unit_is_normalised_by_its_valid_values_and_needs_two():
    """The target against NumPy, unit by unit."""
    config = small_config(**bands(1, "uint16", data__no_data="0"))
    model = nnx.merge(model_graph(config), nnx.to_pure_dict(nnx.state(greenjax.build(config), nnx.Param)))
    images = noise("uint16", 1, 32, 32, 1) + np.uint16(1)
    rng = np.random.default_rng(2)
    images[rng.random(images.shape) < 0.4] = 0
    images[:, :4, :] = 0
    images[:, 0, ::4] = 7  # units of the first row have one value
    plan = jax.tree.map(lambda leaf: leaf[0], make_planner(config).example(1))
    target = np.asarray(model.masked_target(jnp.asarray(images), plan))[0]
    for unit, found in zip(np.asarray(plan.masked_units), target):
        row, column = divmod(int(unit), 8)
        pixels = images[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4, 0].ravel()
        there = pixels > 0
        assert np.isnan(found[~there]).all()
        if there.sum() < 2:
            assert np.isnan(found).all() and row == 0
        else:
            values = (pixels[there] / 65535 - 0.3) / 0.2
            expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(found[there], expected, atol=1e-4)


def test_an_image_without_data_has_no_loss():
    images = np.stack([noise("uint16", 32, 32, 2), np.full((32, 32, 2), 5, np.uint16)])
    found, _ = losses(images, data__no_data="5")
    assert found[1] == 0 and found[0] > 0


def tile_sets(method="green"):
    """A config, its model and three batches of two mask groups: tiles that are blank, wholly, by half or in spots."""
    config = small_config(method=method, **ONE_STAGE, **bands(2, "uint16", data__no_data="5"), mesh__data=1)
    images = noise("uint16", 3, 2, 4, 16, 16, 2) + np.uint16(10)
    images[:, :, 3][np.random.default_rng(3).random(images[:, :, 3].shape) < 0.9] = 5  # patches of one value, too
    images[:2, :, 1, :8], images[0, :, 2], images[1, :, :2], images[2, 1] = 5, 5, 5, 5
    plan, rows = make_planner(config).example(2), np.zeros(2, np.int32)
    batches = [Batch(each, plan, rows, rows, np.ones((2, 4), bool)) for each in images]
    return config, greenjax.build(config), batches


def test_the_best_constant_is_never_beaten_by_a_model_that_predicts_it(monkeypatch):
    """However many tiles have no data, or little: a value weighs as much in the held-out loss as in the constant's."""
    config, model, batches = tile_sets()
    held_out = HeldOut(config, model_graph(config), lambda batch: batch, lambda: iter(batches))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    targets = [np.asarray(held_out._targets(params, batch)) for batch in batches]
    constant = np.nanmean(np.concatenate(targets).reshape(-1, targets[0].shape[-1]), axis=0)
    best = held_out.best_constant(params)

    def constantly(self, images, plan):
        predicted = jnp.broadcast_to(constant, (*images.shape[:1], len(plan.masked_units), constant.size))
        return SimpleNamespace(losses=self.losses(jnp.square, predicted, images, plan))

    monkeypatch.setattr(GreenMIM, "forward", constantly)
    np.testing.assert_allclose(held_out.loss(params), best, rtol=1e-5)
    for batch in batches:
        batch.images[:] = 5
    with pytest.raises(InputError, match="expected at least 1 with data to predict"):
        held_out.loss(params)


@pytest.mark.parametrize("method", ["green", "simmim"])
def test_the_loss_of_training_is_the_mean_over_all_values_that_count(method):
    """However many of them a part of an update has, and a call of the model with several images."""
    config, model, batches = tile_sets(method)
    task, params = pretraining(config), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    run = jax.jit(lambda part: task.loss(params, (part, None))[0])
    for batch in batches:
        inputs, _ = task.inputs(batch, jnp.int32(0))
        found = np.mean([run(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], inputs)) for i in range(2)])
        groups = [(batch.images[i], jax.tree.map(lambda leaf, i=i: leaf[i], batch.plan)) for i in range(2)]
        outs, counts = [model.forward(*group) for group in groups], [counted(model, *group) for group in groups]
        np.testing.assert_allclose(found, np.average([out.losses for out in outs], weights=counts), rtol=1e-6)
        for out, weights in zip(outs, counts):
            expected = np.average(out.losses, weights=weights) if weights.any() else 0
            np.testing.assert_allclose(out.loss, expected, rtol=1e-6)


def counted(model, images, plan):
    """The number of target values of each image."""
    return (~np.isnan(model.masked_target(images, plan))).sum(axis=(1, 2))


def test_the_values_of_units_of_several_patches_are_counted():
    config = small_config("hiera", model__query_pools=1, **bands(2, "uint16", data__no_data="5"))
    model, images = nnx.merge(*abstract_model(FrozenConfigDict(config))), noise("uint16", 4, 32, 32, 2) + np.uint16(10)
    images[np.random.default_rng(1).random(images.shape) < np.linspace(0, 0.99, 4).reshape(-1, 1, 1, 1)] = 5
    plan = jax.tree.map(lambda leaf: leaf[0], make_planner(config).example(1))
    expected = counted(model, images, plan)
    assert model.grid.side(-1) > 1 and 0 < expected[3] < (images[3] != 5).sum() // 2
    np.testing.assert_array_equal(model.counts(images, plan), expected)


def test_a_prediction_that_is_nan_is_no_missing_value():
    _, model, batches = tile_sets()
    images, plan = batches[0].images[0], jax.tree.map(lambda leaf: leaf[0], batches[0].plan)
    target = model.masked_target(images, plan)
    found = model.losses(jnp.square, jnp.full(target.shape, jnp.nan), images, plan)
    np.testing.assert_array_equal(np.isnan(found), [True, True, False, True])  # the third has no data


@pytest.mark.parametrize("size", [(16, 16), (26, 26), (60, 60)])
def test_resizing_mixes_no_missing_value_in(size):
    image = noise("int16", 32, 32, 5) % np.int16(100) + np.int16(200)
    image[4:9, 10:20, 1] = -32768
    found = resize(image, size, "-32768")
    gone = found == -32768
    assert gone[..., 1].any() and not gone[..., [0, 2, 3, 4]].any()
    assert found[~gone].min() > 100 and found[~gone].max() < 400


def test_enlarging_mixes_no_missing_value_in():
    """Bicubic weights are negative, too: their sum over measured pixels is above 1 beside missing ones."""
    image = np.full((16, 16, 1), 10_000, np.float32)
    image[:, :4], image[:, 4:10] = np.nan, 10
    found, whole = resize(image, (48, 48), "nan"), resize(image[:, 4:], (48, 36))
    there = np.flatnonzero(~np.isnan(found[0, :, 0]))
    assert there.min() >= 12 and len(there) > 30
    np.testing.assert_allclose(found[:, there], whole[:, there - 12], rtol=1e-6)


def test_no_decoder_mixes_a_missing_value_in():
    """A JPEG that shrinks eightfold, half of it without data: as if its pixels were all decoded first."""
    image = np.full((256, 256, 1), 200, np.uint8)
    image[:, :100] = 0
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "JPEG", quality=100)
    encoded = Encoded(file.getvalue(), "image")
    view = CentreView((32, 32), 1, 1.0, Reading(no_data="0"))
    np.testing.assert_array_equal(view(encoded, 0), view(encoded.decode(), 0))
    assert (view(encoded, 0)[:, :12] == 0).all()


NAN = "it has NaN: expected numbers (data.no_data=nan makes NaN a missing value)"
INFINITE = "it has infinite values: expected numbers"


@pytest.mark.parametrize(
    ("value", "no_data", "size", "line"),
    [
        (np.nan, "none", 16, NAN),
        (np.nan, "none", 24, NAN),
        (np.nan, "nan", 16, None),
        (np.nan, "-9999", 24, None),
        (-9999, "-9999", 24, None),
        (np.inf, "none", 24, INFINITE),
        (-np.inf, "nan", 16, INFINITE),
        (np.inf, "nan", 24, INFINITE),  # bicubic weights make NaN of it
        (np.inf, "-9999", 8, INFINITE),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_view_has_a_value_that_is_neither_finite_nor_missing(value, no_data, size, line, dtype):
    image = np.ones((16, 16, 1), dtype)
    image[4:8, 4:8] = value
    reading = Reading(dtype, 1, no_data=no_data)
    crop = RandomView(0, (size, size), 1, (1.0, 1.0), (1.0, 1.0), True, reading=reading)
    for view in (CentreView((size, size), 1, reading=reading), crop):
        if line is None:
            found = view(image, 0)
            there = is_there(found, no_data)
            assert 0 < np.count_nonzero(there) < found.size
            np.testing.assert_allclose(found[there], 1, rtol=1e-3)
            continue
        with pytest.raises(DecodeError, match=f"^{re.escape(line)}$"):
            view(image, 0)


def test_what_a_view_cuts_off_may_be_anything():
    image = np.ones((16, 32, 1), np.float32)
    image[:, :4], image[:, -4:] = np.nan, np.inf
    np.testing.assert_array_equal(CentreView((16, 16), 1, reading=Reading("float32", 1))(image, 0), 1)


def test_images_that_are_not_finite_are_left_out_by_their_names(tmp_path, caplog):
    arrays = folder(tmp_path, "float32", 2)
    for name, value in (("3.npy", np.nan), ("17.npy", np.inf)):
        arrays[name][5, 5, 1] = value
        np.save(tmp_path / name, arrays[name])
    whole = dict(data__crop_scale=(1.0, 1.0), data__crop_ratio=(1.0, 1.0))
    config = small_config(**bands(2, "float32", data__path=str(tmp_path), **whole))
    source, planner = open_source(config.data, "all"), make_planner(config)
    names = {f"3.npy: {NAN}", f"17.npy: {INFINITE}"}

    def told():
        found = {record.getMessage().rpartition("/")[2] for record in caplog.records}
        caplog.clear()
        return found

    held_out = list(eval_batches(config, source, planner))
    assert sum(int(batch.valid.sum()) for batch in held_out) == 18
    assert told() == {f"{name}; it is left out" for name in names}
    batches = train_batches(config, source, planner)
    trained = [next(batches) for _ in range(5)]  # four epochs
    batches.close()
    assert told() == {f"{name}; the next image takes its place" for name in names}
    assert sum(int(batch.undecodable.sum()) for batch in trained) == 8
    assert all(np.isfinite(batch.images).all() for batch in (*held_out, *trained))
    mean = measure(config, 20, 1)["mean"]
    assert told() == {f"{name}; it is left out" for name in names}
    fine = [array for name, array in arrays.items() if name not in ("3.npy", "17.npy")]
    np.testing.assert_allclose(mean, np.mean(fine, axis=(0, 1, 2), dtype=np.float64), rtol=1e-5)


# Settings


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (dict(data__randaugment=9.0, task="finetune", model__num_classes=2), "data.randaugment is 9.0: expected 0 for"),
        (dict(data__no_data="nan"), "data.no_data is 'nan': expected none, or a number that uint16"),
        (dict(data__no_data="-1"), "data.no_data is '-1': expected none, or a number that uint16"),
        (dict(data__no_data="water"), "data.no_data is 'water': expected 'none', 'nan' or a number"),
        (dict(data__no_data=True), "data.no_data is True: expected 'none', 'nan' or a number"),
        (dict(data__channels=(0, 1)), "data.channels is (0, 1): expected 5 of them (model.in_channels)"),
        (dict(data__quarter_turns=True, image_size=(32, 64)), "data.quarter_turns is True: expected False for"),
        (dict(data__mean=(0.1, 0.2)), "data.mean is (0.1, 0.2): expected 5 numbers, one a channel"),
        (dict(log__picture_channels=(0, 1, 5)), "log.picture_channels is (0, 1, 5): expected channels below 5"),
        (dict(data__dtype="int32"), "data.dtype is 'int32': expected uint8 or uint16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(more, line):
    with pytest.raises(InputError, match=re.escape(line)):
        small_config(**bands(5, "uint16") | more)


@pytest.mark.parametrize("key", ["mixup", "randaugment"])
def test_no_augmentation_makes_data_of_missing_pixels(key):
    for channels in (1, 3):
        more = {f"data__{key}": 1.0, "data__no_data": "0", "task": "finetune", "model__num_classes": 2}
        with pytest.raises(InputError, match=rf"data\.{key} is 1\.0: expected 0 where data\.no_data is '0': "):
            small_config(**bands(channels, "uint8") | more)


@pytest.mark.parametrize(("text", "value"), [("0", "0"), ("-9999.0", "-9999.0"), (".nan", "nan"), ("'nan'", "nan")])
def test_the_value_of_no_data_may_be_a_number(text, value, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"steps: 1\ndata: {{source: digits, dtype: float32, no_data: {text}}}\n")
    assert greenjax.load_config(tmp_path / "mine.yaml").data.no_data == value
    assert greenjax.load_config(tmp_path / "mine.yaml", {"data.no_data": 7}).data.no_data == "7"
    (tmp_path / "mine.py").write_text(
        "import greenjax\n\n\ndef get_config():\n    config = greenjax.default_config()\n"
        "    config.steps, config.data.source, config.data.no_data = 1, 'digits', 0\n    return config\n"
    )
    assert greenjax.load_config(tmp_path / "mine.py").data.no_data == "0"


# Statistics, records, pictures


def write_config(path, **settings):
    call = f"small_config(**{settings!r})"
    path.write_text(f"from small import small_config\n\n\ndef get_config():\n    return {call}\n")


def test_statistics_are_measured_once_and_named_in_a_config(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    arrays = np.stack(list(folder(images, "uint16", 5).values())).astype(np.float64)
    settings = bands(5, "uint16", data__path=str(images), data__no_data="0", data__scale=2000.0)
    write_config(tmp_path / "config.py", **settings)
    file = tmp_path / "statistics.json"
    statistics(["statistics", f"--config={tmp_path / 'config.py'}", f"--output={file}"])
    found, valid = json.loads(file.read_text()), np.ma.masked_equal(arrays, 0) / 2000
    np.testing.assert_allclose(found["mean"], valid.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(found["std"], valid.std(axis=(0, 1, 2)), atol=1e-6)
    settings |= dict(data__mean=(0.485, 0.456, 0.406), data__std=(0.229, 0.224, 0.225), data__statistics=str(file))
    config = small_config(**settings)
    assert (list(config.data.mean), config.data.statistics) == (found["mean"], "")
    with pytest.raises(InputError, match=r"data\.scale is None: expected 2000\.0, with which data\.statistics"):
        small_config(**settings | dict(data__scale=None))


def test_a_channel_of_one_value_has_no_deviation(tmp_path):
    """However the sums of a large image are rounded."""
    image = noise("float32", 512, 512, 12)
    image[..., 1:] = np.linspace(0.1, 300.1, 11)
    np.save(tmp_path / "a.npy", image)
    for channel in range(1, 12):
        config = small_config(**bands(2, "float32", data__path=str(tmp_path), data__channels=(0, channel)))
        with pytest.raises(
            InputError, match=r"^channel 1 of 1 images has one value at most, or hardly differs: expected two"
        ):
            measure(config, 1, 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e9])
def test_statistics_have_six_digits_whatever_the_scale(tmp_path, scale):
    folder(tmp_path, "float32", 2, n=2, size=(8, 8))
    one, scaled = (
        measure(small_config(**bands(2, "float32", data__path=str(tmp_path), data__scale=by)), 2, 1)
        for by in (1.0, scale)
    )
    for name in ("mean", "std"):
        np.testing.assert_allclose(np.array(scaled[name]) * scale, one[name], rtol=1e-5)


def test_records_keep_every_bit(tmp_path):
    (tmp_path / "images").mkdir()
    folder(tmp_path / "images", "int16", 6, n=8)
    config = small_config(**bands(6, "int16", data__path=str(tmp_path / "images")))
    list(prepare(config, tmp_path / "made", How(256, "raw"), ["all"], unlabelled=True))
    records = small_config(**bands(6, "int16", data__path=str(tmp_path / "made"), data__source="records"))
    ours, made = open_source(config.data, "all"), open_source(records.data, "all")
    view = RandomView.from_config(config)
    assert all(np.array_equal(view(ours.encoded(i), i), view(made.encoded(i), i)) for i in range(8))
    for refused in (config, small_config(data__no_data="0")):  # a JPEG would mix missing pixels into others
        with pytest.raises(InputError, match="--encoding is jpeg: expected raw for images that are not 8 bits"):
            list(prepare(refused, tmp_path / "other", How(256, "jpeg"), ["all"]))


def test_a_picture_shows_three_channels_stretched():
    image = noise("uint16", 1, 40, 40, 13)
    shown = coloured(image, (9, 4, 2))
    assert shown.shape == (1, 40, 40, 3) and shown.min() == 0 and shown.max() == 255
    for place, channel in enumerate((9, 4, 2)):
        order = np.argsort(image[0, ..., channel].ravel())
        assert (np.diff(shown[0, ..., place].ravel()[order].astype(int)) >= 0).all()


def test_a_classifier_of_deep_images_may_make_no_mistake(tmp_path):
    config = small_config(**bands(1, "uint16", data__path="x"), task="finetune", model__num_classes=2)
    none = Predictions(*np.zeros((3, 0), int), np.zeros(0))
    found = Evaluation(dict(images=6, top1=1.0, top5=1.0, loss=0.0, ece=0.0), np.diag([3, 3]), none)
    report(config, tmp_path, "test", found, Matched(SimpleNamespace(classes=("a", "b")), {}, ()))
    assert (tmp_path / "mistakes_test.png").stat().st_size > 100


def test_pictures_of_mistakes_are_not_washed_out_by_missing_values(tmp_path, monkeypatch):
    """Black where there are none, and else as bright as if the image had no more than the rest."""
    image = noise("float32", 1, 16, 16, 1)
    image[:, :4] = -9999
    config = small_config(**ONE_STAGE, **bands(1, "float32", data__no_data="-9999", data__eval_crop=1.0))
    said = Predictions(np.array([0]), np.array([0]), np.array([1]), np.array([0.9]))
    metrics = dict(top1=0.0, top5=1.0, loss=1.0, ece=0.1, images=1)
    source, drawn = Listed(image, np.zeros(1, np.int32), ("a", "b")), []
    monkeypatch.setattr("greenjax.tasks.report.draw_examples", lambda path, pixels, *_: drawn.append(pixels))
    found = Evaluation(metrics, np.array([[0, 1], [0, 0]]), said)
    report(config, tmp_path, "test", found, Matched(source, {}, ()))
    assert (drawn[0][:, :4] == 0).all()
    np.testing.assert_array_equal(drawn[0][:, 4:], coloured(image[:, 4:]))


def test_visible_pixels_without_data_are_black_in_reconstructions(monkeypatch):
    """In float32 1e20 is another number than in float64, in which predictions are pasted."""
    images = noise("float32", 2, 16, 16, 1)
    images[:, :2] = 1e20
    drawn, module = [], "greenjax.evaluation.pictures.reconstruct"
    monkeypatch.setattr(f"{module}._laid_out", lambda pictures, _: drawn.append(pictures) or Canvas(9, 9))
    visible, units = np.ones((2, 2, 2), bool), np.zeros((2, 4, 64), np.float32)
    sheet(images, visible, units, patch=8, colours=Colours((0,), (1,), 1.0, "1e20", (0,)), normalised=False)
    assert (drawn[0][:, :, :2] == 0).all() and drawn[0].max() == 255
    np.testing.assert_array_equal(drawn[0][:, 0], coloured(images, no_data="1e20"))
    np.testing.assert_array_equal(drawn[0][:, 2], drawn[0][:, 0])


def test_true_targets_give_the_original_of_any_type():
    images = noise("int16", 2, 32, 32, 5)
    images[:, :8, :8] = -900
    colours = Colours((0.1,) * 5, (0.2,) * 5, 3000.0, "-900")
    visible = np.zeros((2, 4, 4), bool)
    normal = (np.ma.masked_equal(images, -900) / 3000 - 0.1) / 0.2
    units = normal.reshape(2, 4, 8, 4, 8, 5).swapaxes(2, 3).reshape(2, 16, -1)
    per_unit = (units - units.mean(-1, keepdims=True)) / units.std(-1, ddof=1, keepdims=True)
    found = paste(images, visible, per_unit.filled(0), 8, colours, True)
    there = images != -900
    np.testing.assert_allclose(found[there], images[there], atol=1e-6)


@pytest.mark.parametrize("suffix", ["npy", pytest.param("tif", marks=pytest.mark.extra)])
def test_thirteen_bands_of_sixteen_bits_from_folder_to_timm(tmp_path, suffix):
    """Pre-trains, resumes bit for bit, fine-tunes and exports; the picture of the reconstruction has colours."""
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = noise("uint16", 40, 36, 13, seed=i) // (1 + 3 * (i % 2))
        if suffix == "npy":
            np.save(path, image)
        else:
            import tifffile

            how = dict(photometric="minisblack", planarconfig="contig", compression="zlib", tile=(16, 16))
            tifffile.imwrite(path, image, **how)
    settings = bands(13, "uint16", data__path=str(tmp_path / "images"), data__scale=2000.0, data__quarter_turns=True)
    settings |= dict(data__eval_split="all[:25%]", log__checkpoint_every=2, log__picture_channels=(3, 2, 1))
    settings |= dict(model__depths=(1, 1), steps=4, mesh__data=1)
    workdir = tmp_path / "run"
    whole = pretrain(small_config(**settings), workdir)
    with Image.open(workdir / "reconstructions" / "00000004.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 1000
    shutil.rmtree(workdir / "checkpoints" / "4")
    jax.tree.map(np.testing.assert_array_equal, pretrain(small_config(**settings), workdir), whole)

    tuned = dict(task="finetune", init=str(workdir), model__num_classes=2, steps=2, data__eval_split="")
    finetune(small_config(**settings | tuned), tmp_path / "tuned")
    model = greenjax.load(tmp_path / "tuned")
    greenjax.save_torch(model, tmp_path / "timm.safetensors", layout="timm")
    weights = load_file(tmp_path / "timm.safetensors")
    assert weights["patch_embed.proj.weight"].shape == (8, 13, 2, 2)
