"""Data sets of Hugging Face's library: every image once, in order, still encoded; damage and doubt in one line."""

import pickle
import shutil
import sys

import numpy as np
import pytest
from test_data_loader import assert_equal, take, tiny_config
from tiny_data import encode, picture, settings

from greenjax.backbones.geometry import make_planner
from greenjax.config import resolve
from greenjax.data.encoded import DecodeError, Encoded
from greenjax.data.listing import listing
from greenjax.data.loader import train_batches
from greenjax.data.open import open_labelled, open_source
from greenjax.data.overlap import images_in_both
from greenjax.data.sources import SOURCES
from greenjax.errors import InputError, NoLabels

pytestmark = pytest.mark.extra


def made(count, first=0, features=None, **columns):
    """A data set of the library: image i has the value first + i and the class i % 3 of "c", "a" and "b"."""
    from datasets import ClassLabel, Dataset, Features, Image

    images = [{"bytes": encode(picture(first + i)), "path": f"{i}.png"} for i in range(count)]
    columns = {"image": images, "label": [i % 3 for i in range(count)]} | columns
    kinds = {"image": Image(), "label": ClassLabel(names=["c", "a", "b"])} | (features or {})
    whole = Dataset.from_dict({name: column for name, column in columns.items() if column is not None})
    return whole.cast(Features({name: kinds.get(name, kind) for name, kind in whole.features.items()}))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same twelve training and five test images, in every place that the library opens."""
    import datasets

    root = tmp_path_factory.mktemp("places")
    sets = datasets.DatasetDict(train=made(12), test=made(5, first=40))
    sets.save_to_disk(root / "saved", num_shards={"train": 3, "test": 1})
    for split, each in sets.items():
        for folder in ("parquet", "arrow"):
            (root / folder).mkdir(exist_ok=True)
        each.to_parquet(root / "parquet" / f"{split}-00000-of-00001.parquet")
        for row in range(len(each)):
            path = root / "images" / split / "cab"[row % 3] / f"{row:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each.with_format("arrow")[row]["image"][0]["bytes"].as_py())
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The library's copies of files that are no Arrow files lie here."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def place(path, split="train", **more):
    return open_source(settings("huggingface", path, **more), split)


def values(source):
    return [int(source[i].mean()) for i in range(len(source))]


@pytest.mark.parametrize("path", ["saved", "parquet", "parquet/{split}-*.parquet", "images"])
def test_every_image_is_read_once_in_the_order_of_the_data_set(places, path):
    expected = list(range(12)) if path != "images" else [*range(1, 12, 3), *range(2, 12, 3), *range(0, 12, 3)]
    source, labelled = place(places / path), open_labelled(settings("huggingface", places / path), "train")
    assert values(source) == expected and values(place(places / path, "test[-3:]"))[0] >= 40
    names = ("a", "b", "c") if path == "images" else ("c", "a", "b")
    assert labelled.classes == names
    assert [names[label] for label in labelled.labels] == ["cab"[value % 3] for value in expected]
    assert isinstance(source.encoded(0), Encoded) and source.name_of(7) == f"{places / path} train[7]"


def test_brackets_in_names_are_no_pattern(places, tmp_path, monkeypatch):
    """Except to the library, which would read other folders in place of this one."""
    folder = shutil.copytree(places / "parquet", tmp_path / "birds [2012]")
    assert values(place(folder / "{split}-*.parquet", "test")) == list(range(40, 45))
    with pytest.raises(InputError, match=r"birds \[2012\]': expected no \*, \? or \[ in the path of a folder"):
        place(folder)
    monkeypatch.chdir(folder)
    assert values(place("{split}-*.parquet", "test")) == list(range(40, 45))


def test_split_all_has_all_splits_one_after_the_other(places):
    whole, train, test = (place(places / "saved", split) for split in ("all", "train", "test"))
    assert values(whole) == values(train) + values(test)
    assert images_in_both(whole, test) == 5 and images_in_both(train, test) == 0
    assert images_in_both(place(places / "saved", "all[:14]"), place(places / "saved", "all[10:]")) == 4


def test_arrow_files_and_a_data_set_without_splits_have_one(places, tmp_path):
    made(12).save_to_disk(tmp_path / "one")
    of_files = place(places / "saved" / "train" / "data-{00000..00002}-of-00003.arrow", "all")
    assert listing(of_files) == listing(place(tmp_path / "one", "all")) != listing(place(places / "saved"))
    with pytest.raises(InputError, match=r"one' has no split 'train': available are 'all'$"):
        place(tmp_path / "one")


def test_workers_map_the_files_anew(places):
    source = place(places / "saved")
    before = len(pickle.dumps(source))
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) == before < 1000 and values(copy) == values(source)


def test_workers_resumes_and_processes_change_nothing(places):
    """Batches are those of an array of the same images: with workers, from any step on, and in parts."""
    config = resolve({**tiny_config(source="huggingface", path=str(places / "saved"), split="train")})
    planner, source = make_planner(config), place(places / "saved")
    whole = take(train_batches(config, [*map(source.__getitem__, range(12))], planner), 6)
    assert_equal(take(train_batches(config, source, planner), 6), whole)
    with_workers = resolve({**config, "data": {**config.data, "workers": 2}})
    assert_equal(take(train_batches(with_workers, source, planner, 2), 4), whole[2:])
    parts = [take(train_batches(config, source, planner, 3, own), 2) for own in (range(1), range(1, 4))]
    for step, halves in enumerate(zip(*parts)):
        assert np.array_equal(np.concatenate([half.images for half in halves]), whole[3 + step].images)


# Columns


def test_columns_are_named_by_keys_or_by_the_library(tmp_path):
    from datasets import ClassLabel

    columns = dict(
        left=[{"bytes": encode(picture(100 + i)), "path": None} for i in range(6)],
        right=[encode(picture(200 + i)) for i in range(6)],
        label=None,
        fine=[5 - i for i in range(6)],
        coarse=[0, 0, 0, 1, 1, 1],
        word=["x", "y", "z", "x", "y", "z"],
        size=[0.5] * 6,
    )
    kinds = dict(coarse=ClassLabel(names=["low", "high"]), fine=ClassLabel(names=[*"abcdef"]))
    made(6, features=kinds, **columns).save_to_disk(tmp_path / "many")
    made(6, features=kinds, image=None, **columns).save_to_disk(tmp_path / "bytes")
    assert values(place(tmp_path / "many", "all")) == [*range(6)]
    assert values(place(tmp_path / "bytes", "all", image_column="left")) == [*range(100, 106)]
    assert values(place(tmp_path / "bytes", "all", image_column="right")) == [*range(200, 206)]
    with pytest.raises(InputError, match=r"of which 'left', 'right' hold images: expected one, or one that data"):
        place(tmp_path / "bytes", "all")
    with pytest.raises(InputError, match=r"'word', 'size', of which 'image' hold images"):
        place(tmp_path / "many", "all", image_column="word")
    for column, classes, labels in (
        ("coarse", ("low", "high"), [0, 0, 0, 1, 1, 1]),
        ("fine", tuple("abcdef"), [5, 4, 3, 2, 1, 0]),
        ("word", ("x", "y", "z"), [0, 1, 2, 0, 1, 2]),
    ):
        labelled = open_labelled(settings("huggingface", tmp_path / "many", label_column=column), "all")
        assert labelled.classes == classes and labelled.labels.tolist() == labels
    for column in ("", "size", "nothing"):
        with pytest.raises(InputError, match=rf"label_column is '{column}': .* which has 'fine', 'coarse', 'word'$"):
            open_labelled(settings("huggingface", tmp_path / "many", label_column=column), "all")


def test_numbers_as_labels_are_classes_in_their_order(tmp_path):
    from datasets import Value

    made(3, features={"label": Value("int64")}, label=[10, 9, 2]).save_to_disk(tmp_path / "numbers")
    labelled = open_labelled(settings("huggingface", tmp_path / "numbers"), "all")
    assert labelled.classes == ("2", "9", "10") and labelled.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize("labels, found", [([0, None, 1], "None"), ([0, -1, 1], "-1")])
def test_a_missing_label_is_named(tmp_path, labels, found):
    made(3, label=labels).save_to_disk(tmp_path / "gaps")
    with pytest.raises(
        InputError, match=rf"gaps all\[1\] has label {found} in column 'label': expected 0 or more"
    ) as one:
        open_labelled(settings("huggingface", tmp_path / "gaps"), "all")
    made(2, label=[-1, None]).save_to_disk(tmp_path / "hidden")  # as those of many test splits
    with pytest.raises(NoLabels, match=r"hidden all\[0\] has label -1 in column 'label'"):
        open_labelled(settings("huggingface", tmp_path / "hidden"), "all")
    assert not isinstance(one.value, NoLabels)


def test_columns_are_refused_for_a_source_without_columns():
    with pytest.raises(InputError, match=r"data.image_column is 'x': expected '' for data.source 'digits'"):
        tiny_config(image_column="x")
    with pytest.raises(InputError, match=r"data.path is '': expected a folder of save_to_disk or of files"):
        tiny_config(source="huggingface")


# Damage


def test_rows_without_an_image_are_named_when_they_are_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "cat.png").write_bytes(encode(picture(7)))
    rows = [None, (None, None), (None, str(tmp_path / "cat.png")), (b"x", None)]
    images = [row and dict(zip(("bytes", "path"), row)) for row in rows]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})  # as other programs write it, too
    parquet.write_table(pyarrow.table({"image": pyarrow.array(images, kind)}), tmp_path / "odd.parquet")
    source = place(tmp_path / "odd.parquet", "all")
    assert source[2].mean() == 7
    (tmp_path / "cat.png").unlink()
    for index, why in enumerate(
        (
            r"odd.parquet all\[0\] has no image: its column 'image' is empty",
            r"odd.parquet all\[1\] has no image: its column 'image' is empty",
            r"/cat.png cannot be read: there is no such file",
            r"odd.parquet all\[3\] cannot be decoded",
        )
    ):
        with pytest.raises(DecodeError, match=why) as error:
            source[index]
        assert "\n" not in str(error.value)


def test_a_damaged_arrow_file_is_named(places, tmp_path):
    """When it is opened, or with each row whose place in the file is wrong; other rows stay as they are."""
    shutil.copytree(places / "saved", tmp_path / "saved")
    shard = tmp_path / "saved" / "train" / "data-00001-of-00003.arrow"
    whole = shard.read_bytes()
    refused, unread = set(), set()
    flips = [(f"flip {at}", whole[:at] + bytes([whole[at] ^ 0x44]) + whole[at + 1 :]) for at in range(0, len(whole), 7)]
    cuts = [(f"cut {length}", whole[:length]) for length in (0, 1, 100, len(whole) // 2, len(whole) - 8)]
    for what, damaged in [*flips, *cuts, ("text", b"text" * 300)]:
        shard.write_bytes(damaged)
        try:
            source = place(tmp_path / "saved")
            pixels = []
            for index in range(12):
                try:
                    pixels.append(source[index].mean())
                except DecodeError as error:
                    assert 4 <= index < 8 and str(error).startswith(f"{tmp_path / 'saved'} train[{index}] ")
                    unread.add(what)
                    pixels.append(None)
            assert pixels[:4] == [0, 1, 2, 3] and pixels[8:] == [8, 9, 10, 11]
        except InputError as error:
            assert "\n" not in str(error) and str(tmp_path / "saved") in str(error)
            refused.add(what)
            if what[0] != "f":
                assert str(error).startswith(f"{str(shard)!r} cannot be read: ")
    assert {what for what, _ in cuts} | {"text"} <= refused and len(unread) > 3
    shard.unlink()
    with pytest.raises(InputError, match=r"saved': datasets cannot open it: .*data-00001-of-00003.arrow"):
        place(tmp_path / "saved")


def test_a_damaged_parquet_file_is_named(places, tmp_path):
    whole = (places / "parquet" / "train-00000-of-00001.parquet").read_bytes()
    for damaged in (b"", b"text" * 100, whole[:-9], whole[: len(whole) // 2], whole[:4] + bytes(200) + whole[204:]):
        (tmp_path / "cut.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"cut\.parquet' cannot be read: .*; copy it again$") as error:
            place(tmp_path / "cut.parquet", "all")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path, split, message",
    [
        ("{places}/saved", "val", "has no split 'val': available are 'all', 'train', 'test'$"),
        ("{places}/nowhere", "train", "nowhere': expected a folder of save_to_disk or of files, a pattern of files"),
        ("{places}/parquet/x-*.parquet", "all", "expected Parquet or Arrow files, found none of split 'all'"),
        ("{places}/parquet/train-*.parquet", "train", r"without \{split\}: the only split is 'all', not 'train'"),
        ("nobody/nothing", "train", "'nobody/nothing', a name on the hub, which needs a network or a copy in the lib"),
        ("{places}/text", "train", "has columns 'text', of which none hold images"),
        ("{places}/empty", "train", "datasets cannot open it: "),
        ("{places}/other", "all", "has splits with other columns: expected one of them, not split 'all'"),
    ],
)
def test_what_cannot_be_opened_is_told_in_a_line(places, path, split, message):
    import datasets

    for folder in ("text", "empty"):
        (places / folder).mkdir(exist_ok=True)
    (places / "text" / "train.txt").write_text("no image\n")
    if "other" in path:
        other = datasets.DatasetDict(train=made(3), test=made(3, more=["x", "y", "z"]))
        other.save_to_disk(places / "other")
    with pytest.raises(InputError, match=message) as error:
        place(path.replace("{places}", str(places)), split)
    assert "\n" not in str(error.value)


def test_the_missing_library_is_named_with_the_line_that_installs_it(monkeypatch, places):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets: `pip install 'greenjax\[huggingface\]'` inst"):
        place(places / "saved")


def test_configurations_are_those_of_the_hub(places):
    with pytest.raises(InputError, match=r"data.name is 'full': expected '', as .*saved' has no configurations"):
        place(places / "saved", name="full")
    assert SOURCES["huggingface"].place[-1] == "data.path"
