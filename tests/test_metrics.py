"""What a run leaves to look at, also when it is cut short and resumed."""

import io
import json
import resource
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import small_config
from tensorboardX.proto.event_pb2 import Event

from greenjax.config import flags, load_config, resolve
from greenjax.errors import InputError
from greenjax.runtime import console
from greenjax.runtime.files import read_metrics
from greenjax.training import progress
from greenjax.training.metrics import MetricsWriter
from greenjax.training.record import record_config


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Every event that TensorBoard would find: a file is a row of (length, checksum, event, checksum)."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_lines_and_events_hold_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path, total=20) as writer:
        writer.write(0, {"held_out_loss": 1.5})
        writer.write(10, {"loss": 0.25, "images_per_second": np.float32(64.0), "skipped": 3})
        assert len(lines(tmp_path)) == 2  # at once: nothing is lost by kill -9
    assert lines(tmp_path)[1] == {"step": 10, "loss": 0.25, "images_per_second": 64.0, "skipped": 3}
    found = {(e.step, v.tag): v.simple_value for e in events(tmp_path) for v in e.summary.value}
    assert found[0, "held_out_loss"] == 1.5
    assert found[10, "loss"] == 0.25


def test_a_loss_that_is_not_a_number_stays_valid_json(tmp_path):
    with MetricsWriter(tmp_path, total=20) as writer:
        writer.write(1, {"loss": float("nan"), "images_per_second": float("inf")})
    assert lines(tmp_path) == [{"step": 1, "loss": None, "images_per_second": None}]


def test_a_resumed_run_repeats_no_line(tmp_path):
    with MetricsWriter(tmp_path, total=20) as writer:
        for step in range(0, 11, 2):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with MetricsWriter(tmp_path, total=20, start=4) as writer:
        assert [line["step"] for line in lines(tmp_path)] == [0, 2, 4]
        writer.write(6, {"loss": 60.0})
    assert [line["loss"] for line in lines(tmp_path)] == [0.0, 2.0, 4.0, 60.0]
    restarts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert restarts[-1] == 5  # TensorBoard forgets what was logged from here on


def test_a_run_from_the_beginning_starts_an_empty_file(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path, total=20) as writer:
            writer.write(0, {"held_out_loss": 1.0})
    assert lines(tmp_path) == [{"step": 0, "held_out_loss": 1.0}]


