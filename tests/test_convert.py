"""The convert command: a run's weights out, a file's weights in, and training that goes on from them."""

import json
import shlex
import shutil
import subprocess
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from small import ONE_STAGE, small_config

import greenjax
from greenjax import convert, main
from greenjax.config.inherit import recorded
from greenjax.errors import InputError
from greenjax.interop import loading
from greenjax.interop.layouts import layout_names
from greenjax.interop.loading import initial_model
from greenjax.interop.pretrained import load_placed
from greenjax.interop.weights import flat_weights
from greenjax.runtime.checkpoint import Checkpointer, SaveError
from greenjax.tasks import finetune, pretrain
from greenjax.training import start
from greenjax.training.start import write_start

RUN = dict(
    model__depths=(1, 1), steps=4, ema=0.5, log__checkpoint_every=2, optim__base_lr=1e-2, mesh__data=1, model__patch=2
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pretrain(small_config(**RUN), workdir)


def command(*arguments):
    convert.main(["greenjax.convert", *map(str, arguments)])


def refused(*arguments):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code != 0
    return str(ended.value.code)


def config_file(folder, **overrides):
    """A config file of the same settings as small_config(**overrides)."""
    settings = greenjax.flatten(small_config(**overrides))
    path = folder / "config.py"
    path.write_text(f"def get_config():\n    return {settings!r}\n")
    return path


def test_the_average_of_the_weights_is_exported_and_comes_back(run, tmp_path, capsys):
    workdir, state = run
    output = tmp_path / "weights.safetensors"
    command("to-torch", "--workdir", workdir, "--layout", "greenmim", "--output", output)
    assert "swin_t of step 4, layout greenmim" in capsys.readouterr().out
    config = small_config(**RUN)
    back = flat_weights(greenjax.load_torch(output, config, "greenmim"))
    scale = state.ema["encoder"]["norm"]["scale"]
    np.testing.assert_array_equal(back["encoder/norm/scale"], scale)
    assert not np.array_equal(scale, state.params["encoder"]["norm"]["scale"])
    loaded = flat_weights(greenjax.load(workdir))
    for name, value in back.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_any_step_and_the_encoder_alone(run, tmp_path, capsys):
    workdir, _ = run
    output = tmp_path / "weights.pth"
    command("to-torch", "--workdir", workdir, "--step", 2, "--layout", "timm", "--output", output)
    assert "of step 2" in (said := capsys.readouterr().out)
    assert "left out: decoder" in said
    output = tmp_path / "weights.safetensors"
    command("to-torch", "--workdir", workdir, "--layout", "greenmim", "--encoder-only", "--output", output)
    assert all(name.startswith("encoder.") for name in load_file(output))
    with safe_open(output, "np") as opened:
        assert opened.metadata()["step"] == "4"
    assert "decoder.dim" not in recorded(str(output))  # no pre-training goes on with it
    assert "found [2, 4]" in refused(
        "to-torch", "--workdir", workdir, "--step", 3, "--layout", "timm", "--output", output
    )


def test_another_image_size_resizes_tables_and_makes_its_buffers(run, tmp_path, capsys):
    """Grids of 16 and 8 at 32 pixels become 8 and 4; with 12 pixels 6 and 3, and the window of 4 shrinks to 3."""
    workdir, _ = run
    output = tmp_path / "weights.safetensors"
    arguments = ("to-torch", "--workdir", workdir, "--layout", "swin", "--output", output)
    command(*arguments, "--image-size", "16")
    assert "resized" not in capsys.readouterr().out
    assert load_file(output)["layers.1.blocks.0.attn.relative_position_index"].shape == (16, 16)
    assert "cannot run: expected multiples of 4" in refused(*arguments, "--image-size", "12")
    command("to-torch", "--workdir", workdir, "--layout", "timm", "--output", output, "--image-size", "12")
    assert "from window 4 to 3" in capsys.readouterr().out
    assert "image-size is 'x': expected pixels" in refused(*arguments, "--image-size", "x")


def test_training_goes_on_from_a_files_weights(run, tmp_path, capsys):
    workdir, state = run
    weights, fresh = tmp_path / "weights.safetensors", tmp_path / "fresh"
    command("to-torch", "--workdir", workdir, "--layout", "greenmim", "--output", weights)
    config = config_file(tmp_path, **RUN)
    into = ("from-torch", "--config", config, "--layout", "greenmim", "--input", weights, "--workdir", fresh)
    command(*into)
    assert f"python -m greenjax.main --config {config} --workdir {fresh}" in capsys.readouterr().out
    start, step = Checkpointer(fresh).weights()
    assert step == 0
    np.testing.assert_array_equal(start["encoder/norm/scale"], state.ema["encoder"]["norm"]["scale"])
    assert "has checkpoints of steps [0]: expected a new folder" in refused(*into)
    command("to-torch", "--workdir", fresh, "--layout", "greenmim", "--output", tmp_path / "again.safetensors")
    for name, value in load_file(weights).items():
        np.testing.assert_array_equal(load_file(tmp_path / "again.safetensors")[name], value)

    pretrain(small_config(**RUN), fresh)
    init = tmp_path / "init"
    pretrain(small_config(**RUN, init=str(weights)), init)
    assert "starting from" in capsys.readouterr().out
    lines = [json.loads(line) for line in (fresh / "metrics.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (init / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in others]
    scratch = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] < scratch[0]


def test_a_workdir_that_cannot_be_written_is_one_line(run, tmp_path, monkeypatch):
    def fail(*_):
        raise SaveError("step 0 could not be saved: No space left on device")

    workdir, _ = run
    weights = tmp_path / "weights.safetensors"
    command("to-torch", "--workdir", workdir, "--layout", "greenmim", "--output", weights)
    monkeypatch.setattr(Checkpointer, "save", fail)
    config = config_file(tmp_path, **RUN)
    line = refused(
        "from-torch", "--config", config, "--layout", "greenmim", "--input", weights, "--workdir", tmp_path / "fresh"
    )
    assert line == "greenjax.convert: step 0 could not be saved: No space left on device"


def test_a_classifier_from_a_file_is_trained_by_the_printed_line(run, tmp_path, capsys):
    """Of a file without a head nobody knows the number of classes: checkpoint 0 would lack a head."""
    workdir, _ = run
    weights, fresh = tmp_path / "weights.safetensors", tmp_path / "fresh"
    command("to-torch", "--workdir", workdir, "--layout", "swin", "--encoder-only", "--output", weights)
    config = config_file(tmp_path, **RUN, task="finetune")
    into = ("from-torch", "--config", config, "--layout", "swin", "--input", weights, "--workdir", fresh)
    init = f"--config.init={weights}"
    assert refused(*into).endswith(
        f"has no head: expected --config.model.num_classes=N, or training that starts from the file, with {init}"
    )
    assert refused(*into, "--new-head").endswith(f"with {init} --config.new_head")
    assert not fresh.exists()
    capsys.readouterr()
    command(*into, "--config.model.num_classes=10")
    printed = capsys.readouterr().out.partition("training goes on from there: python -m ")[2]
    arguments, trained = main.parse(shlex.split(printed))
    finetune(trained, arguments.workdir)
    assert Checkpointer(fresh).latest_intact_step() == RUN["steps"]


def test_weights_of_another_program_are_found_or_said(run, tmp_path, capsys):
    """A file with a student and its teacher behind prefixes."""
    import torch

    workdir, _ = run
    config, plain = config_file(tmp_path, **RUN), tmp_path / "plain.safetensors"
    command("to-torch", "--workdir", workdir, "--layout", "swin", "--output", plain)
    student = {f"student.{name}": torch.tensor(value) for name, value in load_file(plain).items()}
    teacher = {name.replace("student", "teacher"): value for name, value in student.items()}
    teacher |= {"teacher.norm.weight": student["student.norm.weight"] + 1}
    torch.save({"epoch": 3, "state_dict": student | teacher}, tmp_path / "both.pth")
    into = ("from-torch", "--config", config, "--layout", "swin", "--input", tmp_path / "both.pth", "--workdir")
    command(*into, tmp_path / "teacher")
    assert "prefix 'teacher.' was taken, a moving average; from-torch --prefix student. takes the other" in (
        capsys.readouterr().out
    )
    command(*into, tmp_path / "student", "--key", "state_dict", "--prefix", "student.")
    for name in ("teacher", "student"):
        weights, _ = Checkpointer(tmp_path / name).weights()
        expected = (student | teacher)[f"{name}.norm.weight"]
        np.testing.assert_array_equal(weights["encoder/norm/scale"], expected.numpy())
    assert "key is 'model': the file has 'state_dict'" in refused(*into, tmp_path / "new", "--key", "model")
    assert not (tmp_path / "new").exists()


CLASSIFIER = ONE_STAGE | dict(task="finetune", model__num_classes=10, mesh__data=1)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The workdir that from-torch makes."""
    workdir, config = tmp_path_factory.mktemp("converted"), small_config(**CLASSIFIER)
    write_start(workdir, greenjax.build(config), config)
    return workdir


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(model__norm_epsilon=1e-3), r"model.norm_epsilon is 1e-05 there, 0.001 here: use another --workdir"),
        (dict(model__window=2), r"model.window is 4 there, 2 here"),
        (dict(model__embed_dim=16), r"model.embed_dim is 8 there, 16 here"),
        (dict(model__num_classes=12), r"belongs to another configuration: params/head/"),
        (dict(ema=0.5), r"ema/encoder/.* is not in the checkpoint"),
    ],
)
def test_a_start_that_converted_weights_do_not_fit_is_refused_and_leaves_their_settings(converted, changes, expected):
    before = sorted((path, path.read_bytes()) for path in converted.iterdir() if path.is_file())
    with pytest.raises(InputError, match=expected):
        finetune(small_config(**CLASSIFIER | changes), converted)
    assert sorted((path, path.read_bytes()) for path in converted.iterdir() if path.is_file()) == before


def test_converted_weights_take_other_settings_of_training_and_images(converted, tmp_path, monkeypatch):
    workdir = shutil.copytree(converted, tmp_path / "run")
    monkeypatch.setattr(start, "_first_state", Mock(side_effect=KeyboardInterrupt))
    changed = small_config(**CLASSIFIER | dict(image_size=32, model__drop_path=0.1, model__dtype="bfloat16", steps=7))
    with pytest.raises(KeyboardInterrupt):
        finetune(changed, workdir)
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(changed.to_dict()))


def test_init_takes_a_workdir_of_another_window(run, tmp_path, capsys):
    workdir, _ = run
    pretrain(small_config(**RUN | dict(model__window=8, steps=1), init=str(workdir)), tmp_path)
    assert "resized (geometric) from window 4 to 8" in capsys.readouterr().out


def test_what_cannot_start_a_run_is_refused(run, tmp_path):
    workdir, _ = run
    wider = small_config(**RUN | dict(model__embed_dim=16, model__num_heads=(2, 4)), init=str(workdir))
    with pytest.raises(ValueError, match=r"the weights do not fit the model, \d+ misfits:\n  .* in the model"):
        pretrain(wider, tmp_path)
    with pytest.raises(ValueError, match=r"expected the folder of a run, with config.json and checkpoints"):
        pretrain(small_config(**RUN, init=str(tmp_path / "nothing")), tmp_path)
    twins = small_config("twins", steps=1, init=str(workdir))
    with pytest.raises(ValueError, match="a swin_t: expected a twins_s"):
        pretrain(twins, tmp_path)


def test_ctrl_c_is_one_line(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_run", interrupted)
    said = refused("to-torch", "--workdir", run[0], "--layout=timm", "--output=a.safetensors")
    assert said == "greenjax.convert: stopped; the same command begins anew"


def test_errors_of_the_command_are_one_line_and_a_status(tmp_path):
    arguments = ["to-torch", "--workdir", str(tmp_path), "--layout", "timm", "--output", str(tmp_path / "a.pth")]
    done = subprocess.run([sys.executable, "-m", "greenjax.convert", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"greenjax.convert: workdir {str(tmp_path)!r}: expected the folder of a run, with config.json and checkpoints"
    )
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(
    ("command", "argument", "expected"),
    [
        ("from-torch", "--new_head", "expected --new-head"),
        ("from-torch", "--prefx=student.", "expected --prefix"),
        ("from-torch", "--work_dir=runs/a", "expected --workdir"),
        ("from-torch", "--learning_rate=1", "expected --config.optim.base_lr=VALUE"),
        ("to-torch", "--encoder_only", "expected --encoder-only"),
        ("to-torch", "--learning_rate=1", "--help lists the flags"),
        ("extract", "--trsut", "expected --trust"),
    ],
)
def test_an_unknown_flag_gets_the_nearest_of_its_command(command, argument, expected, tmp_path):
    paths = ["--output", "a.pth"] if command != "from-torch" else ["--config", config_file(tmp_path, **RUN)]
    paths += ["--input", "a"] if command != "to-torch" else []
    paths += ["--workdir", "w", "--layout", "swin"] if command != "extract" else []
    said = refused(command, *paths, argument)
    assert said.endswith(f"argument {argument!r} is not understood: {expected}")


def test_a_workdir_may_be_named_like_a_file(run, tmp_path):
    """An init of that name is taken as the run it is."""
    workdir = tmp_path / "run.pt"
    workdir.symlink_to(run[0])
    model, _ = initial_model(small_config(**RUN | dict(init=str(workdir))))
    for name, value in flat_weights(greenjax.load(run[0])).items():
        np.testing.assert_array_equal(flat_weights(model)[name], value, err_msg=name)


def test_an_export_in_the_workdir_of_a_run_does_not_take_its_place(run, tmp_path):
    """Everything that takes a run reads its last checkpoint, not the export of an earlier one."""
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    export = workdir / "model.safetensors"
    command("to-torch", "--workdir", workdir, "--step", 2, "--layout", "timm", "--output", export)
    last = flat_weights(greenjax.load(workdir))
    initial, _ = initial_model(small_config(**RUN, init=str(workdir)))
    for model in (initial, greenjax.load_pretrained(workdir), load_placed(str(workdir))[0]):
        for name, value in flat_weights(model).items():
            np.testing.assert_array_equal(value, last[name], err_msg=name)
    assert not np.array_equal(load_file(export)["norm.weight"], last["encoder/norm/scale"])
    assert recorded(str(workdir))["data.source"] == "digits" and "data.source" not in recorded(str(export))
    with pytest.raises(ValueError, match=r"a run of greenjax, which --config\.init and to-torch take"):
        greenjax.load_torch(workdir, small_config(**RUN), "timm")


def test_layouts_of_the_command_are_those_there_are():
    of_libraries = {"timm", "hf", "mmdet", "torchvision"}
    official = {"swin", "twins", "convnext", "fcmae", "hiera", "hiera_mae", "pvt_v2", "greenmim", "simmim"}
    assert set(layout_names()) == of_libraries | official


def test_weights_alone_are_read_from_a_checkpoint_on_any_mesh(run):
    workdir, state = run
    weights, step = Checkpointer(workdir).weights(4)
    assert step == 4
    leaves = jax.tree.leaves(state.ema)
    assert len(weights) == len(leaves)
    assert sum(value.size for value in weights.values()) == sum(leaf.size for leaf in leaves)
