"""Trackers beside metrics.jsonl: one that fails never stops a run, and a resumed run goes on in the same one."""

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from greenjax.errors import InputError
from greenjax.training import trackers
from greenjax.training.metrics import MetricsWriter
from greenjax.training.trackers import trackers_of

SETTINGS = {"model.name": "swin_t", "model.depths": (2, 2), "optim.base_lr": 1e-3}


class Recorder:
    """A tracker that notes what it is told; `trouble` is called before."""

    told, trouble = [], None

    def __init__(self, run):
        self.told.append(("open", run.start, dict(run.settings)))

    def scalars(self, step, values):
        if Recorder.trouble:
            Recorder.trouble()
        self.told.append((step, dict(values)))

    def image(self, step, tag, png):
        self.told.append((step, tag, png.name))

    def close(self, done):
        self.told.append(("close", done))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setattr(Recorder, "trouble", None)
    monkeypatch.setitem(trackers.ASIDE, "wandb", Recorder)
    return Recorder


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def drawn(folder):
    path = folder / "reconstructions" / "2.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def test_a_tracker_is_told_everything_in_order(recorder, tmp_path):
    picture = drawn(tmp_path)
    with MetricsWriter(tmp_path, 4, 0, ("tensorboard", "wandb"), SETTINGS) as writer:
        writer.write(1, {"loss": 2.0})
        writer.image(2, picture)
        writer.write(3, {"loss": 1.0})
    assert recorder.told == [
        ("open", 0, SETTINGS),
        (1, {"loss": 2.0}),
        (2, "reconstructions", "2.png"),
        (3, {"loss": 1.0}),
        ("close", True),
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_tensorboard_there_are_no_events(recorder, tmp_path):
    with pytest.raises(KeyError), MetricsWriter(tmp_path, 4, 0, ("wandb",)) as writer:
        writer.write(1, {"loss": 2.0})
        raise KeyError
    assert recorder.told[-1] == ("close", False) and not (tmp_path / "tensorboard").exists()


def test_a_tracker_that_fails_gets_one_warning_and_the_run_goes_on(recorder, tmp_path, caplog):
    def trouble():
        raise SystemExit("no\nserver")  # as some libraries end a process

    recorder.trouble = trouble
    with MetricsWriter(tmp_path, 4, 0, ("wandb",)) as writer:
        for step in range(1, 5):
            writer.write(step, {"loss": 2.0})
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert [record.message for record in caplog.records] == [
        "log.to: wandb failed (no server); the run goes on without it"
    ]


def test_a_tracker_that_hangs_holds_no_run_up(recorder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    answer = threading.Event()
    recorder.trouble = answer.wait
    with MetricsWriter(tmp_path, 4, 0, ("wandb",)) as writer:
        for step in range(1, 5):
            writer.write(step, {"loss": 2.0})
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert "wandb has not taken everything in 0.05 s" in caplog.text
    answer.set()


def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch):
    assert trackers_of("tensorboard") == ("tensorboard",)
    assert trackers_of(("tensorboard", "tensorboard")) == ("tensorboard",)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"log.to has 'mlflow', which is not installed: `pip install 'greenjax\[mlflow\]'"
    ):
        trackers_of(("tensorboard", "mlflow"))


def twice(workdir, name):
    """A run that is stopped after step 3, where the last checkpoint is of step 2, and goes on to its end."""
    picture = drawn(workdir)
    with pytest.raises(KeyboardInterrupt), MetricsWriter(workdir, 4, 0, (name,), SETTINGS) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 10.0 - step, "grad_norm": float("nan")})
        writer.image(2, picture)
        raise KeyboardInterrupt
    identity = (workdir / "trackers" / name).read_text().strip()
    with MetricsWriter(workdir, 4, 2, (name,), SETTINGS) as writer:
        for step in (3, 4):
            writer.write(step, {"loss": 20.0 - step})
    assert (workdir / "trackers" / name).read_text().strip() == identity
    return identity


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow asks its database in an old way
def test_mlflow_has_settings_curves_and_pictures_of_a_resumed_run(tmp_path, monkeypatch, caplog):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # artifacts
    identity = twice(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'greenjax'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (identity, "run", "FINISHED")
    assert run.data.params == {key: str(value) for key, value in SETTINGS.items()}
    history = [(each.step, each.value) for each in client.get_metric_history(identity, "loss")]
    assert sorted(history) == [(1, 9.0), (2, 8.0), (3, 7.0), (3, 17.0), (4, 16.0)]
    assert "grad_norm" not in run.data.metrics
    assert [each.path for each in client.list_artifacts(identity, "reconstructions")] == ["reconstructions/2.png"]
    assert not caplog.messages


@pytest.mark.extra
def test_wandb_offline_has_settings_curves_and_pictures_of_a_resumed_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "run"
    identity = twice(workdir, "wandb")
    runs = sorted((workdir / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all(folder.name.endswith(f"-{identity}") for folder in runs)
    for folder, words in zip(runs, ([b"swin_t", b"optim.base_lr", b"grad_norm"], [b"loss"])):
        file, limit = folder / f"run-{identity}.wandb", time.monotonic() + 60
        while not all(word in file.read_bytes() for word in words):  # W&B's own process writes it, a second later
            assert time.monotonic() < limit
            time.sleep(0.1)
    (picture,) = (runs[0] / "files" / "media" / "images").glob("reconstructions*.png")
    assert np.asarray(Image.open(picture)).tolist() == np.asarray(Image.open(drawn(tmp_path))).tolist()
    assert not caplog.messages
