"""A list of images is a source as a folder is: same images, splits and labels, bad rows refused by their line."""

import numpy as np
import pytest
from tiny_data import encode, picture, settings

from greenjax.data.encoded import DecodeError
from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source
from greenjax.data.overlap import images_in_both
from greenjax.errors import InputError


@pytest.fixture
def tree(tmp_path):
    """Thirty images in three folders, and one outside."""
    for i in range(30):
        folder = tmp_path / "images" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encode(picture(8 * i)))
    return tmp_path


def rows(tree, separator=","):
    """A table of all images, every third in the split "val"; its paths are relative."""
    lines = [("file", "note", "class", "split")]
    lines += [
        (f"images/{'abc'[i % 3]}/{i}.png", "x y", "abc"[i % 3], "val" if i % 5 == 0 else "train") for i in range(30)
    ]
    return "\n".join(map(separator.join, lines)) + "\n"


def values(source):
    return [int(source[i].mean()) for i in range(len(source))]


@pytest.mark.parametrize("name, separator", [("list.csv", ","), ("list.tsv", "\t")])
def test_a_table_names_images_splits_and_classes(tree, name, separator):
    (tree / name).write_text(rows(tree, separator))
    whole, val = (open_source(settings("list", tree / name), split) for split in ("all", "val"))
    assert sorted(values(whole)) == [8 * i for i in range(30)] and sorted(values(val)) == [
        8 * i for i in range(0, 30, 5)
    ]
    labelled = open_labelled(settings("list", tree / name), "train")
    assert labelled.classes == ("a", "b", "c") and len(labelled) == 24
    assert all(int(image.mean()) // 8 % 3 == label for image, label in (labelled[i] for i in range(24)))
    assert images_in_both(open_source(settings("list", tree / name), "train"), val) == 0
    assert images_in_both(whole, val) == 6


def test_paths_in_a_text_file_are_relative_or_absolute(tree):
    paths = [f"images/a/{i}.png" for i in range(0, 15, 3)] + [str(tree / "images" / "b" / "1.png")]
    (tree / "list.txt").write_text("\n".join(paths) + "\n\n")
    source = open_source(settings("list", tree / "list.txt"), "all")
    assert sorted(values(source)) == [0, 8, 24, 48, 72, 96]
    assert {source.name_of(i) for i in range(6)} == {str(tree / path) for path in paths}


def test_only_newlines_end_a_path(tree):
    odd = [f"a{mark}b.png" for mark in ("\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c")]
    (tree / "list.txt").write_bytes("".join(f"{name}\n" for name in odd[:3]).encode() + "\r\n".join(odd[3:]).encode())
    assert sorted(open_source(settings("list", tree / "list.txt"), "all").names) == sorted(odd)


def test_the_order_is_that_of_the_paths_whatever_the_order_of_the_rows(tree):
    header, *lines = rows(tree).splitlines()
    (tree / "one.csv").write_text("\n".join([header, *lines]))
    (tree / "other.csv").write_text("\n".join([header, *lines[::-1]]))
    one, other = (open_source(settings("list", tree / name), "all") for name in ("one.csv", "other.csv"))
    assert values(one) == values(other) and listing(one) == listing(other)
    assert {value // 8 % 3 for value in values(open_source(settings("list", tree / "one.csv"), "all[:30%]"))} == {
        0,
        1,
        2,
    }


def test_another_label_is_another_list(tree):
    (tree / "one.csv").write_text(rows(tree))
    (tree / "other.csv").write_text(rows(tree).replace("images/a/0.png,x y,a", "images/a/0.png,x y,b"))
    one, other = (open_labelled(settings("list", tree / name), "all") for name in ("one.csv", "other.csv"))
    assert listing(one) != listing(other)


def test_numbers_as_labels_are_ordered_by_their_value(tree):
    (tree / "list.csv").write_text(
        "path,label\n" + "".join(f"images/a/{3 * i}.png,{label}\n" for i, label in enumerate(["9", "10", "2"]))
    )
    assert open_labelled(settings("list", tree / "list.csv"), "all").classes == ("2", "9", "10")


def test_the_name_of_a_class_counts_before_its_number(tree):
    (tree / "list.csv").write_text(
        "image,path,label,class_name\nno.png,images/a/0.png,3,cat\nno.png,images/b/1.png,1,dog\n"
    )
    source = open_labelled(settings("list", tree / "list.csv"), "all")
    assert source.classes == ("cat", "dog") and sorted(
        values(open_source(settings("list", tree / "list.csv"), "all"))
    ) == [0, 8]


@pytest.mark.extra
def test_parquet_holds_the_same(tree):
    import pyarrow
    from pyarrow import parquet

    (tree / "list.csv").write_text(rows(tree))
    table = [line.split(",") for line in rows(tree).splitlines()]
    columns = dict(zip(table[0], map(list, zip(*table[1:]))))
    table = pyarrow.table(columns | {"image": [{"bytes": b"not read"}] * (len(table) - 1)})
    parquet.write_table(table, tree / "list.parquet")
    one, other = (open_labelled(settings("list", tree / name), "train") for name in ("list.csv", "list.parquet"))
    assert np.array_equal(one.labels, other.labels) and listing(one) == listing(other)
    parquet.write_table(pyarrow.table({"path": ["a.png", None]}), tree / "list.parquet")
    with pytest.raises(InputError, match="has no path in row 2"):
        open_source(settings("list", tree / "list.parquet"), "all")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("list.json", "[]", r"expected a file of paths, \*.txt, \*.csv, \*.tsv, \*.parquet"),
        ("list.csv", "label\nx\n", "has columns 'label': expected one of 'path', 'file'"),
        ("list.csv", "path,label\na.png\n", "has 1 values in line 2: expected 2, 'path', 'label'"),
        ("list.csv", 'path,label\n"a\nb.png",c\n\nd.png', "has 1 values in line 5"),
        ("list.csv", "path,label\n\na.png,b\n,b\n", "has no path in line 4"),
        ("list.csv", 'path\n"a.png\n', "cannot be read: unexpected end of data"),
        ("list.csv", "", "has no line: expected a path in each"),
        ("list.txt", "\n", "has no images of split 'all'"),
        ("list.csv", "path,split\na.png,val\n", "has no images of split 'train': available are 'all', 'val'"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    split = "all" if name == "list.txt" else "train"
    with pytest.raises(InputError, match=message):
        open_source(settings("list", tmp_path / name), split)


@pytest.mark.parametrize(
    "text, message",
    [
        ("path\na.png\n", "has no labels: expected a column class_name or class or label"),
        ("path,label\na.png,\n", "'a.png' .* has no label"),
    ],
)
def test_missing_labels_are_named(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        open_labelled(settings("list", tmp_path / "list.csv"), "all")


def test_an_image_that_is_not_there_is_named_when_it_is_read(tmp_path):
    (tmp_path / "list.txt").write_text("gone.png\n")
    with pytest.raises(DecodeError, match=r"gone.png cannot be read: there is no such file"):
        open_source(settings("list", tmp_path / "list.txt"), "all")[0]
