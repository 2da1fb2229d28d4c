"""Checkpoints: every bit comes back, onto any mesh; what is torn or does not fit is never taken."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greenjax.runtime import checkpoint, checkpoint_folder
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.checkpoint_folder import missing_array


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt: optax.OptState


def make_state(width=16, dtype=jnp.float32):
    """Nested dictionaries, optax's named tuples and empty states, scalars, two types."""
    keys = jax.random.split(jax.random.key(width), 3)
    params = {
        "encoder": {"stages": {0: {"kernel": jax.random.normal(keys[0], (8, width), dtype)}}},
        "decoder": {"kernel": jax.random.normal(keys[1], (width, 8)), "scale": jnp.ones((), jnp.bfloat16)},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.asarray(7, jnp.int32), params, tx.init(params))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def copied(state):
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)


def same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected))
    )


def on_mesh(state, shape):
    """The state on a mesh of so many devices a side, rows split over both sides where they divide."""
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split, whole = PartitionSpec(("data", "fsdp")), PartitionSpec()
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, split if x.ndim and x.shape[0] % 8 == 0 else whole)),
        state,
    )


def test_every_bit_comes_back(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path, 3) as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save(7, state)
    with Checkpointer(tmp_path, 3) as checkpointer:
        assert checkpointer.latest_step() == 7
        restored = checkpointer.restore(abstract(state))
    assert isinstance(restored, State)
    assert same_bits(restored, state)


@pytest.mark.parametrize(("before", "after"), [((1, 1), (4, 2)), ((4, 2), (2, 2)), ((2, 4), (1, 1))])
def test_restored_onto_another_mesh(tmp_path, before, after):
    state, wanted = on_mesh(make_state(), before), on_mesh(make_state(), after)
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, state)
        restored = checkpointer.restore(abstract(wanted))
    assert same_bits(restored, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, wanted))


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_the_state_may_be_donated_while_it_is_being_saved(tmp_path, shape):
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = update(on_mesh({"x": jnp.zeros((1 << 12, 512))}, shape))
    with Checkpointer(tmp_path, 2) as checkpointer:
        for step in range(1, 3):
            expected = copied(state)
            with jax.transfer_guard("disallow"):  # as in the training loop
                checkpointer.save(step, state)
            for _ in range(5):
                state = update(state)
            assert same_bits(checkpointer.restore(abstract(state), step), expected)
        # What comes back may be donated too.
        state = update(checkpointer.restore(abstract(state), 2))
        assert same_bits(state, jax.tree.map(lambda x: x + 1, expected))
        assert same_bits(checkpointer.restore(abstract(state), 2), expected)


ODD = ["[1]", "[!a]", "*", "a?b", "{a,b}", "#", "%20", "%", "a b", "it's", 'say "x"', "back\\slash", "a:b", "a&b", "~"]
ODD += ["$HOME", "new\nline", "über", "🌱", "a://b", "logs:", "-x", "x.", "...", "x" * 200, "x.__lock"]
ODD += ["\udcff", "(;|<>`)"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_folder_may_have_any_name(tmp_path, name):
    """Whatever Orbax, TensorStore, globs, URLs and shells take a character for."""
    state = make_state()
    with Checkpointer(tmp_path / name) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.save(2, state)
        checkpointer.wait()
    reader = Checkpointer(tmp_path / name)
    assert reader.latest_intact_step() == 2 and reader.steps() == [1, 2]
    assert same_bits(reader.restore(abstract(state)), state)
    assert same_bits(reader.weights()[0]["decoder/kernel"], np.asarray(state.params["decoder"]["kernel"]))
    assert sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("name", ["[1]", "back\\slash"])
def test_a_save_that_cannot_be_read_again_has_failed(tmp_path, name, monkeypatch, caplog):
    """Orbax, left alone with such a path, writes what nobody can open, and says so in a warning at most."""
    monkeypatch.setattr(checkpoint_folder, "_is_plain", lambda folder: True)
    with Checkpointer(tmp_path / name) as checkpointer:
        checkpointer.save(1, {"x": jnp.arange(8.0)})
        with pytest.raises(checkpoint.SaveError, match=r"step 1 could not be saved: .*"):
            checkpointer.wait()
        assert checkpointer.steps() == []
    assert "could not be saved" in caplog.text


def test_every_part_of_every_array_is_looked_up(tmp_path):
    state = on_mesh({"a/x": jnp.zeros((8, 16)), "y": jnp.ones(())}, (4, 2))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
    folder = tmp_path / "checkpoints" / "1" / "state"
    assert missing_array(folder, ["a/x", "y"]) == ""
    assert missing_array(folder, ["a/x", "z"]) == "z"
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    store.delete_range(tensorstore.KvStore.KeyRange("a/x/3", "a/x/4")).result()
    assert missing_array(folder, ["a/x", "y"]) == "a part of a/x"


def test_only_the_latest_are_kept(tmp_path):
    state = {"x": jnp.arange(8.0)}
    with Checkpointer(tmp_path, 2) as checkpointer:
        for step in (1, 5, 9, 10):
            checkpointer.save(step, state)
        checkpointer.wait()
        assert checkpointer.steps() == [9, 10]
        checkpointer.save(10, state)  # a run that had nothing left to do
        with pytest.raises(ValueError, match="checkpoint step is 4: expected more than the latest, 10"):
            checkpointer.save(4, state)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "9"]


