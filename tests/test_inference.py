"""A trained model on any images: embed, predict and reconstruct, from the command line and from Python."""

import csv
import re
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_sample_image
from small import ONE_STAGE, small_config

import greenjax
from greenjax import commands
from greenjax.data.augment import CentreView
from greenjax.data.encoded import Encoded
from greenjax.data.sources.list import ListSource
from greenjax.data.sources.names import Names
from greenjax.data.sources.python import PythonSource
from greenjax.errors import InputError
from greenjax.runtime.draft import Draft
from greenjax.tasks.inference import formats
from greenjax.tasks.inference.formats import CLASS_FORMATS, Outputs, finish_classes
from greenjax.tasks.inference.images import check_images
from greenjax.tasks.inference.reconstruct import listed_mask, mask_of_file, picture_paths, pretrained
from greenjax.training.start import write_start

transformers.logging.set_verbosity_error()

SIDE = 16  # pixels: the files are as high, so that no library has to resize them
CLASSES = ("ant", "bee", "cat")
RGB = dict(ONE_STAGE, model__in_channels=3, data__mean=(0.4, 0.5, 0.6), data__std=(0.2, 0.3, 0.4))
RGB |= dict(image_size=SIDE, data__batch_size=16, data__source="python")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of pre-training and a run of a classifier, neither trained; 19 files, two of which are no images."""
    root = tmp_path_factory.mktemp("runs")
    for name, changes in (("mim", {}), ("classifier", dict(task="finetune", model__num_classes=3))):
        model = greenjax.build(small_config(**RGB | changes), seed=1)
        if name == "classifier":
            model.classes = CLASSES
            model.head.kernel[...] = 30 * model.head.kernel[...]  # probabilities that differ
        write_start(root / name, model, greenjax.resolve(model.config))
    rng = np.random.default_rng(0)
    for number in range(19):
        path = root / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in (3, 10):
            path.write_text("no image")
        else:
            cv2.imwrite(str(path), rng.integers(0, 256, (SIDE, SIDE + number, 3), np.uint8))
    return root


def files_of(runs):
    """The images of the folder, in the order of their paths, without those that are none."""
    return [str(path) for path in sorted((runs / "photos").rglob("*.png")) if path.stem not in ("03", "10")]


def said(capsys, *words):
    """What `greenjax WORDS` prints, its exit code, and its errors."""
    code = 0
    try:
        commands.main(["greenjax", *map(str, words)])
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return (out, code, err) if isinstance(code, int) else (out, 1, f"{err}{code}\n")


def opened(file):
    with Image.open(file) as image:
        return image.convert("RGB")


def pixels_of(model, files):
    view = CentreView.from_config(model.config)
    return np.stack([view(Encoded(Path(file).read_bytes(), file), 0) for file in files])


def test_vectors_are_the_pooled_features_of_transformers(runs, tmp_path, capsys):
    """Of the same files, through the preprocessor of the export; the export's own file gives them, too."""
    assert (
        said(capsys, "convert", "to-torch", "--workdir", runs / "mim", "--layout=hf", f"--output={tmp_path / 'hf'}")[1]
        == 0
    )
    out, code, err = said(capsys, "embed", runs / "photos", "--model", runs / "mim", "--out", tmp_path / "a.npy")
    assert (
        code == 0
        and "17 of 19 images" in out
        and f"2 cannot be used and are left out: {tmp_path}/a.npy.left_out.txt" in out
    )
    warned = [re.search(r"(\d\d)\.png: (.*)", line) for line in err.splitlines() if line.startswith("warning")]
    assert sorted(found.groups() for found in warned) == [
        (number, "cannot be decoded as an image; it is left out") for number in ("03", "10")
    ]
    found, files = np.load(tmp_path / "a.npy"), files_of(runs)
    assert (tmp_path / "a.names.txt").read_text().splitlines() == files and not list(tmp_path.glob(".*"))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        there = [model(**processor(opened(file), return_tensors="pt")).pooler_output[0].numpy() for file in files]
    np.testing.assert_allclose(found, there, atol=1e-4)
    words = ["--model", tmp_path / "hf", "--out", tmp_path / "b.safetensors"]
    assert said(capsys, "embed", *files[:5], *words)[1] == 0
    np.testing.assert_allclose(load_file(tmp_path / "b.safetensors")["vectors"], found[:5], atol=1e-6)


