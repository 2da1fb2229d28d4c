"""Preparing: every image and label arrives, shrunk where it is large; a killed run goes on; the rest is said."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import small_config
from tiny_data import encode, picture, settings
from tiny_data import prepare as prepare_tfds

from greenjax.backbones.geometry import make_planner
from greenjax.data import prepare
from greenjax.data.loader import train_batches
from greenjax.data.open import open_labelled, open_source
from greenjax.data.prepare.__main__ import main
from greenjax.data.remote import Remote, RemoteError, Stat
from greenjax.data.sources import records
from greenjax.errors import InputError, NoLabels

CONFIG = str(Path(__file__).parents[1] / "configs" / "digits.py")


def run(output, *flags, **data):
    keys = [f"--config.data.{key}={value}" for key, value in data.items()]
    main(["prepare", "--config", CONFIG, "--output", str(output), "--workers=2", *flags, *keys])


def refused(*arguments, **data):
    """The one line that a refused command ends with."""
    with pytest.raises(SystemExit) as error:
        run(*arguments, **data)
    line = str(error.value.code)
    assert line.startswith("greenjax") and "\n" not in line
    return line


@pytest.fixture
def tree(tmp_path):
    """Two classes of six JPEGs, image v of value 20 v; every other one is large."""
    for i in range(12):
        folder = tmp_path / "images" / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = (60, 90) if i % 3 else (12, 18)
        (folder / f"{i}.jpg").write_bytes(encode(picture(20 * i, height, width), ".jpg"))
    return tmp_path / "images"


def told(source):
    """The value, shape and label of every image."""
    return [(round(image.mean() / 20), image.shape, label) for image, label in (source[i] for i in range(len(source)))]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_what_is_prepared_is_what_was_there(tree, tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(prepare, "PER_SHARD", 5)
    data = dict(source="folder", path=tree, split="train[:50%]", eval_split="train[50%:]")
    run(tmp_path / "out", "--size=20", f"--encoding={encoding}", **data)
    before = told(open_labelled(settings("folder", tree), "train"))
    prepared = settings("records", tmp_path / "out")
    source = open_labelled(prepared, "train")
    assert source.classes == ("a", "b") and source.labels.tolist() == [label for *_, label in before]
    small = {(60, 90, 3): (20, 30, 3), (12, 18, 3): (12, 18, 3)}  # shrunk, never enlarged
    assert told(source) == [(value, small[shape], label) for value, shape, label in before]
    assert told(open_labelled(prepared, "train[:50%]")) == told(source)[:6]
    images = pickle.loads(pickle.dumps(open_source(prepared, "train")))
    assert [round(images[i].mean() / 20) for i in range(12)] == [value for value, *_ in before]
    description = json.loads((tmp_path / "out" / "records.json").read_text())
    split = description["splits"]["train"]
    assert (split["images"], split["left_out"], split["shards"]) == (12, 0, [5, 5, 2])
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_small_jpeg_keeps_its_bytes(tree, tmp_path):
    run(tmp_path / "out", "--size=12", "--encoding=jpeg", source="folder", path=tree, eval_split="")
    source, images = (
        open_source(settings("records", tmp_path / "out"), "train"),
        open_source(settings("folder", tree), "train"),
    )
    same = [source.encoded(i).data == images.encoded(i).data for i in range(12)]
    assert same == [images[i].shape[0] == 12 for i in range(12)]


@pytest.mark.parametrize("error", [RemoteError("the server is gone"), InputError("the disk is full")])
def test_records_that_cannot_be_copied_now_are_not_left_out(error):
    class Gone(Remote):
        def copy(self, url, stat):
            raise error

    remote = dict(remote=Gone(1.0, None), stats=(Stat(9, ""),))
    source = records.RecordsSource("http://host", "train", "raw", ("http://host/train-0",), (2,), **remote)
    with pytest.raises(type(error), match=f"^{error}$"):
        source.encoded(0)


def test_raw_pixels_are_not_copied_and_read_by_workers_alike(tmp_path, monkeypatch):
    """Digits in, the same batches out: from the main process and from two that are spawned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(tmp_path / "out", eval_split="")
    config = small_config(data__source="records", data__path=str(tmp_path / "out"))
    source, digits = open_source(config.data, "train[:40]"), open_source(settings("digits"), "train[:40]")
    assert all(np.array_equal(source[i], digits[i]) and not source[i].flags.owndata for i in range(40))
    planner = make_planner(config)
    for workers in (0, 2):
        ours = train_batches(small_config(data__workers=workers), source, planner)
        theirs = train_batches(small_config(), digits, planner)
        assert all(np.array_equal(next(ours).images, next(theirs).images) for _ in range(4))
        ours.close(), theirs.close()


