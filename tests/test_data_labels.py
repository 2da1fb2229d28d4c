"""Labels: every image has that of its class, whatever the split, and what is wrong with them is said beforehand."""

import logging
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import small_config
from tiny_data import encode, picture, prepare, settings
from worker_cases import constants

from greenjax.data.encoded import DecodeError
from greenjax.data.labels import (
    Chosen,
    LabelledSource,
    Listed,
    check_classes,
    evenly_spaced,
    first_of_each_class,
    matched,
    spaced_rows,
)
from greenjax.data.loader import labelled_batches, labelled_eval_batches
from greenjax.data.open import open_labelled, open_source
from greenjax.data.sources import TfdsSource
from greenjax.errors import InputError, NoLabels


def told(source):
    """Which images a source has and their labels, in order."""
    return [(int(image.mean()), label) for image, label in (source[i] for i in range(len(source)))]


def assert_refused(message, *arguments):
    with pytest.raises(InputError, match=message) as error:
        open_labelled(*arguments)
    assert "\n" not in str(error.value)


# Digits


def test_digits_are_labelled_with_themselves():
    from sklearn.datasets import load_digits

    source = open_labelled(settings("digits"), "test")
    assert isinstance(source, LabelledSource) and source.classes == tuple("0123456789")
    assert np.array_equal(source.labels, load_digits().target[1500:]) and source.labels.dtype == np.int32
    images = open_source(settings("digits"), "test")
    assert all(np.array_equal(source[i][0], images[i]) and source[i][1] == source.label(i) for i in (0, 9, 296))


# Folder


def fill(root, **classes):
    """Images of the given values, a folder for each class."""
    for name, values in classes.items():
        (root / name).mkdir(parents=True)
        for value in values:
            (root / name / f"{value}.png").write_bytes(encode(picture(value)))


@pytest.fixture
def tree(tmp_path):
    """Image v of a class is v, 40 + v or 80 + v; the held-out split lacks a class."""
    fill(tmp_path / "train", ant=range(10), bee=range(40, 50), **{"cow/deep": range(80, 90)})
    fill(tmp_path / "val", cow=range(90, 93), ant=range(10, 13))
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


