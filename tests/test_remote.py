"""Images by URL are those of the local copy, in the same order, from the cache where they were fetched before.

A server that fails, hangs, dies or refuses gives one line that names the object, within the time that the settings say.
"""

import sys
import time
from itertools import islice

import numpy as np
import pytest
from ml_collections import ConfigDict
from test_data_loader import assert_equal, take, tiny_config
from test_data_tar import pack
from tiny_data import encode, picture
from url_servers import Bucket, Web, link

from greenjax.backbones.geometry import make_planner
from greenjax.data import remote
from greenjax.data.listing import listing
from greenjax.data.loader import train_batches
from greenjax.data.open import open_labelled, open_source
from greenjax.data.prepare import How, prepare
from greenjax.data.remote import RemoteError
from greenjax.data.statistics import measure
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError

COUNT = 12
SOURCES = {"folder": "images", "list": "lists/all.csv", "tar": "{split}-{00..01}.tar"}
extra = pytest.mark.extra


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return make_planner(tiny_config())


@pytest.fixture
def folder(tmp_path):
    """Twelve images in three class folders, some with odd names; a list of them; two tar files of them."""
    root, rows, samples = tmp_path / "local", ["path,label,split"], [{}, {}]
    for i in range(COUNT):
        name, image = f"train/{'abc'[i % 3]}/{i} & é%20.png", encode(picture(20 * i, channels=1))
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(image)
        rows.append(f"../images/{name},{'abc'[i % 3]},train")
        samples[i % 2] |= {f"{i:03}.png": image, f"{i:03}.cls": "abc"[i % 3].encode()}
    (root / "images" / "train" / ".hidden.png").write_text("")
    (root / "images" / "train" / "note.txt").write_text("")
    (root / "lists").mkdir()
    (root / "lists" / "all.csv").write_text("\n".join(rows))
    for number, files in enumerate(samples):
        pack(root / f"train-{number:02}.tar", files)
    return root


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Starts servers, to which this process and its workers connect."""
    running = []
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def start(kind, folder, **options):
        remote.filesystem.cache_clear()
        running.append({"s3": Bucket, "http": Web}[kind](folder, **options))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running[-1].port}")
        return running[-1]

    yield start
    for server in running:
        server.stop()
    remote.filesystem.cache_clear()


@pytest.fixture
def config(tmp_path):
    def of(source, path, **data):
        data = dict(cache=str(tmp_path / "kept"), fetch_seconds=20.0) | data
        return tiny_config(source=source, path=str(path), **data)

    return of


def values(source):
    return [int(source[i].mean()) for i in range(len(source))]


kinds = pytest.mark.parametrize("kind", ["s3", "http"])


@extra
@kinds
@pytest.mark.parametrize("source", SOURCES)
def test_images_are_those_of_the_local_copy(planner, folder, serve, config, kind, source):
    """In the order of the local copy, by this process or two workers, from the start or another step; with labels."""
    server, path = serve(kind, folder), SOURCES[source]
    here, there = config(source, folder / path), config(source, f"{server.url}/{path}")
    mine, theirs = (open_source(each.data, "train") for each in (here, there))
    assert len(theirs) == COUNT and values(theirs) == values(mine) and listing(theirs) == listing(mine)
    mine_labelled, labelled = (open_labelled(each.data, "train") for each in (here, there))
    assert labelled.classes == ("a", "b", "c") and np.array_equal(labelled.labels, mine_labelled.labels)
    whole = take(train_batches(here, mine, planner), 6)
    assert_equal(take(train_batches(there, theirs, planner), 3), whole[:3])
    two = config(source, f"{server.url}/{path}", workers=2, cache_gb=0.0)
    assert_equal(take(train_batches(two, open_source(two.data, "train"), planner, 3), 3), whole[3:])


@extra
@kinds
@pytest.mark.parametrize("source", SOURCES)
def test_the_second_epoch_asks_the_server_for_nothing(folder, serve, config, kind, source):
    server = serve(kind, folder)
    opened = open_source(config(source, f"{server.url}/{SOURCES[source]}").data, "train")
    first = values(opened)
    asked = server.faults.asked.total()
    assert asked >= COUNT
    assert values(opened) == first and server.faults.asked.total() == asked


@extra
@kinds
def test_objects_that_do_not_fit_are_fetched_again(folder, serve, config, kind, tmp_path):
    server = serve(kind, folder)
    size = max(path.stat().st_size for path in folder.glob("images/*/*/*.png")) + 16
    opened = open_source(config("folder", f"{server.url}/images", cache_gb=4.5 * size / 1e9).data, "train")
    assert values(opened) == values(opened) and server.faults.asked.total() > 1.5 * COUNT
    kept = [path for path in (tmp_path / "kept").glob("??/*") if path.suffix != ".draft"]
    assert 0 < sum(path.stat().st_size for path in kept) <= 4.5 * size


@extra
@kinds
def test_a_server_that_fails_for_a_while_costs_time_alone(folder, serve, config, kind):
    server = serve(kind, folder)
    opened = open_source(config("folder", f"{server.url}/images").data, "train")
    server.faults.asked.clear()
    server.faults.failing = 3
    assert sorted(values(opened)) == [20 * i for i in range(COUNT)]
    assert server.faults.asked.total() == COUNT + 3


@extra
@kinds
@pytest.mark.parametrize(
    "fault, amount, seconds, reason",
    [("failing", 10**6, 6.0, "the server answers 500"), ("silent", 2.0, 3.0, "no answer in time")],
)
def test_a_server_that_goes_on_failing_ends_the_run_in_time(
    folder, serve, config, kind, fault, amount, seconds, reason
):
    """Boto itself waits for up to a second between two tries."""
    server = serve(kind, folder)
    opened = open_source(config("folder", f"{server.url}/images", fetch_seconds=seconds).data, "train")
    setattr(server.faults, fault, amount)
    begin = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        opened[0]
    assert time.monotonic() - begin < seconds + 3  # a busy machine
    message = str(caught.value)
    assert message.startswith(f"{opened.name_of(0)} cannot be read: ") and "\n" not in message
    assert reason in message and " s (data.fetch_seconds)" in message and caught.value.resumable
    server.faults.failing, server.faults.silent = 0, 0.0


@extra
@kinds
def test_a_server_killed_in_the_middle_is_named_and_the_run_goes_on_later(planner, folder, serve, config, kind):
    here = config("folder", folder / "images")
    whole = take(train_batches(here, open_source(here.data, "train"), planner), 12)
    server = serve(kind, folder)
    there = config("folder", f"{server.url}/images", workers=2, fetch_seconds=6.0, cache_gb=0.0)
    source = open_source(there.data, "train")
    batches = train_batches(there, source, planner)
    found = list(islice(batches, 2))
    server.stop()
    with pytest.raises(RemoteError, match=rf"^{server.url}/images/train/.*png cannot be read: .* tr(y|ies) in \d+ s"):
        found.extend(batches)  # what was made before is still given
    assert 2 <= len(found) < 12
    again = serve(kind, folder, port=server.port)
    assert again.url == server.url
    there = config("folder", f"{again.url}/images", workers=2, cache_gb=0.0)
    found += take(train_batches(there, open_source(there.data, "train"), planner, len(found)), 12 - len(found))
    assert_equal(found, whole)


@extra
@kinds
def test_a_missing_object_is_named_counted_and_replaced(planner, folder, serve, config, kind, tmp_path):
    server = serve(kind, folder)
    names = [link(server, f"images/train/{'abc'[i % 3]}/{i} & é%20.png") for i in range(COUNT)]
    names[4] = link(server, "images/train/gone.png")
    (tmp_path / "list.txt").write_text("\n".join(names))
    there = config("list", tmp_path / "list.txt", workers=2)
    undecodable = Undecodable(tmp_path)
    source = open_source(there.data, "all")
    batches = take(train_batches(there, source, planner, undecodable=undecodable), 3)
    assert (tmp_path / "undecodable.txt").read_text() == f"{names[4]}\tcannot be read: there is no such object\n"
    assert sum(int(batch.undecodable.sum()) for batch in batches) in (1, 2)


@extra
@kinds
@pytest.mark.parametrize("source", SOURCES)
def test_what_may_not_be_read_is_refused_at_the_start(folder, serve, config, kind, source):
    server = serve(kind, folder)
    server.faults.forbidden = True
    with pytest.raises(InputError, match=rf"^{server.url}/.* cannot be read: no right to read it \((403|Perm.*)\)$"):
        open_source(config(source, f"{server.url}/{SOURCES[source]}").data, "train")


@extra
@pytest.mark.parametrize("names", [{}, {"AWS_PROFILE": "nobody"}])
def test_a_user_without_keys_is_told_at_once(folder, serve, config, monkeypatch, names):
    server = serve("s3", folder)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(folder))
    for key, value in names.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=r"^s3://images/.* cannot be read: no right to read it \((NoCred|Profile)"):
        open_source(config("folder", f"{server.url}/images", fetch_seconds=60.0).data, "train")


@extra
@kinds
def test_a_server_that_is_not_there_is_named_at_the_start(folder, serve, config, kind):
    server = serve(kind, folder)
    server.stop()
    with pytest.raises(
        InputError, match=rf"^{server.url}/images.* cannot be read: .* in \d+ s \(data.fetch_seconds\)$"
    ):
        open_source(config("folder", f"{server.url}/images", fetch_seconds=2.0).data, "train")


@extra
@kinds
@pytest.mark.parametrize(
    "source, path, line",
    [
        ("folder", "empty", "/empty.* (has no images: expected|cannot be read: there is no such object)"),
        ("list", "gone.csv", "/gone.csv cannot be read: there is no such object"),
        ("list", "images", r"expected a file of paths, \*.txt"),
        ("tar", "gone-{0..1}.tar", "/gone-0.tar cannot be read: there is no such object"),
        ("tar", "gone-*.tar", "expected tar files, found none of split 'all'"),
        ("tar", "lists/all.csv", "is no whole tar file"),
        ("records", "images", "/images/records.json cannot be read: there is no such object"),
        ("coco", "images", "is a URL: expected a path of this machine"),
        ("tfds", "images", "is a URL: expected a path of this machine"),
        ("huggingface", "images", "is a URL: expected a path of this machine"),
    ],
)
def test_what_is_not_there_is_one_line(folder, serve, config, kind, source, path, line):
    with pytest.raises(InputError, match=line) as caught:
        open_source(config(source, f"{serve(kind, folder).url}/{path}").data, "all")
    assert "\n" not in str(caught.value)


@extra
def test_a_folder_here_and_one_at_a_url_are_one_set(folder, serve, config):
    """Class folders of one name are one class; a split lies in each."""
    server = serve("s3", folder)
    data = dict(config("folder", "x").data) | {"path": (str(folder / "images"), f"{server.url}/images")}
    found = open_labelled(ConfigDict(data), "train")
    assert len(found) == 2 * COUNT and found.classes == ("a", "b", "c")
    assert sorted(values_of(found)) == sorted(2 * [(20 * i, i % 3) for i in range(COUNT)])


@extra
def test_a_page_of_links_with_dots_is_listed_once(folder, serve, config):
    """Places are told apart, not spellings: ./a is a, and ../../ leads out of the folder."""
    server = serve("http", folder, dots=True)
    mine = open_source(config("folder", folder / "images").data, "train")
    theirs = open_source(config("folder", f"{server.url}/images").data, "train")
    assert listing(theirs) == listing(mine) and values(theirs) == values(mine)
    assert server.faults.pages == {f"/images/train/{name}": 1 for name in ("", "a/", "b/", "c/")}


@extra
def test_a_star_stands_for_tar_files(folder, serve, config):
    server = serve("s3", folder)
    there = open_source(config("tar", f"{server.url}/tr*-0?.tar".replace("?", "*")).data, "all")
    assert values(there) == values(open_source(config("tar", folder / "train-*.tar").data, "all"))


@extra
def test_a_tar_file_that_changed_is_read_anew(folder, serve, config):
    server = serve("http", folder)
    there = config("tar", f"{server.url}/train-01.tar")
    before = values(open_source(there.data, "all"))
    pack(folder / "train-01.tar", {"new.png": encode(picture(77, channels=1)), "pad": bytes(5000)})
    assert values(open_source(there.data, "all")) == [77] != before


@extra
def test_a_server_without_ranges_gives_no_tar_file(folder, serve, config):
    server = serve("http", folder, ranges=False)
    assert len(values(open_source(config("folder", f"{server.url}/images").data, "train"))) == COUNT
    with pytest.raises(InputError, match="its server gives no parts of files"):
        source = open_source(config("tar", f"{server.url}/train-00.tar").data, "all")
        source[0]


@extra
@kinds
def test_records_are_read_from_copies(planner, folder, serve, config, kind):
    here = config("folder", folder / "images", split="train", eval_split="")
    list(prepare(here, folder / "records", How(8, "raw")))
    server = serve(kind, folder)
    here, there = config("records", folder / "records"), config("records", f"{server.url}/records", workers=2)
    mine, theirs = (open_labelled(each.data, "train") for each in (here, there))
    assert listing(mine) == listing(theirs) and values_of(mine) == values_of(theirs)
    expected = take(train_batches(here, open_source(here.data, "train"), planner), 3)
    assert_equal(take(train_batches(there, open_source(there.data, "train"), planner), 3), expected)
    (shard,) = (name for name in server.faults.asked if name.endswith("array_record"))
    assert server.faults.asked[shard] == 1
    for least in (0.0, 1e-9):
        with pytest.raises(InputError, match=rf"data.cache_gb is {least:g}: expected at least .*, as records are"):
            open_source(config("records", f"{server.url}/records", cache_gb=least).data, "train")


def values_of(labelled):
    return [(int(image.mean()), label) for image, label in (labelled[i] for i in range(len(labelled)))]


@extra
def test_records_statistics_and_digests_are_those_of_the_local_copy(folder, serve, config, tmp_path):
    server, found, lines = serve("s3", folder), [], []
    for path in (f"{server.url}/images", folder / "images"):
        data = config("folder", path, split="train", eval_split="")
        found.append(measure(data, 100, 2))
        output = tmp_path / f"out{len(found)}"
        lines.append([line.partition(";")[0] for line in prepare(data, output, How(8, "raw"), workers=2)])
    assert found[0] == found[1] and lines[0] == lines[1]
    one, other = (open_source(config("records", tmp_path / f"out{i}").data, "train") for i in (1, 2))
    assert values(one) == values(other)


@pytest.mark.parametrize(
    "url, module, install",
    [
        ("s3://bucket/x", "s3fs", "'greenjax\\[s3\\]'"),
        ("https://host/x", "aiohttp", "'greenjax\\[http\\]'"),
        ("gs://bucket/x", "gcsfs", "gcsfs"),
        ("hf://datasets/a/b", "huggingface_hub", "huggingface_hub"),
        ("s3://bucket/x", "fsspec", "'greenjax\\[s3\\]'"),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_installed_is_named_with_the_line_that_installs_it(
    monkeypatch, config, source, url, module, install
):
    monkeypatch.setitem(sys.modules, module, None)  # an import of it raises ImportError
    path = f"{url}.csv" if source == "list" else url
    with pytest.raises(InputError, match=rf"needs .*, which is not installed: pip install {install}$"):
        open_source(config(source, path).data, "all")


def test_other_urls_are_refused(config):
    with pytest.raises(InputError, match=r"'ftp://host/x' is a URL: expected a path, or a URL that begins with one of"):
        open_source(config("folder", "ftp://host/x").data, "all")
    with pytest.raises(InputError, match="'s3:/bucket/x' is a URL: expected a path of this machine"):
        open_source(config("folder", "s3:/bucket/x").data, "all")


def test_places_of_names():
    assert remote.joined("/data", "a/b.png") == "/data/a/b.png"
    assert remote.joined("/data", "s3://b/a.png") == "s3://b/a.png"
    assert remote.joined("s3://b/x", "a b.png") == "s3://b/x/a b.png"
    assert remote.joined("http://h/x", "a b&é%.png") == "http://h/x/a%20b%26%C3%A9%25.png"
    assert remote.joined("s3://b/lists", "../images/./a.png") == "s3://b/images/a.png"
    assert remote.joined("s3://b/lists", "/data/a.png") == "/data/a.png"