def test_a_killed_command_goes_on_and_its_file_is_the_same(runs, tmp_path, capsys, monkeypatch):
    """Killed behind the second of three batches, of which only the first is in the record."""
    words = ["embed", runs / "photos", "--model", runs / "mim", "--set=data.batch_size=8", "--dtype=float16"]
    assert said(capsys, *words, "--output", tmp_path / "whole.npy")[1] == 0  # as of `convert`
    append = Draft.append

    def killed(draft, rows, names):
        append(draft, rows, names)
        if draft.batches == 1:
            draft.record()
        else:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "append", killed)
        out, code, err = said(capsys, *words, "--out", tmp_path / "resumed.npy")
        assert code == 1 and err.endswith("greenjax embed: stopped; the same command goes on from here\n")
    assert not (tmp_path / "resumed.npy").exists()
    other = said(capsys, *words, "--stage=0", "--out", tmp_path / "resumed.npy")
    assert other[1] == 1 and other[2].endswith(
        "was begun with stage None: expected that, not 0; --overwrite begins anew\n"
    )
    out, code, _ = said(capsys, *words, "--out", tmp_path / "resumed.npy")
    assert code == 0 and "going on after 8 images ...\n" in out
    for name in (".npy", ".names.txt", ".npy.left_out.txt"):
        assert (tmp_path / f"resumed{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_python_gives_the_vectors_and_maps_of_files_pixels_and_models(runs):
    files = files_of(runs)[:3]
    vectors, names = greenjax.embed(runs / "mim", files)
    assert names == files
    (runs / "list.txt").write_text(f"{files[2]}\nnowhere.png\n{Path(files[0]).relative_to(runs)}\n")
    found, names = greenjax.embed(runs / "mim", runs / "list.txt")
    assert names == [files[2], files[0]]
    np.testing.assert_allclose(found, vectors[[2, 0]], atol=1e-6)
    model = greenjax.load(runs / "mim")
    pixels = pixels_of(model, files)
    maps = np.asarray(greenjax.features(model, (pixels / 255 - RGB["data__mean"]) / RGB["data__std"])[0])
    np.testing.assert_allclose(greenjax.embed(model, list(pixels), stage=0)[0], maps, atol=1e-5)
    np.testing.assert_allclose(greenjax.embed(model, [opened(file) for file in files])[0], vectors, atol=1e-5)
    for one in (pixels[0], opened(files[0]), Path(files[0]).read_bytes()):
        np.testing.assert_allclose(greenjax.embed(model, one)[0], vectors[:1], atol=1e-5)
    assert greenjax.embed(model, list(pixels))[1] == ["source[0]", "source[1]", "source[2]"]
    assert not model.floats_are_raw


def test_any_number_of_devices_shares_a_batch(runs, monkeypatch):
    devices, sizes = jax.devices()[:3], []

    def computed(model, *_):
        sizes.append(model.config.data.batch_size)
        yield np.array([0]), np.zeros((1, 8))

    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(sys.modules["greenjax.tasks.inference.embed"], "outputs", computed)
    pixels = np.zeros((1000, SIDE, SIDE, 3), np.uint8)
    for model in (runs / "mim", greenjax.load(runs / "mim")):
        for given in ({}, {"batch_size": 7}, {"batch_size": 1}):
            greenjax.embed(model, pixels, **given)
    assert sizes == [255, 6, 3] * 2


def test_python_reads_images_as_the_run_does(tmp_path, capsys):
    """Pixels without data stay unseen, of a run and of its export alike; a picture hides as much as the run did."""
    settings = RGB | dict(data__no_data="0", mask__ratio=0.5)
    model = greenjax.build(small_config(**settings), seed=1)
    write_start(tmp_path / "run", model, greenjax.resolve(model.config))
    greenjax.save_torch(model, tmp_path / "file.safetensors", "greenmim")
    pixels = np.random.default_rng(0).integers(1, 256, (2, SIDE, SIDE, 3), np.uint8)
    pixels[:, :5] = 0  # missing
    expected, _ = greenjax.embed(greenjax.load(tmp_path / "run"), list(pixels))
    blind = greenjax.build(small_config(**settings | dict(data__no_data="none")), seed=1)
    assert np.abs(greenjax.embed(blind, list(pixels))[0] - expected).max() > 1e-3
    for place in (tmp_path / "run", tmp_path / "file.safetensors"):
        np.testing.assert_allclose(greenjax.embed(place, list(pixels))[0], expected, atol=1e-6)
        np.testing.assert_allclose(greenjax.load_pretrained(place).embed(pixels), expected, atol=1e-6)
    cv2.imwrite(str(tmp_path / "image.png"), np.ascontiguousarray(pixels[0, ..., ::-1]))
    for place in (tmp_path / "run", tmp_path / "file.safetensors"):
        words = ["--model", place, "--out", tmp_path / "v.npy", "--overwrite"]
        assert said(capsys, "embed", tmp_path / "image.png", *words)[1] == 0
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected[:1], atol=1e-6)
    assert pretrained(str(tmp_path / "file.safetensors"), None, None).predicts_normalised
    shown = [np.asarray(greenjax.show(tmp_path / name, pixels[0])) for name in ("run", "file.safetensors")]
    np.testing.assert_array_equal(*shown)
    np.testing.assert_array_equal(shown[1], greenjax.show(tmp_path / "run", pixels[0], ratio=0.5))


