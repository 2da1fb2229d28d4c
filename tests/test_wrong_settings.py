"""Every case of tests/wrong_settings.py: wrong settings end in one line that names them, odd ones work."""

import pytest
from wrong_settings import ENVIRONMENTS, IN_PROCESS, OTHER_COMMANDS, make_world, try_case, try_command, try_environment


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("settings") / "world")


@pytest.mark.parametrize("case", IN_PROCESS, ids=lambda case: case.typed[:50])
def test_a_wrong_setting_ends_in_one_line_before_anything_is_begun(case, world, monkeypatch):
    monkeypatch.chdir(world)
    assert try_case(case, world) == ""


@pytest.mark.parametrize(("module", "text", "line"), OTHER_COMMANDS)
def test_so_does_a_wrong_flag_of_another_command(module, text, line, world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setattr("benchmarks.__main__.compile_anew", lambda: None)  # the process of the tests goes on
    assert try_command(module, text, line, world) == ""


@pytest.mark.parametrize(("variables", "line"), ENVIRONMENTS, ids=lambda each: str(each)[:40])
def test_so_does_an_environment_in_which_jax_cannot_start(variables, line, world):
    assert try_environment(variables, line, world) == ""


def test_there_are_a_hundred_of_them():
    assert sum(not case.works for case in IN_PROCESS) >= 100