@pytest.mark.parametrize("split", ["train", "train[:50%]", "train[-7:]", "val", "val[1:]"])
def test_labels_of_a_folder_under_the_training_classes(tree, split):
    """As many images in the same order as without labels; the label says which class folder it was."""
    source = open_labelled(settings("folder", tree), split)
    assert source.classes == ("ant", "bee", "cow") if split.startswith("train") else ("ant", "cow")
    source = matched(source, ("ant", "bee", "cow"), split).source
    assert source.classes == ("ant", "bee", "cow")
    images = open_source(settings("folder", tree), split)
    values = [int(images[i].mean()) for i in range(len(images))]
    assert told(source) == [(value, value // 40) for value in values]
    assert source.labels.tolist() == [source.label(i) for i in range(len(source))] == [v // 40 for v in values]
    assert len(source) == len(images)


def test_a_slice_of_class_folders_in_the_root(tree):
    data = settings("folder", tree / "train", split="all[:90%]")
    both = [*told(open_labelled(data, "all[:90%]")), *told(open_labelled(data, "all[90%:]"))]
    assert sorted(both) == [(v, v // 40) for v in (*range(10), *range(40, 50), *range(80, 90))]


def test_images_of_unknown_classes_are_left_out_and_told(tree):
    fill(tree / "val", dog=[7], emu=[8, 9])
    found = matched(open_labelled(settings("folder", tree), "val"), ("ant", "bee", "cow"), "val")
    assert sorted(told(found.source)) == [(10, 0), (11, 0), (12, 0), (90, 2), (91, 2), (92, 2)]
    assert {Path(found.source.name_of(i)).parent.name for i in range(6)} == {"ant", "cow"}
    assert found.lines("val") == [
        "val: no images of 1 of 3 classes, 'bee'; 3 images of unknown classes left out, 'dog', 'emu'"
    ]
    with pytest.raises(InputError, match=r"val has classes 'ant', 'cow', 'dog', 'emu': expected some of 'x', 'y'$"):
        matched(open_labelled(settings("folder", tree), "val"), ("x", "y"), "val")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_labels_follow_names_whatever_their_numbers(tfds_dir, order):
    """Also of a set whose labels nobody has without reading it."""
    names = tuple(("c", "a", "b")[i] for i in order)
    for source in (
        open_labelled(settings("tfds", tfds_dir, "tiny:1.0.0"), "train"),
        Listed(constants(9), np.arange(9, dtype=np.int32) % 3, ("c", "a", "b")),
    ):
        found = matched(source, names, "set").source
        assert [names[label] for _, label in told(found)] == [source.classes[label] for _, label in told(source)]
        assert [found.label(i) for i in range(9)] == [label for _, label in told(found)][:9]
        few = matched(source, names[:2], "set")
        assert few.left_out == {names[2]: sum(source.classes[label] == names[2] for _, label in told(source))}
        assert {names[label] for _, label in told(few.source)} == set(names[:2])


def test_names_are_compared_as_people_read_them():
    """However an accent is written; a name that differs in case alone is a slip."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    source = Listed(constants(4), np.array([0, 1, 0, 1], np.int32), (apart, "tea"))
    assert [label for _, label in told(matched(source, ("tea", composed), "set").source)] == [1, 0, 1, 0]
    with pytest.raises(InputError, match="set has class 'tea': expected 'Tea', the class that differs in case alone"):
        matched(source, ("Tea", composed), "set")
    with pytest.raises(InputError, match="two classes have the name 'tea'"):
        matched(source, ("tea", "tea", composed), "set")


def test_two_spellings_of_one_class_are_refused(tmp_path):
    fill(tmp_path / "train", **{"caf\u00e9": [1], "cafe\u0301": [2]})
    line = r"has classes 'cafe\\u0301' and 'caf\\xe9', one name: expected one spelling|has classes 'caf\\xe9' and 'cafe"
    assert_refused(line, settings("folder", tmp_path), "train")
    for one, other in (("caf\u00e9", "cafe\u0301"), ("1", "01")):
        (tmp_path / "list.csv").write_text(f"path,label\na.png,{one}\nb.png,{other}\n")
        assert_refused("^data.path has classes '.*' and '.*', one name", settings("list", tmp_path / "list.csv"), "all")


def test_no_label_at_all_is_told_from_one_that_is_missing(tmp_path):
    """Images of a set without labels may be prepared; where some are missing, the others would be lost."""
    fill(tmp_path, **{"flat/train": [1], "some/train": [1], "some/train/ant": [2], "whole/train/ant": [3]})
    (tmp_path / "flat" / "train" / "empty").mkdir()
    paths = ("flat",), ("flat", "whole")
    several = [settings("folder").to_dict() | {"path": tuple(str(tmp_path / name) for name in each)} for each in paths]
    (tmp_path / "none.csv").write_text("path\na.png\nb.png")
    (tmp_path / "empty.csv").write_text("path,label\na.png,\nb.png,")
    (tmp_path / "one.csv").write_text("path,label\na.png,\nb.png,cat")
    lists = [settings("list", tmp_path / name, split="all") for name in ("none.csv", "empty.csv", "one.csv")]
    found = []
    for data in (
        settings("folder", tmp_path / "flat"),
        settings("folder", tmp_path / "some"),
        *map(ConfigDict, several),
        *lists,
    ):
        with pytest.raises(InputError) as raised:
            open_labelled(data, data.split)
        found.append(isinstance(raised.value, NoLabels))
    assert found == [True, False, True, False, True, True, False]


def test_folders_without_labels_say_so(tree):
    (tree / "train" / "stray.png").write_bytes(encode(picture(0)))
    assert_refused(r"train/stray\.png' has no label: expected it in a class folder", settings("folder", tree), "train")
    (tree / "train" / "stray.png").rename(tree / "train" / "ant" / "100.png")
    (tree / "train" / "dog").mkdir()
    assert_refused(r"class folder '.*train/dog' has no images", settings("folder", tree), "train")
    deep = settings("folder", tree / "train" / "cow", split="deep")
    assert_refused(r"cow/deep' has no class folders, hence no labels: expected .*cow/deep/CLASS/IMAGE", deep, "deep")


def test_an_evaluation_needs_no_training_split(tree):
    source = open_labelled(settings("folder", tree, split="training"), "val")
    assert len(source) == 6
    assert_refused("is empty", settings("folder", tree), "train[5:5]")


# TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare(data_dir, "1.0.0")
    prepare(data_dir, "2.0.0", labels=("coarse", "label"))
    prepare(data_dir, "3.0.0", labels=("coarse", "fine"))
    prepare(data_dir, "4.0.0", labels=())
    return data_dir


@pytest.mark.parametrize("version, feature", [("1.0.0", "y"), ("2.0.0", "label")])
def test_tfds_labels_come_with_the_record(tfds_dir, version, feature):
    data = settings("tfds", tfds_dir, f"tiny:{version}")
    source = open_labelled(data, "train")
    assert isinstance(source, LabelledSource) and source.feature == feature
    assert source.classes == ("c", "a", "b") and source.labels is None
    assert sorted(told(source)) == [(i, i % 3) for i in range(10)]
    assert [source.label(i) for i in range(10)] == [label for _, label in told(source)]
    part = open_labelled(data, "train[20%:50%]")
    assert told(part) == told(source)[2:5] and part.labels is None and part.label(1) == source.label(3)


@pytest.mark.parametrize("version, features", [("3.0.0", "'coarse', 'fine', 'image'"), ("4.0.0", "'image'")])
def test_a_tfds_data_set_without_a_label_is_refused(tfds_dir, version, features):
    data = settings("tfds", tfds_dir, f"tiny:{version}")
    assert_refused(f"needs a class label, named 'label' or the only one: its features are {features}$", data, "train")


def test_images_whose_class_tfds_keeps_secret_are_refused(tfds_dir):
    first, second = unlabelled(tfds_dir, [0, 1]), unlabelled(tfds_dir, [1, 0])
    check_classes(config(), first)
    for task, classes in (("finetune", 3), ("knn", 0)):
        with pytest.raises(InputError, match=SECRET):
            check_classes(config(task, model__num_classes=classes), second)


SECRET = r"label -1 of image tiny/1\.0\.0 unlabelled\[\d\]: expected 0 or more, below 3, the classes of feature 'y'"


def unlabelled(tfds_dir, order):
    """Image 0, which has a label, and image 1, which has none, in this order."""
    source = open_labelled(settings("tfds", tfds_dir, "tiny:1.0.0"), "unlabelled")
    values = [int(source.source[i].mean()) for i in range(2)]
    return Chosen(source, np.array([values.index(value) for value in order]))


# Few labels


def test_the_first_images_of_every_class(tree, tfds_dir):
    for data in (settings("folder", tree), settings("tfds", tfds_dir, "tiny:1.0.0")):
        whole = told(open_labelled(data, "train"))
        data.per_class = 2
        few = open_labelled(data, "train")
        assert [label for _, label in sorted(told(few))] == [0, 0, 1, 1, 2, 2] or few.labels is None
        assert told(few) == [row for i, row in enumerate(whole) if sum(label == row[1] for _, label in whole[:i]) < 2]
        other = "val" if data.source == "folder" else "test"
        assert len(open_labelled(data, other)) == (6 if data.source == "folder" else 3)  # held out: all of them


def test_labels_of_damaged_records_are_passed_over(tfds_dir, monkeypatch):
    """A TFDS label lies in the image's record: what cannot be read is left to the line that is told of the image."""
    data = settings("tfds", tfds_dir, "tiny:1.0.0", per_class=1)
    first, example = first_of_each_class(open_labelled(data, "train[:]"), 1, "train"), TfdsSource.example

    def damaged(source, index):
        if index == first[0]:
            raise DecodeError(f"{source.name_of(index)} cannot be read")
        return example(source, index)

    monkeypatch.setattr(TfdsSource, "example", damaged)
    source = open_labelled(data, "train")
    assert first[0] not in source.rows and len(source) == 3
    check_classes(config(), open_labelled(data, "train[:]"))


def test_at_most_so_many_images_are_of_all_classes(tree):
    """Of a set that is stored class by class; all where there are no more."""
    whole = open_labelled(settings("folder", tree), "train")
    stored = Chosen(whole, np.argsort(whole.labels, kind="stable"))
    few = evenly_spaced(stored, 3)
    assert few.labels.tolist() == [0, 1, 2] and len(set(few.rows.tolist())) == 3
    assert evenly_spaced(stored, len(stored)) is stored
    assert spaced_rows(10**6, 20_000).max() < 10**6  # 64 bits: the product is above 2^31


def test_few_labels_of_a_slice(tree):
    data = settings("folder", tree, split="train[:60%]", per_class=1)
    assert sorted(label for _, label in told(open_labelled(data, "train[:60%]"))) == [0, 1, 2]


def test_a_class_with_too_few_images_is_named(tree):
    data = settings("folder", tree, per_class=11)
    message = r"data\.per_class is 11: expected at most what each class has: class 'ant' has 10 images in split 'train'"
    assert_refused(message, data, "train")


def test_labels_are_read_no_further_than_needed():
    class Counting(Listed):
        def label(self, index):
            assert index < 7
            return super().label(index)

    source = Counting(constants(90), np.arange(90, dtype=np.int32) % 3, ("a", "b", "c"))
    assert first_of_each_class(source, 2, "train").tolist() == [0, 1, 2, 3, 4, 5]


# What the model has outputs for


def test_more_classes_than_outputs_are_refused():
    source = open_labelled(settings("digits"), "train")
    check_classes(config(model__num_classes=10), source)
    check_classes(config(task="knn", model__num_classes=0), source)  # no outputs at all
    with pytest.raises(
        InputError, match=r"model\.num_classes is 5: expected at least the 10 classes of the data, '0', "
    ):
        check_classes(config(model__num_classes=5), source)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_output_is_named_before_anything_is_read(label):
    source = Listed(constants(4), np.array([0, 1, label, 2], np.int32), ("a", "b", "c"))
    for batches in (labelled_batches, labelled_eval_batches):
        with pytest.raises(InputError, match=f"label {label} of image 2: expected 0 or more, below 3"):
            batches(config(), source)


# Batches


def config(task="finetune", **overrides):
    return small_config(task=task, **{"model__num_classes": 3, "data__batch_size": 8} | overrides)


def labelled(count, broken=()):
    """Image i has label i % 3."""

    class Source(Listed):
        def encoded(self, index):
            if index in broken:
                raise DecodeError(f"file{index}.jpg cannot be decoded as an image")
            return super().encoded(index)

    return Source(constants(count), np.arange(count, dtype=np.int32) % 3, ("a", "b", "c"))


def take(iterator, count):
    batches = list(islice(iterator, count))
    iterator.close()
    return batches


def seen(batches, field="images"):
    """Every row of all batches; of images their value."""
    rows = np.concatenate([getattr(batch, field) for batch in batches])
    return rows[:, 0, 0, 0].tolist() if field == "images" else rows.tolist()


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_image_comes_once_an_epoch_with_its_label():
    batches = take(labelled_batches(config(), labelled(20)), 10)
    order = np.array(seen(batches)).reshape(4, 20)
    assert (np.sort(order, axis=1) == np.arange(20)).all() and len(np.unique(order, axis=0)) > 1
    assert (np.array(seen(batches, "labels")) == order.ravel() % 3).all()
    batch = batches[0]
    assert batch.images.shape == (8, 32, 32, 1) and batch.images.dtype == np.uint8
    assert batch.labels.dtype == batch.undecodable.dtype == np.int32 and batch.valid.dtype == bool
    assert {leaf.shape[0] for leaf in jax.tree.leaves(batch)} == {8}  # every leaf can be split over devices
    assert all(batch.valid.all() and not batch.undecodable.any() for batch in batches)


AUGMENTED = dict(data__randaugment=9.0, data__erasing=0.5, data__flip=True)


def test_workers_and_the_first_step_change_nothing():
    source = open_labelled(settings("digits"), "train[:20]")
    settings_ = dict(model__num_classes=10, **AUGMENTED)
    whole = take(labelled_batches(config(**settings_), source), 6)
    assert_equal(take(labelled_batches(config(data__workers=2, **settings_), source, 3), 3), whole[3:])
    plain = take(labelled_batches(config(model__num_classes=10), source), 1)[0]
    assert not np.array_equal(plain.images, whole[0].images) and np.array_equal(plain.labels, whole[0].labels)


def test_a_replaced_image_brings_its_label(caplog):
    expected = seen(take(labelled_batches(config(), labelled(20)), 5))
    with caplog.at_level(logging.WARNING):
        batches = take(labelled_batches(config(), labelled(20, broken={5})), 5)
    at = [i for i, value in enumerate(expected) if value == 5 and i + 1 < len(expected)]
    for i in at:
        expected[i] = expected[i + 1]
    assert seen(batches)[:-1] == expected[:-1]
    assert seen(batches, "labels") == [value % 3 for value in seen(batches)]
    assert [i for i, bad in enumerate(seen(batches, "undecodable")) if bad][: len(at)] == at
    assert all(batch.valid.all() for batch in batches) and "file5.jpg" in caplog.text


@pytest.mark.parametrize("count", [21, 16, 3])
def test_evaluation_has_every_image_once_and_in_order(count):
    """All of them, whatever data.eval_images is: that is for pre-training."""
    batches = list(labelled_eval_batches(config(data__workers=2, data__eval_images=2), labelled(count)))
    valid = np.array(seen(batches, "valid"))
    assert valid.tolist() == [True] * count + [False] * (-count % 8)
    assert np.array(seen(batches))[valid].tolist() == list(range(count))
    assert seen(batches, "labels") == [i % 3 for i in range(count)] + [-1] * (-count % 8)
    assert_equal(list(labelled_eval_batches(config(), labelled(count))), batches)


def test_evaluation_leaves_out_what_cannot_be_decoded_and_counts_it(caplog):
    with caplog.at_level(logging.WARNING):
        batches = list(labelled_eval_batches(config(), labelled(10, broken={3, 9})))
    valid = np.array(seen(batches, "valid"))
    assert np.array(seen(batches))[valid].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert np.flatnonzero(seen(batches, "undecodable")).tolist() == [3, 9]
    assert (np.array(seen(batches, "labels")) >= 0).tolist() == valid.tolist()
    assert "file3.jpg cannot be decoded as an image; it is left out" in caplog.text


@pytest.mark.parametrize("batches", [labelled_batches, labelled_eval_batches])
def test_nothing_decodable_stops_the_run(batches):
    with pytest.raises(
        InputError,
        match=r"(4|100) of the last \1 images cannot be used, the first of them: \d: file\d.jpg cannot be decoded",
    ):
        next(batches(config(), labelled(4, broken=range(4))))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_found_wrong_on_the_way_ends_the_run_in_one_line(tfds_dir, workers):
    """Labels that are not cheap are seen when their image is; the error comes out of a worker as what it is."""
    with pytest.raises(InputError, match=SECRET):
        next(labelled_batches(config(data__batch_size=2, data__workers=workers), unlabelled(tfds_dir, [0, 1])))