def pictures(folder):
    """A photograph as a JPEG that EXIF turns, as a PNG, with a palette, with opacity, and in grey."""
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((40, 24))
    exif = Image.Exif()
    exif[274] = 6
    made = {"turned.jpg": photo, "plain.png": photo, "palette.png": photo.quantize(16), "clear.png": photo.copy()}
    made["clear.png"].putalpha(photo.convert("L"))
    made["grey.png"] = photo.convert("L")
    for name, image in made.items():
        image.save(folder / name, **({"exif": exif, "quality": 95} if name == "turned.jpg" else {}))
    return [folder / name for name in made]


def test_a_model_embeds_images_of_python_as_the_command_does_their_files(runs, tmp_path, capsys):
    files = pictures(tmp_path)
    words = ["--model", runs / "mim", "--out", tmp_path / "v.npy"]
    assert said(capsys, "embed", *files, *words)[1] == 0
    expected, model = np.load(tmp_path / "v.npy"), greenjax.load(runs / "mim")
    images = [Image.open(file) for file in files]
    sizes = [image.size for image in images]
    np.testing.assert_allclose(model.embed(images), expected, atol=1e-5)
    np.testing.assert_allclose(greenjax.embed(model, images)[0], expected, atol=1e-5)
    assert [image.size for image in images] == sizes  # the caller's own are not turned
    np.testing.assert_allclose(model.embed([file.read_bytes() for file in files]), expected, atol=1e-6)
    one = model.embed(images[1])
    assert one.shape == (8,) and one.dtype == np.float32
    pixels = np.asarray(images[1])
    np.testing.assert_allclose(model.embed(pixels), one, atol=1e-6)
    np.testing.assert_allclose(model.embed(np.stack([pixels])), one[None], atol=1e-6)
    np.testing.assert_allclose(model.embed(pixels[..., 0]), model.embed(images[1].getchannel(0)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_several_images_are_not_taken_for_one(channels):
    colours = dict(data__mean=(0.5,) * channels, data__std=(0.5,) * channels)
    model = greenjax.build(small_config(**RGB | dict(model__in_channels=channels) | colours), seed=1)
    grey = np.random.default_rng(0).integers(0, 256, (5, SIDE, 2 * SIDE), np.uint8)
    objects = np.empty(5, object)  # as a Series of pandas holds them
    objects[:] = [Image.fromarray(image) for image in grey]
    expected = model.embed(list(grey))
    for several in (grey, objects):
        np.testing.assert_allclose(model.embed(several), expected, atol=1e-6)
        np.testing.assert_allclose(greenjax.embed(model, several)[0], expected, atol=1e-5)
    for one in (grey[0], grey[0][..., None], np.stack([grey[0]] * 3, axis=2)):
        np.testing.assert_allclose(model.embed(one), expected[0], atol=1e-5)
        np.testing.assert_allclose(greenjax.embed(model, one)[0], expected[:1], atol=1e-5)


def test_an_image_of_many_channels_is_one():
    for changes in (dict(data__channels=(20, 3, 2)), dict(model__in_channels=24)):
        channels = changes.get("model__in_channels", 3)
        colours = dict(data__mean=(0.5,) * channels, data__std=(0.5,) * channels)
        model = greenjax.build(small_config(**RGB | colours | changes), seed=1)
        image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 24), np.uint8)
        expected = model.embed([image])
        np.testing.assert_allclose(model.embed(image), expected[0], atol=1e-6)
        np.testing.assert_allclose(greenjax.embed(model, image)[0], expected, atol=1e-5)


