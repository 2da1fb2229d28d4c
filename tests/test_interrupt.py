"""Signals that ask a run to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import small_config

from greenjax.runtime.placement import Placement
from greenjax.training.interrupt import Interruption
from greenjax.training.sharding import make_mesh


@pytest.fixture(autouse=True)
def _usual_handlers():
    """As in a command typed at a terminal, also where the tests are started by nohup or in the background."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interruption():
    return Interruption(Placement(make_mesh(small_config())))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_taken_and_told(interruption, number, capsys):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with interruption:
        assert not interruption.asked()
        os.kill(os.getpid(), number)
        assert interruption.asked() and interruption.signal == number.name
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_second_ctrl_c_ends_at_once(interruption):
    with interruption:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_hangs_up_more_than_once(interruption, first):
    with interruption:
        os.kill(os.getpid(), first)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.signal == first.name


def test_a_run_started_by_nohup_outlives_its_terminal(interruption):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not interruption.asked()


def test_ctrl_c_ends_a_command_while_it_imports(tmp_path):
    command = [sys.executable, "-m", "greenjax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    with subprocess.Popen(command, **how) as process:
        assert process.stdout.readline().startswith("greenjax ")  # before anything that takes long
        assert process.stdout.readline() == "importing JAX and greenjax ...\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (
        130,
        f"greenjax: interrupted; the same command goes on from the last checkpoint in {tmp_path}\n",
    )