def test_a_tfds_data_set_is_prepared(tmp_path):
    prepare_tfds(tmp_path / "tfds")
    data = dict(source="tfds", path=tmp_path / "tfds", name="tiny", eval_split="")
    run(tmp_path / "out", "--splits", "train[:3]", "test", **data)
    source = open_labelled(settings("records", tmp_path / "out"), "train")
    assert source.classes == ("c", "a", "b")
    assert sorted((int(image.mean()), label) for image, label in (source[i] for i in range(10))) == [
        (i, i % 3) for i in range(10)
    ]
    assert len(open_source(settings("records", tmp_path / "out"), "test")) == 3


def test_images_without_labels_and_broken_ones(tmp_path, caplog):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encode(picture(i)) if i != 3 else b"no image")
    out = tmp_path / ".out"
    run(out, source="folder", path=tmp_path, split="all", eval_split="")
    assert "all is prepared without labels: " in caplog.text
    assert "3.png cannot be decoded as an image; it is left out" in caplog.text
    source = open_source(settings("records", out), "all")
    assert sorted(int(source[i].mean()) for i in range(5)) == [0, 1, 2, 4, 5] and len(source) == 5
    assert json.loads((out / "records.json").read_text())["splits"]["all"]["left_out"] == 1
    with pytest.raises(InputError, match="has no labels of split 'all'"):
        open_labelled(settings("records", out), "all")


@pytest.mark.parametrize("wrong, line", [
    ("train/cover.jpg", "cover.jpg' has no label: expected it in a class folder"),
    ("train/empty/note.txt", "train/empty' has no images: expected some, or no folder"),
])  # fmt: skip
def test_a_wrong_label_does_not_cost_all_labels(tree, tmp_path, wrong, line):
    """What fine-tuning would refuse is refused before anything is written, and passes by a flag alone."""
    (tree / wrong).parent.mkdir(exist_ok=True)
    (tree / wrong).write_bytes(encode(picture(0), ".jpg"))
    data = dict(source="folder", path=tree, eval_split="")
    said = refused(tmp_path / "out", **data)
    assert line in said and said.endswith("; --unlabelled prepares the images without labels")
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", "--unlabelled", **data)
    assert len(open_source(settings("records", tmp_path / "out"), "train")) == 12 + wrong.endswith(".jpg")
    with pytest.raises(NoLabels, match="its source had none when it was prepared, or --unlabelled left them out"):
        open_labelled(settings("records", tmp_path / "out"), "train")


def test_what_no_jpeg_can_hold_is_left_out_in_one_line(tmp_path, caplog):
    arrays = {"two": np.zeros((4, 5, 2)), "long": np.zeros((1, 70_000)), "four": np.zeros((4, 5, 4))}
    for name, array in (arrays | {"fine": np.zeros((4, 5, 3))}).items():
        np.save(tmp_path / f"{name}.npy", array.astype(np.uint8))
    run(tmp_path / ".out", "--encoding=jpeg", source="folder", path=tmp_path, split="all", eval_split="")
    assert len(open_source(settings("records", tmp_path / ".out"), "all")) == 1
    for name, shape in (("two", "4 x 5 of 2"), ("long", "1 x 70000 of 1"), ("four", "4 x 5 of 4")):
        (line,) = (record.getMessage() for record in caplog.records if f"{name}.npy" in record.getMessage())
        assert f"{name}.npy: it is {shape} channels: expected 1 or 3 channels and sides of 65,500" in line


def test_a_killed_run_goes_on_and_does_nothing_twice(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PER_SHARD", 4)
    data = dict(source="folder", path=tree, eval_split="")
    run(tmp_path / "whole", **data)
    done, to_record = [], prepare.to_record

    def dying(image, how):
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(image.name)
        return to_record(image, how)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="the same command goes on"):
        patch.setattr(prepare, "to_record", dying)
        run(tmp_path / "out", "--workers=1", **data)
    with pytest.raises(InputError, match=r"split 'train' of .* is not yet prepared to its end"):
        open_source(settings("records", tmp_path / "out"), "train")
    first = tmp_path / "out" / "train-00000-of-00003.array_record"
    written = first.stat().st_mtime_ns
    run(tmp_path / "out", **data)
    assert first.stat().st_mtime_ns == written
    for path in (tmp_path / "whole").iterdir():
        assert path.name == "records.json" or path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    ours, theirs = (open_labelled(settings("records", tmp_path / name), "train") for name in ("out", "whole"))
    assert told(ours) == told(theirs)