def test_a_model_of_floats_embeds_pixels_as_in_files(tmp_path):
    """They are normalised here; floats of a call are normalised by the caller."""
    model = greenjax.build(small_config(**RGB | dict(data__dtype="float32", data__scale=10.0)), seed=1)
    pixels = np.random.default_rng(0).uniform(0, 10, (SIDE, SIDE, 3)).astype(np.float32)
    normal = (pixels / 10 - RGB["data__mean"]) / RGB["data__std"]
    np.testing.assert_allclose(model.embed(pixels), model.pooled(normal[None].astype(np.float32))[0], atol=1e-5)


def test_an_image_with_nan_is_left_out_by_its_name(caplog):
    model = greenjax.build(small_config(**RGB | dict(data__dtype="float32", data__scale=10.0)), seed=1)
    pixels = np.random.default_rng(0).uniform(0, 10, (40, SIDE, SIDE, 3)).astype(np.float32)
    expected, _ = greenjax.embed(model, pixels)
    pixels[33, 5, 5, 1] = np.nan
    found, names = greenjax.embed(model, pixels)
    kept = np.delete(np.arange(40), 33)
    assert names == [f"source[{number}]" for number in kept]
    np.testing.assert_allclose(found, expected[kept], atol=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        "source[33]: it has NaN: expected numbers (data.no_data=nan makes NaN a missing value); it is left out"
    ]
    model.encoder.norm.bias[...] = np.nan * model.encoder.norm.bias[...]
    with pytest.raises(InputError, match=r"^none of the 40 images can be used: expected at least 1 \(warnings name"):
        greenjax.embed(model, pixels)
    assert "source[39]: the model's output is not finite; it is left out" in caplog.text


def test_images_are_refused_only_where_none_of_all_can_be_used(caplog):
    """A folder may begin with broken ones."""
    config = small_config(**RGB)
    fine, broken = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE, 5), np.uint8)
    check_images(config, PythonSource([broken] * 150 + [fine] * 100))
    assert not caplog.records
    images = [broken] * 250
    images[1] = fine  # between two of those that are looked at first
    check_images(config, PythonSource(images))
    assert "none of 100 images, evenly spaced, can be used (source[0]: it has 5 channels" in caplog.text
    with pytest.raises(InputError, match=r"^none of the 250 images can be used: source\[0\]: it has 5 channels"):
        check_images(config, PythonSource([broken] * 250))


def test_every_picture_has_a_name_of_its_own(tmp_path):
    source = ListSource("", Names.of(["a.jpg", "a.png", "a_2.png", "b/a.jpg", "c.jpg"]))
    names = [path.stem for path in picture_paths(source, tmp_path)]
    assert names == ["a", "a_2", "a_2_2", "a_3", "c"]


