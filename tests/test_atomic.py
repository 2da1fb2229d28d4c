"""Files of a workdir that are damaged end in one line that names the file and says what to do."""

import errno
import json
import os

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small import small_config

import greenjax
from greenjax.config import flatten
from greenjax.data.sources.records import read_description
from greenjax.errors import InputError
from greenjax.evaluation.pictures.canvas import Canvas
from greenjax.main import main
from greenjax.runtime.files import expanded, read_json, replace_text, replacing
from greenjax.runtime.lock import held
from greenjax.training.guard import DivergedError, Rollbacks
from greenjax.training.record import record_config
from greenjax.training.start import write_start

RUN = small_config()
DAMAGE = [b"", b" \n", b'{"images": 15', b"[1, 2", b"null", b"3", b"\xff\xfe{}", b"\x00" * 64]


@pytest.fixture
def recorded(tmp_path):
    """A folder with the files of a run, without its weights."""
    record_config(tmp_path, RUN, images=9, resuming=False)
    Rollbacks(tmp_path).add(DivergedError("made up", 6, 5), to=4)
    return tmp_path


def go_on(workdir):
    record_config(workdir, RUN, images=9, resuming=True)
    Rollbacks(workdir)


@pytest.mark.parametrize("damage", DAMAGE, ids=repr)
@pytest.mark.parametrize("name", ["config.json", "data.json", "rollbacks.json"])
def test_a_damaged_file_of_a_run_is_one_line(recorded, name, damage):
    (recorded / name).write_bytes(damage)
    with pytest.raises(InputError, match=rf"{name}' (is|holds) .*: .*remove it, and the run") as caught:
        go_on(recorded)
    assert "\n" not in str(caught.value)
    assert (recorded / name).read_bytes() == damage  # nothing is lost
    (recorded / name).unlink()  # as the line says
    go_on(recorded)


def test_a_run_that_is_older_than_settings_of_its_model_goes_on(tmp_path):
    """What a published model has of a newer key is what the run was begun with, and no other."""
    record_config(tmp_path, hiera := small_config("hiera"), images=9, resuming=False)
    there = json.loads((tmp_path / "config.json").read_text())
    for section, key in (("model", "query_pools"), ("model", "norm_epsilon"), ("decoder", "fusion"), ("mask", "block")):
        del there[section][key]
    (tmp_path / "config.json").write_text(json.dumps(there))
    with pytest.raises(InputError, match=r"model.query_pools is 3 there, 1 here: use"):
        record_config(tmp_path, small_config("hiera", model__query_pools=1), images=9, resuming=True)
    record_config(tmp_path, hiera, images=9, resuming=True)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["query_pools"] == 3


DETECT = dict(task="detect", model__depths=(1, 1), detect__anchor_sizes=(4, 8, 16), detect__fpn_dim=8)


@pytest.mark.parametrize(
    "config, before",
    [
        (dict(task="finetune", model__num_classes=3, data__no_data="0"), dict(data__randaugment=9.0, data__mixup=0.8)),
        (DETECT | dict(model__num_classes=3), dict(data__eval_crop=0.875, data__quarter_turns=True, data__mixup=0.8)),
        (dict(task="pretrain"), dict(optim__label_smoothing=0.3)),
    ],
    ids=lambda value: value.get("task", ""),
)
def test_runs_with_augmentation_that_is_refused_now_open_and_go_on_without(config, before, tmp_path):
    """The line that refuses their own command says the value to set."""
    for key, value in before.items():
        line = rf"^{key.replace('__', '.')} is {value}: expected (0|0\.0|1\.0|False)[ ,]"
        with pytest.raises(InputError, match=line):
            small_config(**config | {key: value})
    own = small_config(**config)
    write_start(tmp_path, greenjax.build(own), own)
    there = json.loads((tmp_path / "config.json").read_text())
    for key, value in before.items():
        section, _, name = key.partition("__")
        there[section][name] = value
    (tmp_path / "config.json").write_text(json.dumps(there))
    assert flatten(greenjax.load(tmp_path).config) == flatten(own)
    record_config(tmp_path, own, images=9, resuming=True)
    with pytest.raises(InputError, match=r"data\.flip is False there, True here: use another"):
        record_config(tmp_path, small_config(**config, data__flip=True), images=9, resuming=True)


def test_versions_are_written_anew(recorded):
    """Nothing follows from them."""
    (recorded / "versions.json").write_text("{")
    go_on(recorded)
    assert json.loads((recorded / "versions.json").read_text())["greenjax"] == greenjax.__version__