def test_a_damaged_shard_is_made_anew(tree, tmp_path, monkeypatch):
    """The line that names it says what to do, and doing so brings the same records back."""
    monkeypatch.setattr(prepare, "PER_SHARD", 5)
    data = dict(source="folder", path=tree, eval_split="")
    run(tmp_path / "out", **data)
    shard = tmp_path / "out" / "train-00001-of-00003.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    line = f"shard {str(shard)!r}, of 5 images, cannot be read: its end is damaged; delete it, and the same `python -m"
    for reading in (open_source, open_labelled):
        with pytest.raises(InputError) as error:
            reading(settings("records", tmp_path / "out"), "train")
        assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert f"shard {str(shard)!r} cannot be read: its end is damaged; delete it, " in refused(tmp_path / "out", **data)
    shard.unlink()
    run(tmp_path / "out", **data)
    assert shard.read_bytes() == whole and len(open_labelled(settings("records", tmp_path / "out"), "train")) == 12


@pytest.mark.parametrize("name", ["[1]", "a[0:1]", "*", "#%20", "x@3", "back\\slash", "a:b", "new\nline", "🌱"])
def test_images_may_lie_in_folders_of_any_name(tree, tmp_path, name):
    """ArrayRecord and TFDS read brackets as parts of files, where they are asked to."""
    images = tree.rename(tmp_path / name)
    (images / "train" / "a").rename(images / "train" / name)
    run(images / "out", source="folder", path=images, eval_split="")
    prepared = open_labelled(settings("records", images / "out"), "train")
    assert prepared.classes == tuple(sorted((name, "b")))
    assert sorted(value for value, _, _ in told(prepared)) == list(range(12))


def test_a_name_that_is_no_text_is_one_line(tree, tmp_path):
    assert "is no UTF-8" in refused(tmp_path / "\udcff", source="folder", path=tree, eval_split="")


def test_what_cannot_be_prepared_is_said_in_one_line(tree, tmp_path):
    out, data = tmp_path / "out", dict(source="folder", path=tree, eval_split="")
    run(out, "--size=20", **data)
    assert "was begun with size 20: expected that, not 30" in refused(out, "--size=30", **data)
    assert "was begun with encoding 'raw'" in refused(out, "--size=20", "--encoding=jpeg", **data)
    for key, before, value in (("alpha", "'drop'", "white"), ("page", 0, 1), ("no_data", "'none'", "0")):
        assert f"was begun with {key} {before}: " in refused(out, "--size=20", **data | {key: value})
    (tree / "train" / "a" / "new.jpg").write_bytes(encode(picture(7), ".jpg"))
    assert "was begun with train of 12: expected that, not 13" in refused(out, "--size=20", **data)
    (tree / "train" / "a" / "0.jpg").unlink()  # twelve again, and not the same
    assert "was begun with train digest of names and order" in refused(out, "--size=20", **data)
    assert "expected a new directory" in refused(tree, **data)
    assert "invalid choice: 'png'" in refused(out, "--encoding=png", **data)
    assert "argument --size: found '0', expected a whole number, at least 1" in refused(out, "--size=0", **data)
    assert "no sub-folder for split 'val'" in refused(out, "--splits", "val", **data)
    assert "no key 'data.sizes'" in refused(out, **data, sizes=3)


def test_a_folder_of_an_earlier_version_goes_on_as_it_was_begun(tree, tmp_path):
    """It says nothing of types, which were uint8; what the first start with this version reads is kept."""
    out, data = tmp_path / "out", dict(source="folder", path=tree, eval_split="", split="train")
    run(out, **data)
    description = json.loads((out / "records.json").read_text())
    older = {key: value for key, value in description.items() if key not in prepare.READ}
    del older["splits"]["train"]["listing"]
    (out / "records.json").write_text(json.dumps(older))
    assert "was begun with dtype 'uint8': expected that, not 'uint16'" in refused(out, **data, dtype="uint16")
    assert json.loads((out / "records.json").read_text()) == older
    run(out, **data, alpha="white")
    assert "was begun with alpha 'white': expected that, not 'drop'" in refused(out, **data)
    found = json.loads((out / "records.json").read_text())
    assert found["alpha"] == "white" and found["splits"]["train"]["listing"]


def test_records_that_cannot_be_used_say_why(tree, tmp_path):
    run(tmp_path / "out", source="folder", path=tree, eval_split="")
    prepared = settings("records", tmp_path / "out")
    with pytest.raises(InputError, match=r"no split 'test': available are 'train'$"):
        open_source(prepared, "test")
    with pytest.raises(InputError, match="expected a directory made by `python -m greenjax"):
        open_source(settings("records", tree), "train")
    np.save(tmp_path / "out" / "train-00000-of-00001.labels.npy", np.zeros(3, np.int32))
    with pytest.raises(InputError, match="has 3 labels of the 12 images"):
        open_labelled(prepared, "train")
    (tmp_path / "out" / "train-00000-of-00001.array_record").unlink()
    with pytest.raises(InputError, match=r"lacks 'train-00000-of-00001\.array_record'"):
        open_source(prepared, "train")
    with pytest.raises(records.DecodeError, match=r"x\[0\] is no raw image"):
        records.from_raw(b"short", "x[0]")
    with pytest.raises(InputError, match=r"data\.path is ''.*for data\.source 'records'"):
        small_config(data__source="records")


def test_the_command_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "greenjax.data.prepare", "--config", CONFIG, "--output", str(tmp_path), "--size=a"]
    (tmp_path / "something").touch()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "greenjax.data.prepare: argument --size: found 'a', expected a whole number, at least 1"