def test_torn_checkpoints_are_absent(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path, 9) as checkpointer:
        checkpointer.save(3, state)
    folder = tmp_path / "checkpoints"
    (folder / "12.orbax-checkpoint-tmp-9" / "state").mkdir(parents=True)
    (folder / "5").mkdir()
    for step, lost in ((6, "_CHECKPOINT_METADATA"), (7, "state/_METADATA"), (8, "state/manifest.ocdbt")):
        shutil.copytree(folder / "3", folder / str(step))
        (folder / str(step) / lost).unlink()
    shutil.copytree(folder / "3", folder / "9")
    (folder / "9" / "_CHECKPOINT_METADATA").write_text('{"item_handl')
    (folder / "notes").mkdir()
    (folder / "3 of May").mkdir()

    with Checkpointer(tmp_path, 9) as checkpointer:
        assert checkpointer.latest_step() == 3
        assert same_bits(checkpointer.restore(abstract(state)), state)
        with pytest.raises(ValueError, match=r"no checkpoint of step 7 in .*: found \[3\]"):
            checkpointer.restore(abstract(state), 7)
        assert (folder / "9").exists()  # whoever only reads removes nothing
        checkpointer.save(6, state)
        checkpointer.wait()
        assert checkpointer.steps() == [3, 6]
        assert same_bits(checkpointer.restore(abstract(state), 6), state)
    # What is not whole is set aside, drafts of killed saves are gone, folders of the user stay.
    assert sorted(os.listdir(folder)) == ["3", "3 of May", "6", *(f"damaged-{step}" for step in range(5, 10)), "notes"]


def flip(path):
    """Turns over a few bits in the middle of a file, which keeps its length."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["data", "metadata"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, what, caplog):
    with Checkpointer(tmp_path, 3) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"x": jnp.full(4096, step)})
    folder = tmp_path / "checkpoints" / "2" / "state"
    flip(max(folder.rglob("d/*"), key=lambda path: path.stat().st_size) if what == "data" else folder / "_METADATA")

    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.latest_step() == 2 and checkpointer.latest_intact_step() == 1
    wanted = abstract({"x": jnp.zeros(4096, int)})
    assert np.all(checkpointer.restore(wanted)["x"] == 1)
    with pytest.raises(ValueError, match=r"checkpoint .*/2 is damaged: .* differs from what was written"):
        checkpointer.restore(wanted, 2)
    assert "is damaged and passed over" in caplog.text
    # Whoever goes on from there makes room for the next one.
    checkpointer.forget_after(1)
    checkpointer.save(2, {"x": jnp.full(4096, 22)})
    assert np.all(checkpointer.restore(wanted)["x"] == 22)
    checkpointer.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2", "damaged-2"]


def test_every_so_many_steps_one_is_kept_for_good(tmp_path):
    with Checkpointer(tmp_path, 2, keep_every=4) as checkpointer:
        for step in range(2, 15, 2):
            checkpointer.save(step, {"x": jnp.arange(8.0)})
    assert checkpointer.steps() == [4, 8, 12, 14]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog):
    state, room = {"x": jnp.arange(4096.0)}, [1 << 40]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, room[0]))
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(1, state)
    room[0] = 1_000_000
    checkpointer.save(2, state)
    assert "step 2 could not be saved: 1.0 MB are free" in caplog.text and "steps [1] are there" in caplog.text
    with pytest.raises(checkpoint.SaveError, match="step 2 could not be saved"):
        checkpointer.wait()
    assert checkpointer.steps() == [1]
    room[0] = 1 << 40
    checkpointer.save(3, state)
    checkpointer.wait()
    assert checkpointer.steps() == [3]
    checkpointer.close()


def test_the_draft_of_a_killed_save_takes_no_room_from_the_next(tmp_path, monkeypatch):
    state, draft = {"x": jnp.arange(8.0)}, tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp-7"
    draft.mkdir(parents=True)

    def usage(path):
        return shutil._ntuple_diskusage(1 << 40, 0, 0 if draft.exists() else 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        assert same_bits(checkpointer.restore(abstract(state)), state)


def test_a_draft_that_cannot_be_removed_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    draft = tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp-7"
    draft.mkdir(parents=True)
    told, remove = [], shutil.rmtree

    def refuse(path, *arguments, **keywords):
        if path == draft:
            raise PermissionError(13, "Permission denied", str(path))
        remove(path, *arguments, **keywords)

    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", refuse)
            patched.setattr(checkpoint, "gathered", lambda problem: told.append(problem.item()) or problem)
            checkpointer.save(2, {"x": jnp.arange(8.0)})
        assert told == [True]  # every process gives this save up before any waits for another
        with pytest.raises(checkpoint.SaveError, match=r"step 2 could not be saved: .*Permission denied.*tmp-7"):
            checkpointer.wait()
        checkpointer.save(3, {"x": jnp.arange(8.0)})
    assert checkpointer.steps() == [3] and not draft.exists()


@pytest.mark.parametrize("what", ["a folder that cannot be made", "a file in its place"])
def test_a_folder_that_cannot_be_written_costs_a_checkpoint_and_no_thread_waits(tmp_path, monkeypatch, what):
    """Orbax's threads would wait ten minutes for a folder that Orbax could not make."""
    checkpointer = Checkpointer(tmp_path)
    if what == "a file in its place":
        checkpointer.directory.write_text("")
    else:
        make = os.mkdir

        def refuse(path, *arguments, **keywords):
            if "checkpoints/" in os.fspath(path):
                raise OSError(30, "Read-only file system")
            make(path, *arguments, **keywords)

        monkeypatch.setattr(os, "mkdir", refuse)
    before = set(threading.enumerate())
    checkpointer.save(1, {"x": jnp.arange(8.0)})
    with pytest.raises(checkpoint.SaveError, match=r"step 1 could not be saved: .*(Read-only|File exists|Not a dir)"):
        checkpointer.wait()
    assert set(threading.enumerate()) <= before


