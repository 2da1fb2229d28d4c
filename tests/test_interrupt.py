"""Signals that ask a run to stop."""

import os
import signal

import pytest
from small import small_config

from greenjax.training.interrupt import Interruption
from greenjax.training.sharding import Placement, make_mesh


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
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.asked()
    finally:
        signal.signal(signal.SIGHUP, usual)