def test_show_draws_the_picture_that_the_command_writes(runs, tmp_path, capsys):
    file = pictures(tmp_path)[1]
    words = ["--model", runs / "mim", "--out", tmp_path / "p", "--ratio=0.6", "--seed=3"]
    assert said(capsys, "reconstruct", file, *words)[1] == 0
    with Image.open(tmp_path / "p" / "plain.png") as image:
        written = np.asarray(image.convert("RGB"))
    model = greenjax.load(runs / "mim")
    shown = greenjax.show(model, Image.open(file), ratio=0.6, seed=3)
    assert isinstance(shown, Image.Image)
    np.testing.assert_array_equal(np.asarray(shown), written)
    two = greenjax.show(runs / "mim", [Image.open(file)] * 2, ratio=0.6, seed=3)
    assert two.size[0] == shown.size[0] and two.size[1] > shown.size[1]


def test_what_a_model_cannot_embed_or_show_is_refused_in_one_line(runs):
    mim, classifier = (greenjax.load(runs / name) for name in ("mim", "classifier"))
    five = np.zeros((SIDE, SIDE, 5), np.uint8)
    for call, expected in (
        (lambda: mim.embed("photo.jpg"), r"images is 'photo\.jpg': expected a PIL image, pixels, or the bytes"),
        (lambda: mim.embed(five), r"the image cannot be used: it has 5 channels: expected 3 \(model\.in_channels"),
        (lambda: mim.embed([five[..., :3], five]), "image 1 cannot be used: it has 5 channels"),
        (lambda: mim.embed(np.zeros((SIDE, SIDE, 3))), r"float64 \[16, 16, 3\]: expected uint8 or"),
        (lambda: mim.embed(b"no image"), "the image cannot be used: cannot be decoded as an image"),
        (lambda: mim.embed([]), "source, a list, is empty: expected at least 1 image"),
        (lambda: greenjax.show(classifier, five), "model is a Classifier: expected one with a decoder, of a pre-train"),
        (lambda: greenjax.show(mim, five), "the image cannot be used: it has 5 channels"),
        (lambda: greenjax.show(mim, five[..., :3], ratio=1.0), r"mask\.ratio is 1\.0: expected one that leaves"),
    ):
        with pytest.raises(InputError, match=expected) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.extra
def test_parquet_has_the_same_rows(runs, tmp_path, capsys):
    import pyarrow.parquet

    words = [*files_of(runs)[:5], "--model", runs / "classifier", "--out"]
    for name in ("a.npy", "a.parquet"):
        assert said(capsys, "embed", *words, tmp_path / name, "--stage=0", "--dtype=float16")[1] == 0
    table, vectors = pyarrow.parquet.read_table(tmp_path / "a.parquet"), np.load(tmp_path / "a.npy")
    assert table["file"].to_pylist() == files_of(runs)[:5] and table.schema.metadata == {b"shape": b"8,8,8"}
    np.testing.assert_array_equal(np.stack(table["vectors"].to_numpy()).reshape(vectors.shape), vectors)
    for name in ("p.csv", "p.parquet"):
        assert said(capsys, "predict", *words, tmp_path / name, "--top=2")[1] == 0
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
    with (tmp_path / "p.csv").open(newline="") as file:
        for row, expected in zip(csv.DictReader(file), table, strict=True):
            assert {k: v if isinstance(v, str) else f"{v:.6f}" for k, v in expected.items()} == row