@pytest.mark.parametrize("damage", DAMAGE, ids=repr)
def test_weights_of_a_run_need_its_configuration(recorded, damage):
    (recorded / "config.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"config.json' (is|holds) .*: remove it and start the run's own command"):
        greenjax.load(recorded)


def test_a_configuration_of_another_version_names_its_settings(recorded):
    settings = json.loads((recorded / "config.json").read_text())
    settings["model"]["wavelets"] = 3
    (recorded / "config.json").write_text(json.dumps(settings))
    for read in (greenjax.load, go_on):
        with pytest.raises(InputError, match=r"config.json' has settings of another version .*: 'model.wavelets'"):
            read(recorded)


def test_rollbacks_of_another_form_are_one_line(recorded):
    for text in ("[3]", '[{"after": 3}]'):
        (recorded / "rollbacks.json").write_text(text)
        with pytest.raises(InputError, match=r"rollbacks.json' holds no rollbacks: .*remove it"):
            Rollbacks(recorded)


@pytest.mark.parametrize("damage", [*DAMAGE, b"{}", b'{"splits": 3, "encoding": "raw"}'], ids=repr)
def test_a_damaged_description_of_records_is_one_line(tmp_path, damage):
    (tmp_path / "records.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"records.json' .*: .* prepare the images anew in another folder"):
        read_description(tmp_path)


def test_a_file_that_cannot_be_read_names_the_reason(tmp_path):
    with pytest.raises(InputError, match=r"folder' cannot be read: Is a directory"):
        (tmp_path / "folder").mkdir()
        read_json(tmp_path / "folder", dict, "")


def test_text_replaces_a_file_and_leaves_no_draft(tmp_path):
    replace_text(tmp_path / "new" / "a", "1")
    replace_text(tmp_path / "new" / "a", "2")
    assert os.listdir(tmp_path / "new") == ["a"] and (tmp_path / "new" / "a").read_text() == "2"


def test_a_full_disk_leaves_no_cut_file_and_no_folder(tmp_path):
    replace_text(tmp_path / "a", "1")
    for path in (tmp_path / "a", tmp_path / "new" / "folder" / "a"):
        with pytest.raises(OSError, match="No space left"), replacing(path) as draft:
            draft.write_text("half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "1"


def test_a_picture_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    Canvas(8, 8).save(path)
    whole = path.read_bytes()

    def cut(canvas, draft):
        draft.write_bytes(whole[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FigureCanvasAgg, "print_png", cut)
    with pytest.raises(OSError, match="No space left"):
        Canvas(16, 16).save(path)
    assert os.listdir(path.parent) == ["picture.png"] and path.read_bytes() == whole


def test_a_path_that_this_user_may_not_open_is_one_line(tmp_path, monkeypatch):
    """pathlib's tests for a file or folder raise the error instead of saying no."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "new", tmp_path / "file" / "new"):
        assert expanded(path) == path
    with pytest.raises(InputError, match=r"' cannot be opened: File name too long"):
        expanded(tmp_path / ("x" * 300))
    with (
        pytest.raises(InputError, match=r"' cannot be written: File name too long"),
        held(tmp_path / ("x" * 300), "--w"),
    ):
        pass

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match=r"run' cannot be opened: Permission denied"):
        greenjax.load(tmp_path / "run")


def test_a_path_without_its_home_is_one_line(monkeypatch):
    monkeypatch.setenv("HOME", "/here")
    assert str(expanded("~/runs")) == "/here/runs" and str(expanded("a/~")) == "a/~"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an entry in passwd
    for path in ("~/runs", "~somebody/runs"):
        with pytest.raises(InputError, match=rf"'{path}' begins with ~, and there is no such home: .*, or \./{path}"):
            expanded(path)
    with pytest.raises(SystemExit, match=r"greenjax: argument --workdir: '~/run' begins with ~"):
        main(["main", "--config=configs/digits.py", "--workdir=~/run"])


def test_a_url_is_refused_in_one_line():
    for url in ("s3://bucket/run", "gs:/bucket/run", "https://host/a.csv"):
        with pytest.raises(InputError, match=rf"'{url}' is a URL: expected a path of this machine"):
            expanded(url)
    assert str(expanded("a:b/c")) == "a:b/c"
    with pytest.raises(SystemExit, match=r"argument --workdir: 's3://bucket/run' is a URL"):
        main(["main", "--config=configs/digits.py", "--workdir=s3://bucket/run"])