def test_a_defect_is_no_full_disk(tmp_path, monkeypatch):
    """An error that no disk causes keeps its traceback."""
    monkeypatch.setattr(Checkpointer, "_check_room", lambda self, state: {}["made up"])
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(KeyError, match="made up"):
        checkpointer.save(1, {"x": jnp.arange(8.0)})


def test_what_fails_in_the_middle_of_a_save_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    state, sums = {"x": jnp.arange(4096.0)}, checkpoint.write_sums
    checkpointer = Checkpointer(tmp_path, 2)
    checkpointer.save(1, state)
    checkpointer.wait()

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_sums", full)
    checkpointer.save(2, state)  # in the background
    with pytest.raises(checkpoint.SaveError, match=r"step 2 could not be saved: .*No space left on device"):
        checkpointer.wait()
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    monkeypatch.setattr(checkpoint, "write_sums", sums)
    checkpointer.save(3, state)
    assert same_bits(checkpointer.restore(abstract(state)), state)
    assert checkpointer.steps() == [1, 3]
    checkpointer.close()


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            make_state(width=24),
            r"params/decoder/kernel is float32\[16, 8\] in the checkpoint, float32\[24, 8\] here",
        ),
        (
            make_state(dtype=jnp.bfloat16),
            r"params/encoder/stages/0/kernel is float32\[8, 16\] in the checkpoint",
        ),
        (
            make_state()._replace(params={}),
            "params/decoder/kernel is only in the checkpoint; params/decoder/scale",
        ),
        (make_state()._replace(opt={"count": jnp.zeros(())}), "opt/count is not in the checkpoint"),
    ],
)
def test_another_configuration_is_one_clear_line(tmp_path, other, expected):
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, make_state())
        with pytest.raises(ValueError, match=expected) as caught:
            checkpointer.restore(abstract(other))
    assert "\n" not in str(caught.value)
    assert "another configuration" in str(caught.value)


def test_nothing_to_restore(tmp_path):
    with (
        Checkpointer(tmp_path / "new", 1) as checkpointer,
        pytest.raises(ValueError, match=r"no checkpoint in .*: found none"),
    ):
        checkpointer.restore(abstract({"x": jnp.zeros(3)}))
    assert not (tmp_path / "new").exists()


WRITER = """
import sys, jax.numpy as jnp
from greenjax.runtime import checkpoint, checkpoint_folder
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.checkpoint_folder import missing_array
checkpointer = Checkpointer(sys.argv[1], 2)
for step in range(1, 10_000):
    checkpointer.save(step, {"x": jnp.full((64, 4096), step, jnp.int32)})
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03])
def test_killed_in_the_middle_of_saving(tmp_path, delay):
    """Kill -9 while saves follow each other without a pause: the latest is whole, and saving goes on."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 4:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    wanted = abstract({"x": jnp.zeros((64, 4096), jnp.int32)})
    with Checkpointer(tmp_path, 2) as checkpointer:
        latest = checkpointer.latest_step()
        assert latest is not None and latest >= 2
        for step in checkpointer.steps():
            assert np.all(np.asarray(checkpointer.restore(wanted, step)["x"]) == step)
        checkpointer.save(latest + 1, {"x": jnp.full((64, 4096), -1, jnp.int32)})
        checkpointer.wait()
        assert checkpointer.latest_step() == latest + 1
