"""Whole runs: what they leave behind, and that an interrupted one ends as an uninterrupted one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small import small_config

from greenjax.checkpoint import Checkpointer
from greenjax.data import open_source
from greenjax.evaluation import result
from greenjax.planning import Planner
from greenjax.training import DivergedError, pretrain
from greenjax.training.optim import make_optimizer
from greenjax.training.pretrain import pool_use
from greenjax.training.sharding import make_mesh
from greenjax.training.state import abstract_state

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
)


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
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
        r"held-out masked loss: [\d.]+ at step 6; untrained model [\d.]+; best constant 0\.\d{4}", result(lines)
    )


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


def test_a_finished_run_started_again_changes_nothing(finished, tmp_path):
    workdir, state = finished
    shutil.copytree(workdir, tmp_path / "run")
    again = pretrain(small_config(**RUN), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert lines_of(tmp_path / "run") == lines_of(workdir)


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
    planner = Planner.from_config(config)
    images = len(open_source(config.data, "train[:160]"))  # ten steps an epoch
    assert pool_use(config, planner, 1, images)["distinct_masks"] <= 5
    assert pool_use(config, planner, 10, images) == {"distinct_masks": 5}
    drawn = {mask for step in (10, 11) for mask in planner.mask_ids(0, step, config.mask.groups)}
    assert pool_use(config, planner, 12, images) == {"distinct_masks": len(drawn)}
    assert pool_use(small_config(), planner, 12, images) == {}


CONFIG = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from small import small_config
import greenjax

def get_config():
    config = greenjax.default_config()
    for key, value in greenjax.flatten(small_config(**{RUN!r})).items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    config.steps = 60
    config.log.checkpoint_every = 5
    return config
"""


def start(config, workdir):
    command = [sys.executable, "-m", "greenjax.main", "--config", str(config), "--workdir", str(workdir)]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(process, condition, seconds=120):
    """SIGKILL as soon as the condition holds; fails if the run ends first."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_kill_in_training_and_in_saving_loses_nothing_before_the_last_checkpoint(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    def steps():
        return Checkpointer(workdir).steps()

    # In the middle of training: some checkpoints are there, and the run has gone on since.
    kill_when(start(config, workdir), lambda: steps() and lines_of(workdir)[-1]["step"] > steps()[-1] + 1)
    first = steps()[-1]
    # In the middle of saving: a later checkpoint has begun and is not complete.
    kill_when(
        start(config, workdir),
        lambda: any("tmp" in p.name and int(p.name.split(".")[0]) > first for p in checkpoints.glob("[0-9]*")),
    )
    assert steps()[-1] >= first
    final = start(config, workdir)
    output, _ = final.communicate(timeout=200)
    assert final.returncode == 0, output
    undisturbed = start(config, tmp_path / "undisturbed")
    output, _ = undisturbed.communicate(timeout=200)
    assert undisturbed.returncode == 0, output

    import greenjax

    resolved = greenjax.load_config(config)
    target = abstract_state(resolved, make_optimizer(resolved), make_mesh(resolved))
    interrupted, whole = (Checkpointer(folder).restore(target, 60) for folder in (workdir, tmp_path / "undisturbed"))
    jax.tree.map(np.testing.assert_array_equal, interrupted, whole)
    assert [line["step"] for line in lines_of(workdir) if "loss" in line] == list(range(1, 61))