def loss_and_speed(loss, speed=64.0):
    return lambda: {"loss": loss, "images_per_second": speed}


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, to be set."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_lines_of_text(tmp_path, capsys, clock):
    with MetricsWriter(tmp_path, total=400) as writer:
        writer.phase("compiling")
        writer.write(0, {"held_out_loss": 1.5})
        for step in range(1, 201):
            clock[0] += 1
            if step % 100 == 0:
                writer.write(
                    step, {"loss": 0.51239, "images_per_second": 1234.5, "grad_norm": 2.0, "skipped": step // 99}
                )
            writer.moved(step, loss_and_speed(step))
            writer.phase("held-out loss")
    assert capsys.readouterr().out.splitlines() == [
        "compiling ...",
        "step 0/400  held_out_loss 1.5",
        "step 1/400  loss 1  images/s 64",  # at once
        "step 61/400  loss 61  images/s 64  5 min 39 s left",  # a minute without a word
        "step 100/400  loss 0.5124  images/s 1,234  skipped 1  5 min 00 s left",
        "step 160/400  loss 160  images/s 64  4 min 00 s left",
        "step 200/400  loss 0.5124  images/s 1,234  skipped 2  3 min 20 s left",
    ]


def test_steps_that_lines_of_metrics_tell_are_not_told_twice(tmp_path, capsys, clock):
    with MetricsWriter(tmp_path, total=44, start=41) as writer:
        writer.moved(41, loss_and_speed(9.0))  # done by the process before
        for step in (42, 43):
            clock[0] += 100
            writer.write(step, {"loss": 0.5, "images_per_second": 64.0})
            writer.moved(step, loss_and_speed(0.5))
    assert [line[:10] for line in capsys.readouterr().out.splitlines()] == ["step 42/44", "step 43/44"]


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and error are the same terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(console._Output, "isatty", lambda self: True)


def test_a_terminal_gets_a_line_that_moves_with_every_step(tmp_path, terminal, capsys, clock):
    with MetricsWriter(tmp_path, total=20) as writer:
        display = writer._display
        writer.phase("compiling the update")
        assert "step 0/20" in drawn(display) and "compiling the update" in drawn(display)
        writer.write(0, {"held_out_loss": 1.5})
        writer.moved(1, loss_and_speed(0.75))
        assert "step 1/20" in drawn(display) and "loss 0.75" in drawn(display)
        clock[0] += 0.01
        writer.moved(2, loss_and_speed(0.7))  # sooner than anybody can read
        assert "step 1/20" in drawn(display)
        clock[0] += 1
        writer.write(10, {"loss": 0.25, "images_per_second": 64.0})
        writer.moved(10, loss_and_speed(float("nan")))  # nothing is known since the line
        assert "step 10/20" in drawn(display) and "loss 0.25  images/s 64" in drawn(display)
        writer.phase("saving")
        assert "saving" in drawn(display)
    assert "loss 0.25  images/s 64" in drawn(display)  # what stays
    assert "step 0/20  held_out_loss 1.5" in capsys.readouterr().out


def drawn(display):
    """The bar as it is now."""
    console = Console(file=io.StringIO(), width=100)
    console.print(display._bar.get_renderable())
    return console.file.getvalue()


def test_warnings_stand_above_the_bar(tmp_path, terminal, capsys):
    with MetricsWriter(tmp_path, total=20):
        console.warn("one image is damaged")
        console.say("a line")
        out, err = capsys.readouterr()
    assert "\nwarning: one image is damaged\n" in out.replace("\x1b[2K", "").replace("\r", "\n")
    assert not err


def test_warnings_stay_in_the_file_that_standard_error_is(tmp_path, terminal, monkeypatch, capsys):
    monkeypatch.setattr(console._OUTPUTS["stderr"], "isatty", lambda: False)
    with MetricsWriter(tmp_path, total=20):
        console.warn("one image is damaged")
    assert capsys.readouterr().err == "warning: one image is damaged\n"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path, terminal, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")
    with MetricsWriter(tmp_path, total=20) as writer:
        writer.write(10, {"loss": 0.25, "images_per_second": 64.0})
    assert capsys.readouterr().out == "step 10/20  loss 0.25  images/s 64\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (192, "3 min 12 s"), (25500, "7 h 05 min")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_pictures(tmp_path):
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3)).save(tmp_path / "p.png")
    with MetricsWriter(tmp_path, total=20) as writer:
        writer.image(5, tmp_path / "p.png")
    (found,) = [value.image for event in events(tmp_path) for value in event.summary.value]
    assert (found.height, found.width, found.colorspace) == (2, 4, 3)
    assert found.encoded_image_string == (tmp_path / "p.png").read_bytes()


