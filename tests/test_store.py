"""Copies of remote objects: a folder that never holds more than it may, and never gives a damaged entry."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from greenjax.data.store import Store
from greenjax.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path), 10_000)


def entries(folder):
    return [path for path in Path(folder).glob("??/*") if not path.name.startswith(".")]


def size(folder):
    return sum(path.stat().st_size for path in entries(folder))


def test_what_was_put_is_there_and_nothing_else(store):
    store.put("a", b"1" * 100)
    assert store.get("a") == b"1" * 100 and store.get("b") is None


def test_the_least_recently_used_leave_and_the_limit_holds(store):
    for i in range(40):
        store.put(str(i), bytes(500))
        store.get("0")  # used again and again
        for path in entries(store.folder):  # times of one clock tick would be equal
            os.utime(path, ns=(path.stat().st_mtime_ns - 10**9,) * 2)
        store.get("0")
        assert size(store.folder) <= store.limit
    assert store.get("0") is not None and store.get("39") is not None and store.get("1") is None
    assert size(store.folder) > 0.8 * store.limit


def test_an_object_above_the_limit_is_not_kept(store):
    store.put("a", bytes(20_000))
    assert store.get("a") is None and not entries(store.folder)


def test_an_entry_of_another_user_is_used(store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    store.put("a", b"1")
    monkeypatch.setattr(os, "utime", refuse)
    assert store.get("a") == b"1"


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_entry_is_not_used(store, damage):
    store.put("a", b"x" * 1000)
    (path,) = entries(store.folder)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:700], "empty": b"", "flipped": whole[:9] + b"y" + whole[10:]}[damage])
    assert store.get("a") is None
    store.put("a", b"x" * 1000)
    assert store.get("a") == b"x" * 1000


def test_a_copy_is_made_once_and_anew_where_it_was_cut(store):
    made = []
    write = lambda file: made.append(file.write(b"z" * 300))  # noqa: E731
    path = store.copy("a", 300, write)
    assert store.copy("a", 300, write) == path and path.read_bytes() == b"z" * 300 and len(made) == 1
    path.write_bytes(b"z")
    assert store.copy("a", 300, write).read_bytes() == b"z" * 300 and len(made) == 2


def test_a_copy_that_fails_leaves_nothing(store):
    def broken(file):
        file.write(b"z")
        raise KeyError("gone")

    with pytest.raises(KeyError):
        store.copy("a", 300, broken)
    assert not entries(store.folder)


def test_a_lost_or_damaged_count_is_made_anew(store):
    for i in range(10):
        store.put(str(i), bytes(900))
    for text in ("", "no number"):
        Path(store.folder, "SIZE").write_text(text)
        store.put("new", bytes(900))
        assert size(store.folder) <= store.limit and store.get("new") is not None


def test_drafts_of_killed_processes_are_removed_after_a_day(store):
    store.put("a", bytes(10))
    (entry,) = entries(store.folder)
    old, new = (entry.with_name(f".{entry.name}.{name}.draft") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    for i in range(30):
        store.put(str(i), bytes(900))
    assert not old.exists() and new.exists()


def test_files_of_the_user_stay_whatever_leaves(store):
    """Photographs in sub-folders of any name, and names like ours in other places."""
    own = "3f" + "0" * 38
    others = [Path(store.folder, *parts) for parts in (("holiday", "a.jpg"), ("3f", "a.jpg"), ("3f", ".a.jpg.draft"))]
    others += [Path(store.folder, folder, own) for folder in ("3e", "objects")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(20_000))
        os.utime(path, (0, 0))
    for i in range(30):
        store.put(str(i), bytes(900))
    assert all(path.stat().st_size == 20_000 for path in others)
    assert store.get("29") is not None and store.get("0") is None  # they take no room of the entries, either


def test_processes_share_a_folder(tmp_path):
    """Three processes that write and read the same keys, in a folder that is too small for them."""
    script = f"""
        from greenjax.data.store import Store
        store = Store({str(tmp_path)!r}, 20_000)
        for turn in range(150):
            key = str(turn * 7 % 40)
            found = store.get(key)
            assert found in (None, key.encode() * 500), key
            store.put(key, key.encode() * 500)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for each in running:
        assert each.communicate(timeout=60)[1] == "" and each.returncode == 0
    assert 0 < size(tmp_path) <= 20_000
    assert int((tmp_path / "SIZE").read_text()) >= size(tmp_path)
    assert all(not path.name.endswith(".draft") for path in tmp_path.glob("??/.*"))


def test_the_folder_of_the_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert Store.of(ConfigDict(dict(cache="", cache_gb=0.0))) is None
    assert Store.of(ConfigDict(dict(cache="", cache_gb=2.0))) == Store(f"{tmp_path}/home/greenjax/objects", 2 * 10**9)
    assert Store.of(ConfigDict(dict(cache=str(tmp_path / "here"), cache_gb=1.0))).folder == str(tmp_path / "here")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data.cache is '.*file/x', and cannot be written: .*; data.cache_gb=0 does"):
        Store.of(ConfigDict(dict(cache=str(tmp_path / "file" / "x"), cache_gb=1.0)))
    with pytest.raises(InputError, match="'s3://bucket/x' is a URL: expected a path of this machine"):
        Store.of(ConfigDict(dict(cache="s3://bucket/x", cache_gb=1.0)))


def test_a_full_disk_costs_one_warning(store, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    store.put("a", b"1")
    store.put("b", b"1")
    assert [record.getMessage() for record in caplog.records] == [
        f"{store.folder} keeps no more objects: No space left on device"
    ]
    assert not list(Path(store.folder).glob("??/.*.draft"))
