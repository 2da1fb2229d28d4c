"""Several directories as one set of images: each image once, classes united by name, mistakes named in one line."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_data import encode, of_pictures, picture, settings

import greenjax
from greenjax.config import flatten, resolve
from greenjax.config.flags import split
from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source
from greenjax.data.overlap import images_in_both, warn_of_overlap
from greenjax.data.prepare import How
from greenjax.data.prepare import prepare as prepare_records
from greenjax.data.sources import FolderSource
from greenjax.data.sources.names import by_hash
from greenjax.errors import InputError
from greenjax.tasks.evaluate import EvalSet, warn_of_training_images

# Values of the images of each class folder; "1.png" of class "ant" is in both directories.
ONE = {"train/ant": (1, 2), "train/cafe\u0301": (40,), "val/ant": (100,)}
TWO = {"train/ant": (1, 9), "train/bee/deep": (50, 51), "train/caf\u00e9": (41, 42, 43), "val/bee": (150,)}


def at(*paths, **changes):
    """The settings of a folder, or of several."""
    data = settings("folder", "")
    paths = tuple(map(str, paths))
    return ConfigDict(data.to_dict() | {"path": paths if len(paths) > 1 else paths[0]} | changes)


def fill(root, classes):
    for folder, values in classes.items():
        (root / folder).mkdir(parents=True)
        for value in values:
            (root / folder / f"{value}.png").write_bytes(encode(picture(value)))
    return root


@pytest.fixture
def roots(tmp_path):
    return fill(tmp_path / "one", ONE), fill(tmp_path / "two", TWO)


def test_the_images_of_all_directories_are_there_each_once(roots):
    for split_name in ("train", "val", "all"):
        source = open_source(at(*roots), split_name)
        parts = [open_source(at(root), split_name) for root in roots]
        names = [source.name_of(i) for i in range(len(source))]
        assert sorted(names) == sorted(part.name_of(i) for part in parts for i in range(len(part)))
        for i, name in enumerate(names):
            assert source[i].mean() == int(Path(name).stem)
        # As in one directory, by the hash of names; of equal names the first directory's image is first.
        relative = [
            os.path.relpath(name, roots[str(roots[1]) in name] / split_name.replace("all", "")) for name in names
        ]
        assert relative == sorted(relative, key=by_hash)
        for root in roots:
            (alone,) = (part for part in parts if part.root.startswith(str(root)))
            assert [name for name in names if name.startswith(str(root))] == [
                alone.name_of(i) for i in range(len(alone))
            ]
    names = [source.name_of(i) for i in range(len(source))]
    twins = [name for name in names if name.endswith("train/ant/1.png")]
    assert [Path(name).parents[2] for name in twins] == [*roots]


def test_class_folders_of_one_name_are_one_class(roots):
    """However their accents are written."""
    source = open_labelled(at(*roots), "train")
    assert source.classes == ("ant", "bee", "cafe\u0301")
    found = sorted((int(image.mean()), label) for image, label in (source[i] for i in range(len(source))))
    assert found == [(1, 0), (1, 0), (2, 0), (9, 0), (40, 2), (41, 2), (42, 2), (43, 2), (50, 1), (51, 1)]
    assert source.labels.tolist() == [source.label(i) for i in range(len(source))] and source.labels.dtype == np.int32
    few = open_labelled(at(*roots, per_class=2), "train")
    assert np.bincount(few.labels).tolist() == [2, 2, 2]


def test_one_directory_is_what_it_was(roots):
    """A tuple of one is a path; its source is that of the path."""
    config = {"task": "finetune", "steps": 1, "model": {"num_classes": 3}, "data.source": "folder"}
    for path in ((str(roots[0]),), [str(roots[0])], str(roots[0])):
        data = resolve(config | {"data.path": path}).data
        assert data.path == str(roots[0])
        assert listing(open_source(data, "train")) == listing(open_source(at(roots[0]), "train"))
    assert type(open_source(data, "train")) is FolderSource


def test_the_digest_knows_every_image_and_not_the_place(roots, tmp_path):
    before = listing(open_source(at(*roots), "train"))
    moved = tuple(root.rename(tmp_path / f"moved{i}") for i, root in enumerate(roots))
    assert listing(open_source(at(*moved), "train")) == before
    assert listing(open_source(at(moved[0]), "train")) != before
    (moved[1] / "train" / "ant" / "9.png").rename(moved[0] / "train" / "ant" / "9.png")
    assert listing(open_source(at(*moved), "train")) != before


def test_a_worker_gets_the_same_images(roots):
    source = open_labelled(at(*roots), "train")
    copy = pickle.loads(pickle.dumps(source))
    for i in range(len(source)):
        (one, label), (other, same) = source[i], copy[i]
        assert label == same and np.array_equal(one, other) and source.name_of(i) == copy.name_of(i)


def test_shared_images_are_counted(roots, tmp_path, caplog):
    train, part = (open_source(at(*roots), name) for name in ("train", "train[:4]"))
    assert images_in_both(train, part) == 4 == images_in_both(part, train)
    assert images_in_both(train, open_source(at(*roots), "val")) == 0
    assert images_in_both(train, open_source(at(*roots), "all")) == len(train)
    other = fill(tmp_path / "three", {"train/x": (7,)})
    assert images_in_both(train, open_source(at(roots[1], other), "train")) == 7
    data = at(*roots, split="train", eval_split="train[:4]")
    warn_of_overlap(data, train, part)
    assert "4 of the 4 images of data.eval_split 'train[:4]' are in data.split 'train' too" in caplog.text


def test_an_evaluation_knows_the_training_images(roots, tmp_path, caplog):
    """config.json has a list where the config has a tuple."""
    given = {"task": "eval", "init": str(tmp_path), "data.source": "folder", "data.path": [*map(str, roots)]}
    config = resolve(given | {"data.eval_split": "train[:3]"})
    recorded = flatten(config) | {"task": "finetune", "init": "none"}
    (tmp_path / "config.json").write_text(json.dumps(resolve(recorded | {"steps": 1}).to_dict()))
    source = open_labelled(config.data, "train[:3]")
    warn_of_training_images(config, EvalSet("train[:3]", config.data, "train[:3]"), source)
    assert "3 of the 3 images of train[:3] are training images of init" in caplog.text


def test_records_are_prepared_of_all(roots, tmp_path):
    list(prepare_records(of_pictures(at(*roots)), tmp_path / "made", How(256, "raw"), ["train"]))
    records, source = open_labelled(settings("records", tmp_path / "made"), "train"), open_labelled(at(*roots), "train")
    assert [label for _, label in records] == [label for _, label in (source[i] for i in range(len(source)))]
    assert all(np.array_equal(records[i][0], source[i][0]) for i in range(len(source)))
    with pytest.raises(InputError, match=r"was begun with path \['.*/one', '.*/two'\]: expected that, not '.*/one'$"):
        list(prepare_records(of_pictures(at(roots[0])), tmp_path / "made", How(256, "raw"), ["train"]))


# Settings


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/a,/b", ("/a", "/b")),
        ("/a, /b", ("/a", "/b")),
        ("('/a', '/b,c')", ("/a", "/b,c")),
        ("/a(1),/b(2)", ("/a(1)", "/b(2)")),
        ("/a", "/a"),
        ("", ""),
    ],
)
def test_a_command_line_has_paths_between_commas(text, expected):
    for key in ("data.path", "data.monitor_path"):
        (found,) = split([f"--config.{key}={text}"]).overrides.values()
        assert found == expected


def test_a_path_with_a_comma_that_is_there_is_one(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert split([f"--config.data.path={tmp_path}/a,b"]).overrides == {"data.path": f"{tmp_path}/a,b"}


def test_a_config_file_may_have_a_tuple():
    config = greenjax.default_config()
    config.data.path = ("/a", "/b")
    config.data.source, config.steps = "folder", 1
    resolved = resolve(config)
    assert resolved.data.path == ("/a", "/b") == resolve(json.loads(json.dumps(resolved.to_dict()))).data.path


@pytest.mark.parametrize(
    "source, path, message",
    [
        ("folder", ("/a", ""), "data.path is .'/a', ''.: expected a path, or several folders$"),
        ("folder", ("/a", 5), "data.path is .'/a', 5.: expected a path, or several folders$"),
        ("folder", (), "data.path is '': expected a directory of images for data.source 'folder'$"),
        ("list", ("/a", "/b"), "data.path is .*: expected one path for data.source 'list'; several are for 'folder'$"),
        ("coco", ("/a", "/b"), "data.path is .*: expected one path for data.source 'coco'; several are for 'folder'$"),
        ("tar", ("/a", "/b"), "data.path is .*: expected one path for data.source 'tar'; several are for 'folder'$"),
        (
            "digits",
            ("/a", "/b"),
            "data.path is .*: expected one path for data.source 'digits'; several are for 'folder'",
        ),
    ],
)
def test_wrong_settings_say_why(source, path, message):
    with pytest.raises(InputError, match=message):
        resolve({"steps": 1, "data.source": source, "data.path": path})


@pytest.mark.parametrize(
    "paths, split_name, message",
    [
        (("one", "nowhere"), "train", "^data.path has '.*/nowhere': expected a directory of images$"),
        (("one", "two"), "test", "^'.*/one' has no sub-folder for split 'test': available are 'all', 'train', 'val'$"),
        (("one", "empty"), "train", "^'.*/empty' has no sub-folder for split 'train': available are 'all'$"),
        (("one", "empty"), "all", "^'.*/empty' has no images: expected "),
        (
            ("one", "two", "one"),
            "train",
            "^data.path has '.*/one' and '.*/one', which are one folder: expected each once$",
        ),
        (("one", "link"), "train", "^data.path has '.*/one' and '.*/link', which are one folder: expected each once$"),
        (("one", "one/train"), "all", "^data.path has '.*/one/train' and '.*/one': expected no folder inside another"),
        (("one/train", "one"), "all", "^data.path has '.*/one/train' and '.*/one': expected no folder inside another"),
    ],
)
def test_directories_that_cannot_be_used_say_why(roots, tmp_path, paths, split_name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(roots[0], target_is_directory=True)
    with pytest.raises(InputError, match=message) as error:
        open_source(at(*(tmp_path / path for path in paths)), split_name)
    assert "\n" not in str(error.value)


def test_one_directory_inside_another_may_have_a_split_of_its_own(roots):
    inner = fill(roots[0] / "more", {"train/ant": (3,)})
    assert len(open_source(at(roots[0], inner), "train")) == 4


@pytest.mark.parametrize(
    "folder, message",
    [
        ("Ant", "^data.path has class folders 'ant' and 'Ant', which differ in case alone: expected one name$"),
        ("", "^image '.*/two/train/4.png' has no label: expected it in a class folder$"),
        (None, r"^class folder 'emu' has no images in any of \('.*/one/train', '.*/two/train'\): expected some"),
    ],
)
def test_class_folders_that_cannot_be_used_say_why(roots, folder, message):
    if folder is None:
        (roots[0] / "train" / "emu").mkdir()
    else:
        (roots[1] / "train" / folder).mkdir(exist_ok=True)
        (roots[1] / "train" / folder / "4.png").write_bytes(encode(picture(4)))
    with pytest.raises(InputError, match=message):
        open_labelled(at(*roots), "train")
    (roots[1] / "train" / "emu").mkdir()
    if folder is None:  # images in one directory are enough
        (roots[1] / "train" / "emu" / "4.png").write_bytes(encode(picture(4)))
        assert open_labelled(at(*roots), "train").classes == ("ant", "bee", "cafe\u0301", "emu")
