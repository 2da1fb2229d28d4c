"""Images in tar files: each once, by itself, with its label; an index is made once; damage is named."""

import io
import json
import os
import tarfile
from itertools import pairwise

import numpy as np
import pytest
from tiny_data import encode, picture, settings

from greenjax.data.encoded import DecodeError
from greenjax.data.listing import listing
from greenjax.data.open import open_labelled, open_source
from greenjax.data.overlap import images_in_both
from greenjax.data.remote import Remote
from greenjax.data.sources import tar
from greenjax.data.sources.patterns import urls_like
from greenjax.errors import InputError, NoLabels


def pack(path, files):
    with tarfile.open(path, "w") as opened:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))


def sample(i, suffix=".cls"):
    """Image i and its class, by the names that a tar file gives them."""
    label = "abc"[i % 3].encode() if suffix == ".cls" else json.dumps({"label": "abc"[i % 3]}).encode()
    return {f"x/{i:04}{suffix}": label, f"x/{i:04}.png": encode(picture(8 * i))}


@pytest.fixture
def shards(tmp_path):
    """Twelve images in three tar files of split train, and two of split val."""
    for shard in range(3):
        samples = [sample(i, ".cls" if shard else ".json") for i in range(4 * shard, 4 * shard + 4)]
        pack(tmp_path / f"train-{shard:02}.tar", {name: data for each in samples for name, data in each.items()})
    pack(tmp_path / "val-00.tar", sample(20) | sample(21))
    return tmp_path


