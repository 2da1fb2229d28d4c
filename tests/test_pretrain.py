"""Whole runs: what they leave behind, and that an interrupted one ends as an uninterrupted one."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from small import small_config, small_run
from worker_cases import Broken, children

import greenjax
from greenjax.backbones.geometry import make_planner
from greenjax.data.loader import Batch, eval_batches
from greenjax.data.open import open_source
from greenjax.data.workers import WorkerDied
from greenjax.errors import InputError, InterruptedRun
from greenjax.evaluation import held_out as held_out_module
from greenjax.evaluation.held_out import HeldOut, Pictures
from greenjax.evaluation.monitor import Monitor
from greenjax.evaluation.pictures.canvas import Canvas
from greenjax.evaluation.pictures.curve import draw_loss_curve, held_out_line
from greenjax.main import main
from greenjax.runtime.checkpoint import Checkpointer, SaveError
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.placement import Placement
from greenjax.tasks import pretrain
from greenjax.tasks.pretrain import described_start, pool_use
from greenjax.training.guard import DivergedError
from greenjax.training.metrics import MetricsWriter
from greenjax.training.sharding import make_mesh
from greenjax.training.state import State, model_graph, parameters

RUN = dict(
    model__depths=(1, 1),
    model__drop_path=0.1,
    steps=6,
    data__eval_split="test[:20]",
    optim__base_lr=1e-2,
    optim__warmup_steps=1,
    log__checkpoint_every=3,
    log__eval_every=3,
    mesh__data=2,
    ema=0.5,
)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "[1] *?{a,b}#%20 $HOME & ü 🌱 a:"  # nothing takes a name for a pattern
    return workdir, pretrain(small_config(**RUN), workdir)


def test_a_run_leaves_metrics_pictures_checkpoints_and_its_configuration(finished):
    workdir, state = finished
    assert int(state.step) == 6
    lines = lines_of(workdir)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    held_out = {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
    assert list(held_out) == [0, 3, 6]
    assert held_out[6] < held_out[0]
    assert 0.5 < lines[0]["best_constant_loss"] < 1
    assert sorted(path.name for path in (workdir / "reconstructions").iterdir()) == ["00000000.png", "00000006.png"]
    assert Checkpointer(workdir).steps() == [3, 6]
    assert json.loads((workdir / "config.json").read_text())["model"]["depths"] == [1, 1]
    assert "jax" in json.loads((workdir / "versions.json").read_text())
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "loss.png").stat().st_size > 1000
    assert re.fullmatch(
        r"held-out masked loss: [\d.]+ at step 6; untrained model [\d.]+; best constant 0\.\d{4}", held_out_line(lines)
    )
    assert "; at the start (from runs/a) " in held_out_line(lines, described_start("runs/a", None))
    assert "; at the start " in held_out_line(lines, described_start("none", 0))  # a workdir of converted weights


def test_the_average_of_the_weights_is_judged(finished):
    """It is what `load`, exports and `init` take."""
    workdir, state = finished
    config = small_config(**RUN)
    mesh, planner, images = make_mesh(config), make_planner(config), open_source(config.data, "test[:20]")
    place = Placement(mesh)
    held_out = HeldOut(config, model_graph(config), place, lambda: eval_batches(config, images, planner))
    measured = lines_of(workdir)[-1]["held_out_loss"]
    weights, raw = parameters(greenjax.load(workdir)), jax.device_get(state.params)
    with jax.set_mesh(mesh):
        averaged, latest = (held_out.loss(place.everywhere(each)) for each in (weights, raw))
    np.testing.assert_allclose(averaged, measured, rtol=1e-6)
    assert abs(latest - measured) > 1e-4 * measured


def test_the_best_constant_is_that_of_all_held_out_images(monkeypatch):
    """Stored by class: the first half black, the second half white. The targets here are the images."""
    config, valid = small_config(mesh__data=1), np.ones((2, 1), bool)
    images = np.repeat(np.float32([0, 0, 1, 1]), 2).reshape(4, 2, 1, 1, 1) * np.ones((6, 4), np.float32)
    batches = [Batch(each, None, None, None, valid) for each in images]
    held_out = HeldOut(config, model_graph(config), lambda batch: batch, lambda: iter(batches))
    held_out._targets = lambda params, batch: batch.images
    for values in (1 << 25, images.size // 2, images.size // 5, 1):
        monkeypatch.setattr(held_out_module, "FITTED_VALUES", values)
        assert held_out.best_constant(None) == 0.25
    monkeypatch.setattr(held_out_module, "FITTED_VALUES", images.size)  # none is left out
    images += np.random.default_rng(0).random(images.shape, np.float32)
    np.testing.assert_allclose(held_out.best_constant(None), images.var(axis=(0, 1, 2, 3)).mean(), rtol=1e-6)


def test_every_hook_judges_the_average(tmp_path, monkeypatch):
    judged = []

    class Judge(Monitor):
        def __init__(self, *_):
            pass

        def measure(self, params, *_):
            judged.append(params)
            return {}

        def draw(self, path, params):
            judged.append(params)

        loss = best_constant = measure

    story, config = sys.modules["greenjax.tasks.pretrain"], small_config(**RUN)
    monkeypatch.setattr(story, "HeldOut", Judge)
    monkeypatch.setattr(story, "Pictures", Judge)
    run = small_run(config, tmp_path)
    hooks = [*story.held_out_hooks(run, list), *story.monitor_hooks(run, Judge()), story.pictures_hook(run, list)]
    for hook in hooks:
        hook.call(0, State(0, {"latest": 0}, {"average": 0}, None, None), Mock(MetricsWriter))
    assert judged == [{"average": 0}] * 4


PASSES = [("", (), 128), ("test[:5]", (), 5), ("", range(60, 120), 68), ("", range(1500), 0)]


@pytest.mark.parametrize(("split", "damaged", "shown"), PASSES)
def test_pictures_are_of_centres_of_held_out_images_or_of_training_images(split, damaged, shown, tmp_path, monkeypatch):
    """Of these as of those, without the start of another loader; damaged images do not end the run before training."""
    story, taken = sys.modules["greenjax.tasks.pretrain"], []
    config = small_config(**RUN | dict(data__eval_split=split, data__batch_size=128))
    opened = Broken(open_source(config.data, split or config.data.split), damaged)

    def pictures_hook(_, batch):
        taken.append(batch())
        raise InterruptedError

    monkeypatch.setattr(story, "begin", lambda *_: (small_run(config, tmp_path), None))
    monkeypatch.setattr(story, "start_lines", lambda _: ())
    monkeypatch.setattr(story, "pictures_hook", pictures_hook)
    monkeypatch.setattr(story, "open_source", lambda *_: opened)
    monkeypatch.setattr(story, "warn_of_overlap", lambda *_: None)
    monkeypatch.setattr(story, "train_batches", None)
    with pytest.raises(InterruptedError):
        pretrain(config, tmp_path)
    expected = next(eval_batches(config, opened, make_planner(config), patient=True))
    jax.tree.map(np.testing.assert_array_equal, taken, [expected])
    assert expected.valid.sum() == shown


def test_a_curve_is_drawn_of_losses_that_are_not_finite(tmp_path):
    lines = [{"step": 0, "held_out_loss": None, "best_constant_loss": None}, {"step": 1, "loss": 1.0}]
    draw_loss_curve(tmp_path / "loss.png", lines)
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert held_out_line(lines).endswith("untrained model not finite; best constant not finite")


def test_a_finished_run_that_shall_go_on_longer_is_told_how(finished):
    workdir, _ = finished
    flag = re.escape(shlex.quote(f"--config.init={workdir}"))
    with pytest.raises(InputError, match=rf"steps is 6 there, 12 here: use .* with {flag} to start"):
        pretrain(small_config(**RUN | dict(steps=12)), workdir)


def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(finished, tmp_path):
    workdir, uninterrupted = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    resumed = pretrain(small_config(**RUN), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)
    speed = {"images_per_second", "flops_per_second", "waited", "device_hours"}
    first, second = (
        [{key: value for key, value in line.items() if key not in speed} for line in lines_of(folder)]
        for folder in (workdir, tmp_path / "run")
    )
    assert first == second


def test_a_finished_run_started_again_changes_nothing_and_compiles_no_update(finished, tmp_path, monkeypatch):
    workdir, state = finished
    shutil.copytree(workdir, tmp_path / "run")
    monkeypatch.delattr(BackgroundJit, "start")
    monkeypatch.delattr(BackgroundJit, "__call__")
    again = pretrain(small_config(**RUN), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert lines_of(tmp_path / "run") == lines_of(workdir)


def test_the_last_step_is_saved_before_its_evaluation_which_the_next_start_repeats(finished, tmp_path, monkeypatch):
    """Whatever ends the last evaluation: nothing is trained again, and its results are those of a whole run."""
    workdir, state = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    saved = []

    def save(checkpointer, step, state, save=Checkpointer.save):
        save(checkpointer, step, state)
        saved.append(step)

    def seal(checkpointer, seal=Checkpointer._seal):
        time.sleep(0.3)  # in the background
        seal(checkpointer)

    def loss(held_out, params, loss=HeldOut.loss):
        if 6 in saved:
            assert Checkpointer(tmp_path / "run").steps() == [3, 6]  # a kill from here on loses no step
            raise MemoryError("of the last evaluation")
        return loss(held_out, params)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "save", save)
        patched.setattr(Checkpointer, "_seal", seal)
        patched.setattr(HeldOut, "loss", loss)
        with pytest.raises(MemoryError):
            pretrain(small_config(**RUN), tmp_path / "run")
    assert Checkpointer(tmp_path / "run").steps() == [3, 6]
    before = [line["held_out_loss"] for line in lines_of(workdir) if "held_out_loss" in line]
    monkeypatch.delattr(BackgroundJit, "start")
    monkeypatch.delattr(BackgroundJit, "__call__")
    for _ in range(2):  # the second start finds everything done
        again = pretrain(small_config(**RUN), tmp_path / "run")
        jax.tree.map(np.testing.assert_array_equal, again, state)
        assert [line["held_out_loss"] for line in lines_of(tmp_path / "run") if "held_out_loss" in line] == before


def test_any_step_is_saved_before_its_evaluation_which_the_next_start_repeats(finished, tmp_path, monkeypatch):
    """Nothing is in metrics.jsonl twice; a signal in the repeated evaluation lets it end."""
    workdir, state = finished
    losses = [(line["step"], line["held_out_loss"]) for line in lines_of(workdir) if "held_out_loss" in line]
    config = small_config(**RUN, log__picture_every=3)

    def fail(*_, draw=Pictures.draw):
        if (tmp_path / ".unfinished").exists():
            raise MemoryError("of the picture of step 3")
        return draw(*_)

    def signalled(held_out, params, loss=HeldOut.loss):
        if (tmp_path / ".unfinished").read_text() == "3":
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(held_out, params)

    with monkeypatch.context() as patched:
        patched.setattr(Pictures, "draw", fail)
        with pytest.raises(MemoryError):
            pretrain(config, tmp_path)
    assert Checkpointer(tmp_path).steps() == [3]
    with monkeypatch.context() as patched:
        patched.setattr(HeldOut, "loss", signalled)
        with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step 4 of 6"):
            pretrain(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, pretrain(config, tmp_path), state)
    assert [(line["step"], line["held_out_loss"]) for line in lines_of(tmp_path) if "held_out_loss" in line] == losses
    assert [line["step"] for line in lines_of(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / ".unfinished").exists()


def test_a_workdir_that_becomes_read_only_costs_pictures_and_checkpoints(tmp_path, monkeypatch, caplog):
    """The run goes on to its end, and says that its last state could not be saved."""

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Canvas, "save", refused)
    monkeypatch.setattr(Checkpointer, "_check_room", refused)
    with pytest.raises(SaveError, match=r"step 6 could not be saved: .*Read-only"):
        pretrain(small_config(**RUN), tmp_path)
    assert "step 6: [Errno 30] Read-only file system; the run goes on without it" in caplog.text


def test_another_configuration_is_refused_in_a_used_workdir(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"mask.ratio is 0.75 there, 0.5 here"):
        pretrain(small_config(**RUN | dict(mask__ratio=0.5)), workdir)


def test_a_run_that_diverges_stops_and_names_the_step(tmp_path):
    config = small_config(**RUN | dict(optim__base_lr=1e35, optim__warmup_steps=0, optim__max_skipped=2))
    with pytest.raises(DivergedError, match=r"step [45]: 3 updates in a row had a loss or gradient that is not finite"):
        pretrain(config, tmp_path)


def test_pooled_masks_are_counted_by_epoch():
    config = small_config(mask__pool=5, data__batch_size=16)
    planner = make_planner(config)
    images = len(open_source(config.data, "train[:160]"))  # ten steps an epoch
    assert pool_use(config, planner.mask_ids, images, 1)["distinct_masks"] <= 5
    assert pool_use(config, planner.mask_ids, images, 10) == {"distinct_masks": 5}
    drawn = {mask for step in (10, 11) for mask in planner.mask_ids(step, config.mask.groups)}
    assert pool_use(config, planner.mask_ids, images, 12) == {"distinct_masks": len(drawn)}
    assert pool_use(small_config(), planner.mask_ids, images, 12) == {}


def test_a_killed_worker_ends_the_run_with_everything_saved(tmp_path):
    """While checkpoints are being written: the one under way is finished."""
    workdir = tmp_path / "run"

    def kill() -> None:
        while not list((workdir / "checkpoints").glob("2*")):
            time.sleep(0.01)
        for worker in children():
            os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    long = RUN | dict(steps=2000, data__workers=1, log__checkpoint_every=2, log__eval_every=0, log__picture_every=0)
    with pytest.raises(WorkerDied, match=r"data worker 1 of 1 \(process \d+\) was killed by SIGKILL"):
        pretrain(small_config(**long), workdir)
    killer.join()
    steps = Checkpointer(workdir).steps()
    assert steps and Checkpointer(workdir).latest_intact_step() == steps[-1]
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def _left(code):
    raise SystemExit(code)


@pytest.mark.parametrize("compiling", [False, True])
def test_a_dead_worker_is_one_line_of_the_command(tmp_path, monkeypatch, capsys, compiling):
    """And the command ends at once, where an ordinary exit would wait for XLA."""

    def died(config, workdir):
        raise WorkerDied("data worker 2 of 4 (process 12345) was killed by SIGKILL (out of memory?)")

    monkeypatch.setattr("greenjax.tasks.run", died)
    monkeypatch.setattr("greenjax.runtime.cache.keep_compiled", lambda folder: None)
    monkeypatch.setattr("greenjax.runtime.processes.compiling", lambda: compiling)
    monkeypatch.setattr("os._exit", _left)
    with pytest.raises(SystemExit) as ended:
        main(["main", "--config=configs/digits.py", f"--workdir={tmp_path}"])
    said = "greenjax: data worker 2 of 4 (process 12345) was killed by SIGKILL (out of memory?): "
    said += f"the same command goes on from the last checkpoint in {tmp_path}"
    assert ended.value.code == (1 if compiling else said)
    assert not compiling or capsys.readouterr().err == said + "\n"