def test_rows_are_read_a_bounded_part_at_a_time(tmp_path, monkeypatch):
    """Of maps, a few rows fill the memory: at least one comes, and never more than the bytes or the rows allowed."""
    row = np.dtype([("vectors", np.float32, (2, 2, 3))])  # 48 bytes
    draft, rows = Draft(tmp_path, {}, row, 16, anew=False), np.zeros(5, row)
    rows["vectors"] = np.arange(5)[:, None, None, None]
    draft.append(rows, list("abcde"))
    for most, sizes in ((1, [1] * 5), (100, [2, 2, 1]), (10_000, [4, 1])):
        monkeypatch.setattr(formats, "MOST_BYTES", most)
        monkeypatch.setattr(formats, "AT_ONCE", 4)
        parts = [(part.copy(), names) for part, names in formats.parts_of(draft)]
        assert [len(part) for part, _ in parts] == [len(names) for _, names in parts] == sizes
        np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), rows)
        assert [name for _, names in parts for name in names] == list("abcde")
    draft.close()


@pytest.mark.parametrize("ending", [".csv", pytest.param(".parquet", marks=pytest.mark.extra)])
def test_names_of_classes_that_are_no_utf8_are_escaped(ending, tmp_path):
    row = np.dtype([("class", np.int32, (1,)), ("probability", np.float64, (1,))])
    (tmp_path / "draft").mkdir()
    draft, out = Draft(tmp_path / "draft", {}, row, 0, anew=False), tmp_path / f"p{ending}"
    draft.append(np.array([([1], [0.75])], row), ["a.png"])
    finish_classes(draft, Outputs(out, CLASS_FORMATS[ending]), ("ant", "K\udce4fer"))
    draft.close()
    if ending == ".csv":
        assert out.read_text() == "file,class,probability\na.png,K\\udce4fer,0.750000\n"
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(out)["class"].to_pylist() == ["K\\udce4fer"]


def test_predictions_are_those_of_the_classifier(runs, tmp_path, capsys):
    out, code, _ = said(
        capsys, "predict", runs / "photos", "--model", runs / "classifier", "--out", tmp_path / "p.csv", "--top=2"
    )
    assert code == 0 and "17 of 19 images" in out
    model, files = greenjax.load(runs / "classifier"), files_of(runs)
    odds = np.exp(np.asarray(model(pixels_of(model, files)), np.float64))
    probability = odds / odds.sum(axis=1, keepdims=True)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == files
    for row, expected in zip(rows, probability, strict=True):
        best = np.argsort(-expected)
        assert [row["class"], row["class_2"]] == [CLASSES[index] for index in best[:2]]
        found = [float(row["probability"]), float(row["probability_2"])]
        np.testing.assert_allclose(found, expected[best[:2]], atol=2e-5)
    assert len({row["class"] for row in rows}) > 1


def test_reconstructions_show_the_visible_units_of_each_file(runs, tmp_path, capsys):
    """Each picture is a sheet of three; the units of the given mask are the original's in the second and the third."""
    files = [files_of(runs)[0], str(runs / "photos" / "b" / "03.png"), files_of(runs)[0]]
    words = ["reconstruct", *files, "--model", runs / "mim", "--out", tmp_path / "p"]
    out, code, err = said(capsys, *words, "--visible=0,9,63")
    assert code == 0 and "pictures of 2 of 3 images, 3 of 64 units visible" in out and err.count("it is left out") == 1
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["00.png", "00_2.png"]
    sheet = np.asarray(opened(tmp_path / "p" / "00.png"))
    scale, gap, top = 10, 6, 24  # 160 pixels for a picture of 16
    original, visible, reconstruction = (
        sheet[top : top + 160 : scale, left : left + 160 : scale] for left in range(gap, gap + 3 * 166, 166)
    )
    np.testing.assert_array_equal(original, pixels_of(greenjax.load(runs / "mim"), files[:1])[0])
    seen = listed_mask((8, 8), "0,9,63").repeat(2, axis=0).repeat(2, axis=1)
    for picture in (visible, reconstruction):
        np.testing.assert_array_equal(picture[seen], original[seen])
    assert (visible[~seen] == 128).all() and (reconstruction[~seen] != original[~seen]).any()
    assert said(capsys, *words)[2].endswith("00.png' is there: expected a new folder, or --overwrite\n")