def values(source):
    return [int(source[i].mean()) // 8 for i in range(len(source))]


@pytest.mark.parametrize("pattern", ["{split}-{00..02}.tar", "{split}-*.tar"])
def test_every_image_is_read_once_in_order(shards, pattern):
    source = open_source(settings("tar", shards / pattern), "train")
    assert values(source) == list(range(12))
    assert source.name_of(5) == f"{shards}/train-01.tar x/0005.png"
    labelled = open_labelled(settings("tar", shards / pattern), "train")
    assert labelled.classes == ("a", "b", "c") and labelled.labels.tolist() == [i % 3 for i in range(12)]


def test_an_index_reads_a_tar_file_once_from_its_beginning_to_its_end(tmp_path):
    """At a URL it would else be fetched twice."""
    reads = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            start, count = self.tell(), super().readinto(buffer)
            reads.append((start, start + count))
            return count

    path = tmp_path / "a.tar"
    others = {"y/pixels.png": bytes(9999), "y/label.txt": b"", "y/notes.json": b"{", "annotations.json": bytes(1 << 21)}
    pack(path, sample(0) | sample(1, ".json") | others | sample(2))
    with io.BufferedReader(Counted(path), 600) as file:
        found = tar.make_index(str(path), file)
    assert found.labels.tolist() == [b"a", b"b", b"", b"c"] and len(reads) > 6
    assert all(end <= start for (_, end), (start, _) in pairwise(reads))
    assert sum(end - start for start, end in reads) < 1 << 17  # large files are read only where they have a label


def test_a_label_may_be_in_a_file_of_any_size(shards):
    large = json.dumps({"text": " " * (1 << 21), "label": "cat"}).encode()
    pack(shards / "large.tar", {"a.json": large, "a.png": encode(picture(8))} | sample(1))
    assert open_labelled(settings("tar", shards / "large.tar"), "all").classes == ("b", "cat")


def test_in_a_pattern_a_star_alone_has_a_meaning(shards, monkeypatch):
    (shards / "a [1]").mkdir()
    (shards / "val-00.tar").rename(shards / "a [1]" / "b?.tar")
    pack(shards / "a [1]" / "bc.tar", sample(3))
    for pattern, found in (("a [1]/*.tar", [20, 21, 3]), ("a [1]/*?.tar", [20, 21]), ("*[1]/b?.tar", [20, 21])):
        assert values(open_source(settings("tar", shards / pattern), "all")) == found
    names = ["x/a [1]/b?.tar", "x/a 1/b?.tar", "x/a [1]/bc.tar"]
    monkeypatch.setattr(Remote, "names", lambda remote, root: names)
    assert list(urls_like(Remote(1.0, None), "s3://host/*/a [1]/*?.tar")) == ["s3://host/x/a [1]/b?.tar"]


def test_without_a_name_for_splits_there_is_one(shards):
    assert values(open_source(settings("tar", shards / "train-{01..02}.tar"), "all[:50%]")) == [4, 5, 6, 7]
    with pytest.raises(InputError, match=r"without \{split\}: the only split is 'all', not 'train'"):
        open_source(settings("tar", shards / "train-{01..02}.tar"), "train")


def test_the_index_is_made_once_and_anew_for_another_file(shards, monkeypatch):
    data = settings("tar", shards / "{split}-*.tar")
    first = open_source(data, "train")
    assert sorted(path.name for path in shards.glob("*.npz")) == [f"train-0{i}.tar.index.npz" for i in range(3)]
    monkeypatch.setattr(tar, "make_index", None)  # would raise TypeError
    again = open_source(data, "train")
    assert values(again) == values(first) and listing(again) == listing(first)
    monkeypatch.undo()
    pack(shards / "train-01.tar", sample(30))
    assert values(open_source(data, "train")) == [0, 1, 2, 3, 30, 8, 9, 10, 11]


def test_a_damaged_index_is_made_anew(shards):
    path, data = shards / "train-00.tar.index.npz", settings("tar", shards / "{split}-*.tar")
    expected = values(open_source(data, "train"))
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            assert values(open_source(data, "train")) == expected


def test_an_index_that_cannot_stand_beside_its_file_is_cached(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside = tar.index_paths
    monkeypatch.setattr(tar, "index_paths", lambda shard: [tmp_path / "train-00.tar" / "no folder", *beside(shard)[1:]])
    assert values(open_source(settings("tar", shards / "val-*.tar"), "all")) == [20, 21]
    assert len(list((tmp_path / "cache" / "greenjax" / "tar").glob("*.npz"))) == 1
    monkeypatch.setattr(tar, "make_index", None)
    assert values(open_source(settings("tar", shards / "val-*.tar"), "all")) == [20, 21]


def test_images_in_common_are_counted(shards):
    one, other = (open_source(settings("tar", shards / "train-*.tar"), split) for split in ("all[:6]", "all[4:]"))
    assert images_in_both(one, other) == 2


def test_samples_without_an_image_are_left_out(shards, caplog):
    pack(shards / "odd.tar", {"a.txt": b"x", "b.png": encode(picture(16)), "b.cls": b"1", "c.cls": b"2"})
    source = open_source(settings("tar", shards / "odd.tar"), "all")
    assert values(source) == [2] and "2 samples have no image and are left out" in caplog.text


def test_missing_labels_are_counted(shards):
    pack(shards / "odd.tar", {"a.png": encode(picture(8))} | sample(3))
    with pytest.raises(InputError, match=r"1 of the 2 images have no label, '.*odd.tar a.png' first") as raised:
        open_labelled(settings("tar", shards / "odd.tar"), "all")
    assert not isinstance(raised.value, NoLabels)


def test_a_label_of_null_is_none(shards):
    """{"label": null} is no class "None"; a .cls file that Windows wrote begins with a byte order mark."""
    marked = {"a.png": encode(picture(8)), "a.cls": b"\xef\xbb\xbfcat\r\n"}
    other = {"b.png": encode(picture(16)), "b.json": b'\xef\xbb\xbf{"label": null, "class": 3}'}
    pack(shards / "marked.tar", marked | other)
    assert open_labelled(settings("tar", shards / "marked.tar"), "all").classes == ("3", "cat")
    pack(shards / "null.tar", {"a.png": encode(picture(8)), "a.json": b'{"label": null}'})
    with pytest.raises(NoLabels, match=r"1 of the 1 images have no label, '.*null.tar a.png' first"):
        open_labelled(settings("tar", shards / "null.tar"), "all")


def test_images_with_dots_in_their_names_are_counted(shards, caplog):
    """The name of a sample ends at its first dot: its mask is no image, but a screenshot is one that is missed."""
    names = ("Screenshot at 10.30.15.png", "Screenshot at 10.30.16.PNG")
    shots, line = dict.fromkeys(names, encode(picture(8))), f"2 images are left out, '{names[0]}' first: the name of a"
    whole = {"b.png": encode(picture(16)), "b.mask.png": encode(picture(24)), "c.txt": b""}
    pack(shards / "some.tar", shots | whole)
    for _ in "made", "kept":
        caplog.clear()
        assert values(open_source(settings("tar", shards / "some.tar"), "all")) == [2]
        assert line in caplog.text and "1 samples have no image and are left out" in caplog.text
    pack(shards / "all.tar", shots)
    with pytest.raises(InputError, match=rf"has no images: .*webp; {line} sample ends at its first dot"):
        open_source(settings("tar", shards / "all.tar"), "all")


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("train-{00..03}.tar", "there is no '.*train-03.tar'"),
        ("{split}x.tar", "there is no '.*allx.tar'"),
        ("x*.tar", "found none of split 'all'"),
        ("{a,b}.tar", r"data.path has \{a,b\}: expected a range"),
        ("cut.tar", "cut.tar' is no whole tar file"),
        ("text.tar", "text.tar' is no whole tar file"),
        ("class.tar", "0000.json holds no class"),
        ("empty.tar", "has no images"),
    ],
)
def test_wrong_files_are_named(shards, pattern, message):
    whole = (shards / "train-00.tar").read_bytes()
    (shards / "cut.tar").write_bytes(whole[:1700])
    (shards / "text.tar").write_text("not a tar file" * 100)
    pack(shards / "class.tar", {"0000.json": b"{", "0000.png": encode(picture(8))})
    pack(shards / "empty.tar", {})
    with pytest.raises(InputError, match=message):
        open_source(settings("tar", shards / pattern), "all")


def test_a_file_that_is_cut_short_later_is_named_with_its_image(shards):
    source = open_source(settings("tar", shards / "val-00.tar"), "all")
    os.truncate(shards / "val-00.tar", int(source.index.start[1]) + 10)
    assert int(source[0].mean()) == 160
    with pytest.raises(DecodeError, match=r"val-00.tar x/0021.png cannot be read: the tar file is cut short"):
        source[1]
    assert np.array_equal(source.index.labels, [b"c", b"a"])
