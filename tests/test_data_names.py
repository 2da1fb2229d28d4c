"""Names of images: their order for ever, listings that are kept while no folder changes, memory shared by workers."""

import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_data import encode, picture, settings
from worker_cases import Anonymous

from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source
from greenjax.data.sources import FolderSource, ListSource, image_files, kept_listing
from greenjax.data.sources.image_files import find_images, names_below
from greenjax.data.sources.names import Names, by_hash, hashed_order
from greenjax.data.workers import WorkerPool
from greenjax.errors import InputError

NAMES = ["c/deep/x.JPEG", "b/é.jpg", "a/1.png", "b/1.png", "z.webp", "a/2.png"]  # in the order of a source


def test_order_and_digest_stay_as_they_are():
    """Runs resume by them."""
    assert [sorted(NAMES)[i] for i in hashed_order(sorted(NAMES))] == NAMES == sorted(NAMES, key=by_hash)
    assert by_hash("b/é.jpg").hex() == "7b8fe14e79a6c18b"
    assert listing(FolderSource("/", Names.of(NAMES))) == "6b04c38c861a4778"
    assert listing(ListSource("/", Names.of(NAMES), Names.of(["a", "b", "a", "c", "d", "é"]))) == "493f1c2456305cea"


@pytest.mark.parametrize(
    "names", [[], [""], ["a"], ["", "", ""], ["é/ü", os.fsdecode(b"\xe9\xc3"), "日本.png", "a" * 300]]
)
def test_names_are_texts_in_a_row(names):
    found = Names.of(names)
    for each in (found, pickle.loads(pickle.dumps(found))):
        assert list(each) == [each[i] for i in range(len(each))] == names and len(each) == len(names)
        assert [each[i - len(each)] for i in range(len(each))] == names and each == found
        with pytest.raises(IndexError):
            each[len(each)]
    assert found != Names.of([*names, "b"]) and found != Names.of([*names[:-1], "b"])


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.png,b\nc\0d.png,b\n")
    with pytest.raises(InputError, match=r"^name 'c\\x00d.png' has a NUL: expected a name that a file can have$"):
        open_source(settings("list", tmp_path / "list.csv"), "all")


# Listings that are kept


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Folders whose listing is kept, although they are few and new; one of them is a link."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_files, "WORTH_KEEPING", 0)
    monkeypatch.setattr(kept_listing, "SETTLED", -1)
    for i in range(8):
        folder = tmp_path / "images" / "ab"[i % 2] / ("", "deep")[i // 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encode(picture(i)))
    (tmp_path / "images" / "a" / "x.heic").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "8.png").write_bytes(encode(picture(8)))
    (tmp_path / "images" / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return tmp_path / "images"


def files_kept(tree):
    return [path for path in (tree.parent / "cache").rglob("*") if path.is_file()]


def test_a_kept_listing_is_read_in_place_of_the_folders(tree, monkeypatch, caplog):
    before = open_labelled(settings("folder", tree), "all")
    assert len(files_kept(tree)) == 1
    monkeypatch.setattr(image_files, "look_below", None)
    image_files.warn_once.cache_clear()
    again = open_labelled(settings("folder", tree), "all")
    assert listing(again) == listing(before) and np.array_equal(again.labels, before.labels)
    assert [again[i][0].mean() for i in range(9)] == [before[i][0].mean() for i in range(9)]
    assert [record.getMessage().partition(": expected")[0] for record in caplog.records] == [
        f"{tree}: 1 file is left out: 1 .heic"
    ] * 2


def rename_in_place(tree):
    """As `rsync --times` or `tar` do: the folder gets its old time back."""
    before = os.stat(tree / "a")
    time.sleep(0.02)
    (tree / "a" / "0.png").rename(tree / "a" / "9.png")
    os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "a new image": lambda tree: (tree / "b" / "deep" / "9.png").write_bytes(b"x"),
    "an image less": lambda tree: (tree / "a" / "0.png").unlink(),
    "an image of another name": lambda tree: (tree / "a" / "0.png").rename(tree / "a" / "9.png"),
    "another name, and the old time": rename_in_place,
    "a new folder": lambda tree: (tree / "d").mkdir(),
    "a new folder with an image": lambda tree: shutil.copytree(tree / "a", tree / "d"),
    "a folder less": lambda tree: shutil.rmtree(tree / "a"),
    "a folder of another name": lambda tree: (tree / "a").rename(tree / "d"),
    "an image behind a link": lambda tree: (tree.parent / "elsewhere" / "9.png").write_bytes(b"x"),
    "nothing behind a link": lambda tree: shutil.rmtree(tree.parent / "elsewhere"),
    "another folder of this name": lambda tree: (
        tree.rename(tree.with_name("old")),
        shutil.copytree(tree.with_name("old") / "b", tree),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_folder_that_changed_is_listed_anew(tree, change):
    names_below(tree)
    time.sleep(0.02)  # more than the granule of the times here
    change(tree)
    assert list(names_below(tree)) == sorted(find_images(tree), key=by_hash)


def fast(tree, monkeypatch):
    monkeypatch.setattr(image_files, "WORTH_KEEPING", 60)


def just_changed(tree, monkeypatch):
    monkeypatch.setattr(kept_listing, "SETTLED", 60)


def link_to_nowhere(tree, monkeypatch):
    (tree / "d").symlink_to(tree.parent / "not_mounted", target_is_directory=True)


def image_to_nowhere(tree, monkeypatch):
    (tree / "d.png").symlink_to(tree.parent / "not_there.png")


def unreadable(tree, monkeypatch):
    def scan(folder):
        if folder.name == "b":
            raise PermissionError(13, "Permission denied")
        return original(folder)

    original = image_files.scan
    monkeypatch.setattr(image_files, "scan", scan)


def one_time(tree, monkeypatch):
    monkeypatch.setattr(kept_listing, "stamp", lambda folder: (10**18, 10**18, os.stat(folder).st_ino))


def no_time(tree, monkeypatch):
    monkeypatch.setattr(kept_listing, "stamp", lambda folder: (0, os.stat(folder).st_ctime_ns, 1))


def no_cache(tree, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")


def no_home(tree, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


REASONS = (fast, just_changed, link_to_nowhere, image_to_nowhere, unreadable, one_time, no_time, no_cache, no_home)


@pytest.mark.parametrize("reason", REASONS)
def test_nothing_is_kept_that_could_be_wrong_later(tree, monkeypatch, reason):
    reason(tree, monkeypatch)
    for _ in range(2):
        assert list(names_below(tree)) == sorted(find_images(tree), key=by_hash)
        assert not files_kept(tree)


def test_a_damaged_listing_is_made_anew(tree):
    expected = names_below(tree)
    (path,) = files_kept(tree)
    whole = path.read_bytes()
    damaged = [b"", b"x", whole[:10], whole[:-1], whole + b"x", whole[::-1], b"\0" * len(whole)]
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert names_below(tree) == expected
        assert path.read_bytes() == whole and files_kept(tree) == [path]


def test_many_may_list_a_folder_at_once(tree):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: names_below(tree), range(64)))
    assert all(names == found[0] for names in found) and len(files_kept(tree)) == 1


# Memory of workers


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_workers_share_the_arrays_of_a_source():
    """What a worker reads of them is not its own memory; what it writes is its own alone."""
    made = WorkerPool(Anonymous(np.ones(1 << 26, np.uint8)), 0, 2)
    for step in range(4):
        grown, total, first = next(made)
        assert total == 1 << 26 and grown < 4 << 20
        assert first == step // 2 + 1  # of the worker's own copy of a page
    made.close()
