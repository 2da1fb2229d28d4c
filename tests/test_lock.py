"""One writer a folder, told in one line; what a dead process left is in nobody's way."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
from small import small_config

from greenjax.data.prepare.__main__ import main as prepare
from greenjax.errors import InputError
from greenjax.runtime import lock
from greenjax.runtime.lock import LOCK, held
from greenjax.tasks import evaluate_classifier, evaluate_knn, finetune, pretrain

IN_USE = rf"is in use by process {os.getpid()} on host \S+, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: stop it, or use"


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "a" / "run"
    with held(folder, "--workdir"):
        with pytest.raises(InputError, match=rf"{re.escape(str(folder))} {IN_USE} another --workdir") as caught:
            held(folder, "--workdir").__enter__()
        assert "\n" not in str(caught.value)
        with held(tmp_path / "a", "--workdir"):  # a sweep and its runs
            pass
        (folder / "result").write_text("")
    assert os.listdir(folder) == ["result"]  # no trace of the lock
    with held(folder, "--workdir"):
        pass


def test_a_folder_made_for_nothing_goes_away(tmp_path):
    with pytest.raises(KeyError), held(tmp_path / "a" / "b", "--workdir"):
        raise KeyError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("task", [pretrain, finetune, evaluate_classifier, evaluate_knn])
def test_a_task_leaves_the_folder_of_another_alone(tmp_path, task):
    """The second run neither removes checkpoints of the first nor touches its metrics."""
    with held(tmp_path, "--workdir"), pytest.raises(InputError, match=f"{IN_USE} another --workdir"):
        task(small_config(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_preparation_leaves_the_folder_of_another_alone(tmp_path):
    command = ["prepare", "--config=configs/digits.py", f"--output={tmp_path / 'out'}", "--splits", "test"]
    with held(tmp_path / "out", "--output"), pytest.raises(SystemExit) as caught:
        prepare(command)
    assert re.fullmatch(rf"greenjax.data.prepare: .*/out {IN_USE} another --output", str(caught.value))
    prepare(command)
    assert "records.json" in os.listdir(tmp_path / "out")


HOLDER = """
import sys
from pathlib import Path
from greenjax.runtime.lock import held
with held(Path(sys.argv[1]), "--workdir"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"in use by process {process.pid} on host {socket.gethostname()}"):
        held(tmp_path, "--workdir").__enter__()
    process.kill()
    process.communicate()
    assert os.listdir(tmp_path) == [LOCK]  # its note is still there
    with held(tmp_path, "--workdir"):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_what_another_machine_left_is_told(tmp_path, caplog, monkeypatch):
    note = {"process": 7, "host": "elsewhere", "started": "2026-01-01 00:00:00"}
    (tmp_path / LOCK).write_text(json.dumps(note))
    with held(tmp_path, "--workdir"):
        assert "left by process 7 on host elsewhere, started 2026-01-01 00:00:00" in caplog.text
        monkeypatch.setattr(lock.socket, "gethostname", lambda: "third")
        with pytest.raises(InputError, match=r"if that machine is gone, remove .*/\.lock"):
            held(tmp_path, "--workdir").__enter__()


def test_a_file_system_without_locks_costs_a_warning(tmp_path, caplog, monkeypatch):
    def unsupported(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with held(tmp_path, "--workdir"):
        assert "cannot be locked (Operation not supported)" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        with pytest.raises(InputError, match=rf"--workdir '{path}' cannot be written: {reason}"):
            held(path, "--workdir").__enter__()

    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(InputError, match=r"--workdir .* cannot be written: Read-only file system"):
        held(tmp_path / "new", "--workdir").__enter__()
    assert not (tmp_path / "new").exists()
