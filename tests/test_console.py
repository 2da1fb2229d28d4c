"""What a command says: it never ends because nobody can read it, and its warnings have one form."""

import errno
import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from absl import logging as absl_logging

from greenjax.runtime import console
from greenjax.runtime.files import read_metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _first_loss(monkeypatch):
    """Each test loses its output for the first time."""
    for output in console._OUTPUTS.values():
        monkeypatch.setattr(output, "_lost", False)


class Failing(io.StringIO):
    """A stream that fails with an error of the system, until it is told to work."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EAGAIN])
def test_output_that_cannot_be_written_is_told_once_and_missed(monkeypatch, capsys, number):
    monkeypatch.setattr(sys, "stdout", Failing(number))
    for _ in range(3):
        console.say("a line")
    expected = f"warning: standard output cannot be written ({os.strerror(number)}): the command goes on without it\n"
    assert capsys.readouterr().err == expected


def test_neither_output_can_be_written(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(errno.EPIPE))
    monkeypatch.setattr(sys, "stderr", Failing(errno.ENOSPC))
    console.say("a line")
    console.warn("a warning")


def test_lines_come_again_when_a_disk_has_room_again(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", stream := Failing(errno.ENOSPC))
    console.say("lost")
    stream.number = 0
    console.say("written")
    assert stream.getvalue() == "written\n"


def test_whoever_writes_to_a_closed_pipe_afterwards_gets_no_error(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console.say("nobody reads")
        print("a library's line", flush=True)
        os.write(stream.fileno(), b"a library in C")


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_command_started_without_output_runs(monkeypatch, stream):
    if stream:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    console.say("nowhere")


@pytest.mark.parametrize(("index", "first"), [(None, True), ("", True), ("0", True), ("00", True), ("1", False)])
def test_the_first_process_of_a_run_speaks_and_all_may_warn(monkeypatch, capsys, index, first):
    monkeypatch.setattr(console, "_silent", False)
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    if index is not None:
        monkeypatch.setenv("JAX_PROCESS_ID", index)
    console.say("a command of one process")
    console.first_speaks()
    console.say("a line")
    console.warn("a warning")
    assert capsys.readouterr() == ("a command of one process\n" + "a line\n" * first, "warning: a warning\n")


def test_names_that_the_output_cannot_spell_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    console.say("Käfer \udcff")
    assert written.getvalue() == b"K\\xe4fer \\udcff\n"


def test_warnings_have_one_form_whoever_gives_them(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers, absl_logging.get_absl_handler()])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for _ in range(2):  # a second time changes nothing
        console.set_up()
    absl_logging.warning("%s is damaged", "a checkpoint")
    absl_logging.info("a library's chatter")
    logging.getLogger("some.library").warning("no GPU")  # convert changes the level of JAX's
    logging.getLogger("orbax").info("more chatter")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("donated buffers were not usable", stacklevel=1)
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == ["warning: a checkpoint is damaged", "warning: no GPU"]
    assert last.startswith("warning: donated buffers were not usable (") and "test_console.py:" in last


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_run_outlives_its_output(tmp_path):
    """Standard output is a pipe that nobody reads, standard error a disk that is full."""
    tiny = {
        "model.embed_dim": 16,
        "model.depths": "(1,1)",
        "model.num_heads": "(1,2)",
        "decoder.dim": 16,
        "decoder.num_heads": 2,
        "data.batch_size": 16,
        "mask.groups": 8,
        "steps": 3,
        "optim.warmup_steps": 1,
        "data.eval_split": "",
    }
    overrides = [f"--config.{key}={value}" for key, value in tiny.items()]
    command = [sys.executable, "-m", "greenjax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, open(writer, "w") as unread:
        done = subprocess.run([*command, *overrides], stdout=unread, stderr=full, cwd=ROOT)
    assert done.returncode == 0
    assert read_metrics(tmp_path)[-1]["step"] == 3
    assert (tmp_path / "checkpoints" / "3").is_dir()
