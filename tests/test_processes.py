"""Runs of several processes on this machine: the same losses, the same bits, one decision to stop."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small import ONE_STAGE, small_config

from greenjax.backbones.geometry import make_planner
from greenjax.data.loader import labelled_batches, train_batches
from greenjax.data.open import open_labelled, open_source
from greenjax.errors import InputError, InterruptedRun
from greenjax.runtime import processes
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.tasks import pretrain
from greenjax.tasks.report import Judge
from greenjax.training.interrupt import Interruption
from greenjax.training.sharding import make_mesh
from greenjax.training.state import abstract_state, init_state, model_graph

ROOT = Path(__file__).parent.parent
SWIN = dict(
    **ONE_STAGE,
    steps=300,
    data__eval_split="test[:20]",
    optim__base_lr=1e-2,
    log__checkpoint_every=5,
    log__eval_every=5,
    ema=0.9,
)
TWINS = dict(family="twins", model__depths=(1, 1), steps=10, optim__base_lr=1e-2)
CLASSIFIER = dict(**ONE_STAGE, task="finetune", model__num_classes=10, data__eval_split="test[:103]")


def spawned(count, *command, **environment):
    """`count` processes that share eight devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={8 // count}")
    told = {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT / "tests")}
    told |= {processes.ADDRESS: address, processes.COUNT: str(count)} | environment
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | told | {processes.INDEX: str(index)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def ended(spawned, code):
    said = [process.communicate(timeout=300)[0] for process in spawned]
    assert [process.returncode for process in spawned] == [code] * len(spawned), "\n".join(said)
    return said


def config_file(folder, settings):
    path = folder / "config.py"
    path.write_text(
        "import greenjax\n"
        "from small import small_config\n\n"
        "def get_config():\n"
        "    config = greenjax.default_config()\n"
        f"    for key, value in greenjax.flatten(small_config(**{settings!r})).items():\n"
        "        section, _, name = key.rpartition('.')\n"
        "        (config[section] if section else config)[name] = value\n"
        "    return config\n"
    )
    return path


def told(workdir, key="loss"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, eight devices, stopped after step 15."""
    workdir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        asked = iter(range(1, 16))
        patch.setattr(Interruption, "asked", lambda self: next(asked) == 15)
        with pytest.raises(InterruptedRun, match="after step 15 of 300"):
            pretrain(small_config(**SWIN), workdir)
    return workdir


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_and_stop_together(alone, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir)
    for step in (10, 15):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    metrics = workdir / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:7]))  # to step 5
    config = config_file(tmp_path, SWIN)
    both = spawned(2, "-m", "greenjax.main", f"--config={config}", f"--workdir={workdir}")
    limit = time.monotonic() + 240
    while max(told(workdir)) < 12:
        assert all(process.poll() is None for process in both), [process.communicate()[0] for process in both]
        assert time.monotonic() < limit
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)  # one is told, both stop
    said = ended(both, 75)
    stops = {re.search(r"after step (\d+) of 300", text)[1] for text in said}
    assert len(stops) == 1
    assert Checkpointer(workdir).latest_step() == int(stops.pop())
    assert "step 6/300" in said[0] and "step 6/300" not in said[1]  # the first speaks for all
    ours, theirs = told(workdir), told(alone)
    np.testing.assert_allclose(
        [ours[step] for step in range(6, 13)], [theirs[step] for step in range(6, 13)], rtol=1e-5
    )
    held_out = [told(each, "held_out_loss")[10] for each in (workdir, alone)]
    np.testing.assert_allclose(*held_out, rtol=1e-5)


@pytest.mark.slow
def test_four_processes_with_split_parameters_train_twins_as_one_device_does(tmp_path):
    config = config_file(tmp_path, TWINS | dict(mesh__fsdp=4))
    workdir = tmp_path / "four [*]"  # each process has its own link to such a folder
    ended(spawned(4, "-m", "greenjax.main", f"--config={config}", f"--workdir={workdir}"), 0)
    pretrain(small_config(**TWINS, mesh__data=1), tmp_path / "one")
    ours, theirs = told(workdir), told(tmp_path / "one")
    assert list(ours) == list(theirs) == list(range(1, 11))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert sorted(path.name for path in workdir.iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())
    assert Checkpointer(workdir).latest_intact_step() == 10


DIFFERENT = """
import sys
from pathlib import Path
from greenjax.runtime import processes

processes.connect()
import jax
import numpy as np
from small import small_config
from greenjax.data.sources import FolderSource
from greenjax.data.sources.names import Names
from greenjax.errors import InputError
from greenjax.training.together import holding_workdir, same_start, same_weights

index, names = jax.process_index(), [f"{number}.png" for number in range(64)]
images = lambda *last: FolderSource(f"/disk{index}", Names.of([*names[:62], *last]))
task = holding_workdir(lambda config, workdir: processes.on_first(lambda: (workdir / ".lock").is_file()))
workdir = Path(sys.argv[1])


def same(step=5, batch=8, training=images("62.png", "63.png"), held_out=None):
    same_start(step, batch, {"training images": training, "held-out images": held_out})


def refuse():
    raise InputError("only process 0 knows this")


for attempt in (
    lambda: task(small_config(data__workers=index, data__source="folder", data__path=f"/disk{index}"), workdir),
    lambda: same(),
    lambda: task(small_config(model__window=4 - 2 * index), workdir),
    lambda: same(step=5 if index else None),
    lambda: same(batch=8 + index),
    lambda: same(training=images(*names[62 : 64 - index])),
    lambda: same(training=images("62.png", "renamed.png" if index else "63.png")),
    lambda: same(held_out=images() if index else None),
    lambda: same_weights("runs/x", {"a": np.full(3, 1 + index)}),
    lambda: processes.on_first(refuse),
):
    try:
        print("went on:", attempt(), file=sys.stderr)
    except InputError as error:
        print(error, file=sys.stderr)
"""


@pytest.mark.slow
def test_processes_that_differ_all_end_with_the_first_difference(tmp_path):
    said = ended(spawned(2, "-c", DIFFERENT, tmp_path / "run"), 0)
    differences = [
        "process 1 has model.window 2, process 0 has 4: expected the same",
        "process 1 has its last checkpoint at step 5, process 0 has None: expected the same",
        "process 1 has its next batch at 9, process 0 has 8: expected the same",
        "process 1 has 63 training images, process 0 has 64: expected the same",
        r"process 1 has training images with the digest \w+ of names and order, process 0 has \w+: expected the same",
        "process 1 has 62 held-out images, process 0 has None: expected the same",
        r"process 1 has weights of runs/x with the digest \w+, process 0 has \w+: expected the same",
        "only process 0 knows this",
    ]
    for text in said:
        lines = [line for line in text.splitlines() if line.startswith(("process", "only"))]
        assert len(lines) == len(differences), text
        assert all(re.fullmatch(expected, line) for expected, line in zip(differences, lines)), lines
    assert [text.count("went on: ") for text in said] == [2, 2] and "went on: True" in said[0]
    assert not (tmp_path / "run").exists()  # the lock is gone


@pytest.mark.slow
def test_a_command_with_other_settings_on_one_process_ends_before_it_compiles(tmp_path):
    config = config_file(tmp_path, SWIN)
    with config.open("a") as file:
        file.write("\nours = get_config\n\ndef get_config():\n    import os\n    config = ours()\n")
        file.write(f"    config.seed = int(os.environ['{processes.INDEX}'])\n    return config\n")
    said = ended(spawned(2, "-m", "greenjax.main", f"--config={config}", f"--workdir={tmp_path / 'run'}"), 1)
    for text in said:
        assert "greenjax: process 1 has seed 1, process 0 has 0: expected the same" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run" / "config.json").exists()


PASS_ON = f"""
import json, sys
from small import small_config
from greenjax.runtime import processes
from greenjax.runtime.checkpoint import Checkpointer

if __name__ == "__main__":
    processes.connect()
    import jax
    from test_processes import judged, target
    config = small_config(**{SWIN!r}, mesh__fsdp=int(sys.argv[3]))
    state = Checkpointer(sys.argv[1]).restore(target(config), 5)
    with Checkpointer(sys.argv[2]) as checkpointer:
        checkpointer.save(5, state)
        checkpointer.wait()
    print(json.dumps(judged()))
"""


def target(config):
    return abstract_state(config, make_mesh(config))


def judged():
    """An untrained classifier on 103 images, in batches of 16: the last one is not full."""
    config = small_config(**CLASSIFIER)
    mesh = make_mesh(config)
    state = init_state(config, mesh)
    judge = Judge(config, model_graph(config), mesh)
    return judge.evaluate(state.params, open_labelled(config.data, "test[:103]")).metrics


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fsdp"), [(2, 8), (4, 2)])
def test_a_checkpoint_passes_through_other_processes_with_every_bit(alone, tmp_path, count, fsdp):
    """From one process to several, which write it again, and back; they also evaluate alike."""
    said = ended(spawned(count, "-c", PASS_ON, alone, tmp_path, fsdp), 0)
    config = small_config(**SWIN, mesh__data=1)
    before, after = (Checkpointer(folder).restore(target(config), 5) for folder in (alone, tmp_path))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), before, after))
    found, expected = json.loads(said[0].splitlines()[-1]), judged()
    assert found["images"] == expected["images"] == 103
    assert (found["top1"], found["top5"]) == (expected["top1"], expected["top5"])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


def test_the_rows_of_all_processes_are_the_batch():
    """By mask group in pre-training, by image with labels; masks of a pool too."""
    config = small_config(mask__pool=5)
    source, planner = open_source(config.data, "train"), make_planner(config)
    whole = next(train_batches(config, source, planner, 3))
    parts = [next(train_batches(config, source, planner, 3, range(i, i + 2))) for i in range(0, 8, 2)]
    jax.tree.map(lambda *leaves: np.testing.assert_array_equal(leaves[0], np.concatenate(leaves[1:])), whole, *parts)
    config = small_config(task="finetune", model__num_classes=10)
    source = open_labelled(config.data, "train")
    whole = next(labelled_batches(config, source, 3))
    parts = [next(labelled_batches(config, source, 3, range(i, i + 4))) for i in range(0, 16, 4)]
    jax.tree.map(lambda *leaves: np.testing.assert_array_equal(leaves[0], np.concatenate(leaves[1:])), whole, *parts)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (dict(COUNT="2"), "JAX_COORDINATOR_ADDRESS is not set: expected it beside JAX_NUM_PROCESSES"),
        (dict(ADDRESS="host:1", COUNT="2"), "JAX_PROCESS_ID is not set"),
        (dict(ADDRESS="host:1", COUNT="two", INDEX="0"), "JAX_NUM_PROCESSES is 'two': expected a whole number"),
        (dict(ADDRESS="host", COUNT="2", INDEX="0"), "JAX_COORDINATOR_ADDRESS is 'host': expected HOST:PORT"),
        (dict(ADDRESS="host:1", COUNT="2", INDEX="2"), "JAX_PROCESS_ID is 2: expected 0 to 1"),
    ],
    ids=str,
)
def test_what_the_environment_tells_has_to_be_whole(monkeypatch, environment, message):
    for name in (processes.ADDRESS, processes.COUNT, processes.INDEX):
        monkeypatch.delenv(name, raising=False)
    processes.connect()  # nothing told, nothing to do
    for name, value in environment.items():
        monkeypatch.setenv(getattr(processes, name), value)
    with pytest.raises(InputError, match=message):
        processes.connect()