@pytest.fixture
def small_files():
    """Has files of this process end after so many bytes, as on a full disk; None: as before."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


def test_a_full_disk_delays_metrics_and_tears_none(tmp_path, small_files, caplog):
    with MetricsWriter(tmp_path, total=20) as writer:
        writer.write(1, {"loss": 1.0})
        small_files((tmp_path / "metrics.jsonl").stat().st_size + 10)  # in the middle of a line
        for step in range(2, 15):  # tensorboardX's own writer stands still at the twelfth event
            writer.write(step, {"loss": float(step)})
        assert len(caplog.messages) == 2 and "metrics.jsonl cannot be written (File too large)" in caplog.messages[0]
        small_files(None)
        writer.write(15, {"loss": 15.0})
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 16))
    assert [event.step for event in events(tmp_path) if event.summary.value] == list(range(1, 16))


def test_what_a_full_disk_never_took_is_told(tmp_path, small_files, caplog):
    with MetricsWriter(tmp_path, total=20) as writer:
        writer.write(1, {"loss": 1.0})
        small_files(40)
        writer.write(2, {"loss": 2.0})
    small_files(None)
    assert "metrics.jsonl lacks its last" in caplog.messages[-1]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


CONFIG = "configs/digits.py"


def test_config_and_versions_are_left_in_the_workdir(tmp_path):
    config = load_config(CONFIG)
    record_config(tmp_path / "run", config, images=9, resuming=False)
    assert resolve(json.loads((tmp_path / "run" / "config.json").read_text())) == config
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert {"greenjax", "python", "jax", "flax", "devices"} <= versions.keys()


def test_harmless_keys_may_change_on_the_way(tmp_path):
    record_config(tmp_path, load_config(CONFIG), images=9, resuming=False)
    changed = load_config(CONFIG, {"log.every": 7, "data.workers": 3, "log.keep": 9})
    record_config(tmp_path, changed, images=9, resuming=True)
    assert resolve(json.loads((tmp_path / "config.json").read_text())) == changed


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"optim.b2": 0.5}, "optim.b2 is 0.95 there, 0.5 here"),
        ({"steps": 5000}, "steps is"),
        ({"seed": 4}, "seed is 0 there, 4 here"),
        ({"image_size": (32, 64)}, r"image_size is \[32, 32\] there, \[32, 64\] here"),
    ],
)
def test_another_config_is_refused_on_resume_only(tmp_path, overrides, expected):
    first, other = load_config(CONFIG), load_config(CONFIG, overrides)
    record_config(tmp_path, first, images=9, resuming=False)
    record_config(tmp_path, first, images=9, resuming=True)
    with pytest.raises(ValueError, match=expected) as caught:
        record_config(tmp_path, other, images=9, resuming=True)
    assert "\n" not in str(caught.value) and "--workdir" in str(caught.value)
    assert resolve(json.loads((tmp_path / "config.json").read_text())) == first
    record_config(tmp_path, other, images=9, resuming=False)
    assert resolve(json.loads((tmp_path / "config.json").read_text())) == other


def test_a_run_whose_init_is_gone_goes_on_with_the_flags_that_are_told(tmp_path):
    """Its settings came from there: without it they are those of the config file."""
    init, workdir, recipe = tmp_path / "my init", tmp_path / "run", Path(CONFIG).with_name("finetune_swin_b.py")
    init.mkdir()
    settings = dict(model__depths=(1, 1), model__window=2, model__in_channels=1, data__mean=(0.3,))
    (init / "config.json").write_text(json.dumps(small_config(**settings).to_dict()))
    config = load_config(recipe, {"init": str(init)})
    record_config(workdir, config, images=9, resuming=False)
    (init / "config.json").unlink()
    init.rmdir()
    with pytest.raises(
        ValueError, match=r"my init' is not there, and .*/run has settings from it: expected"
    ) as refused:
        record_config(workdir, load_config(recipe, {"init": str(init)}), images=9, resuming=True)
    typed = str(refused.value).partition("the same command with ")[2]
    again = ["main", f"--config={recipe}", f"--config.init={init}", *shlex.split(typed)]
    record_config(workdir, flags.parse_command(flags.Parser("main"), again)[1], images=9, resuming=True)


def test_keys_younger_than_the_run_had_their_default(tmp_path):
    config = load_config(CONFIG)
    record_config(tmp_path, config, images=9, resuming=False)
    older = json.loads((tmp_path / "config.json").read_text())
    del older["mask"]["pool"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    record_config(tmp_path, config, images=9, resuming=True)
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"mask.pool is 0 there, 5 here"):
        record_config(tmp_path, load_config(CONFIG, {"mask.pool": 5}), images=9, resuming=True)


def test_a_training_split_of_another_length_is_refused(tmp_path):
    config = load_config(CONFIG)
    record_config(tmp_path, config, images=9, resuming=False)
    with pytest.raises(InputError, match="was begun with 9 training images, now there are 8"):
        record_config(tmp_path, config, images=8, resuming=True)


def test_a_training_split_of_other_images_is_refused(tmp_path):
    """As many, but other ones: files that came and went."""
    config = load_config(CONFIG)
    record_config(tmp_path, config, images=9, resuming=False, listing="aa")
    record_config(tmp_path, config, images=9, resuming=True, listing="aa")
    with pytest.raises(InputError, match=r"was begun with other training images, as many, .* --config.init="):
        record_config(tmp_path, config, images=9, resuming=True, listing="ab")
    (tmp_path / "data.json").write_text('{"images": 9}')  # of an earlier version
    record_config(tmp_path, config, images=9, resuming=True, listing="ab")


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"'.*file/run/config.json' cannot be written: Not a directory"):
        record_config(tmp_path / "file" / "run", load_config(CONFIG), images=9, resuming=False)


def test_metrics_are_written_without_pytorch(tmp_path):
    """Its import takes longer than that of all else, and is still possible afterwards."""
    script = """
import sys
from pathlib import Path
from greenjax.training.metrics import MetricsWriter
with MetricsWriter(Path(sys.argv[1]), total=1) as writer:
    writer.write(1, {"loss": 0.5})
assert "torch" not in sys.modules
import torch
torch.zeros(1)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(e.summary.value for e in events(tmp_path))