def test_masks_from_files(tmp_path):
    mask = np.arange(64).reshape(8, 8) % 3 == 0
    np.save(tmp_path / "m.npy", mask)
    cv2.imwrite(str(tmp_path / "units.png"), mask.astype(np.uint8) * 255)
    cv2.imwrite(str(tmp_path / "pixels.png"), mask.repeat(2, 0).repeat(2, 1).astype(np.uint8) * 255)
    for name in ("m.npy", "units.png", "pixels.png"):
        np.testing.assert_array_equal(mask_of_file(str(tmp_path / name), (8, 8), (16, 16)), mask)
    with pytest.raises(ValueError, match=r"m\.npy' is 8 x 8: expected 4 x 4, a value a unit, or 16 x 16 pixels$"):
        mask_of_file(str(tmp_path / "m.npy"), (4, 4), (16, 16))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["embed", "{photos}", "--model={mim}", "--out=v.txt"], "out is 'v.txt': expected a file named *.npy or"),
        (["embed", "{photos}", "--model={mim}", "--out={there}"], "is there: expected a new file, or --overwrite"),
        (
            ["embed", "{photos}", "--model={mim}", "--stage=1", "--out=v.npy"],
            "stage is 1: expected 0 to 0 for a swin_t",
        ),
        (
            ["embed", "s3://bucket/photos", "--model={mim}", "--out=v.npy"],
            "a URL goes into settings, --set data.source",
        ),
        (["embed", "{photos}/nowhere", "--model={mim}", "--out=v.npy"], "nowhere': no such file or folder"),
        (["embed", "{photos}/a", "{deep}", "--model={photos}", "--out=v.npy"], "init, as a workdir "),
        (
            ["embed", "{deep}", "--model={mim}", "--out=v.npy"],
            "deep.npy: it has 5 channels: expected 3 (model.in_channels",
        ),
        (["embed", "{photos}/b/03.png", "--model={mim}", "--out=v.npy"], "cannot be decoded as an image"),
        (["embed", "{photos}", "--model={mim}", "--step=7", "--out=v.npy"], "step"),
        (
            ["embed", "{photos}", "--model={mim}", "--out=v.npy", "--set=data.path=x"],
            "data.path is 'x': expected none beside",
        ),
        (["predict", "{photos}", "--model={mim}", "--out=v.csv"], "mim', which has no head: expected a classifier"),
        (
            ["predict", "{photos}", "--model={classifier}", "--top=4", "--out=v.csv"],
            "top is 4: expected 1 to 3, the classes",
        ),
        (
            ["reconstruct", "{photos}", "--model={classifier}", "--out=p"],
            "task 'finetune': expected a pre-training run",
        ),
        (
            ["reconstruct", "{photos}", "--model={mim}", "--out=p", "--visible=64"],
            "visible is '64': expected units from 0 to 63",
        ),
        (
            ["reconstruct", "{photos}", "--model={mim}", "--out=p", "--ratio=1"],
            "mask.ratio is 1.0: expected one that leaves",
        ),
        (
            ["reconstruct", "{photos}", "--model={mim}", "--out=p", "--ratio=nan"],
            "mask.ratio is nan: expected a number",
        ),
        (["reconstruct", "{photos}", "--model={mim}", "--out=p", "--seed=-1"], "seed is -1: expected a whole number"),
        (["reconstruct", "{photos}", "--model={mim}", "--out=p", "--mask={there}"], "there.npy' cannot be read: "),
    ],
)
def test_what_the_commands_refuse_in_one_line(words, expected, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "deep.npy", np.zeros((SIDE, SIDE, 5), np.uint8))
    (tmp_path / "there.npy").touch()
    places = {name: runs / name for name in ("photos", "mim", "classifier")}
    places |= {name: tmp_path / f"{name}.npy" for name in ("deep", "there")}
    _, code, err = said(capsys, *(word.format(**places) for word in words))
    assert code == 1 and err.count("\n") == 1 and expected in err and err.startswith(f"greenjax {words[0]}: ")
    assert {path.name for path in tmp_path.iterdir()} == {"deep.npy", "there.npy"}
