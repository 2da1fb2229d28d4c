"""Compiled programs are kept from run to run, and a run that finds them computes the same bits."""

import json
import os
import subprocess
import sys

import jax
import pytest
from small import ONE_STAGE, small_config
from test_processes import ROOT, config_file, ended, spawned

from greenjax.backbones.geometry import make_planner
from greenjax.runtime import cache

MAIN = ("-m", "greenjax.main")
# How many programs were compiled, how many found, and what one of them computes; after what is to be done first.
PROGRAM = """
import jax, jax.numpy as jnp
from greenjax.runtime.cache import keep_compiled
said = []
jax.monitoring.register_event_listener(lambda name, **_: said.append(name.rpartition("/")[2]))
keep_compiled()
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.full((3, 3), 0.1))[0, 0].item().hex())
print(said.count("cache_hits"), said.count("compile_requests_use_cache"))
"""


def run(home, command=("-c", PROGRAM), **environment):
    """What a process says, and what it complains about; with the user's cache in a folder of the test."""
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    told = {key: value for key, value in os.environ.items() if key not in ours}
    told |= {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT / "tests")} | environment
    done = subprocess.run([sys.executable, *map(str, command)], env=told, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def names(home):
    return {path.name for path in (home / "greenjax" / "compiled").glob("*-cache")}


def test_a_second_process_compiles_nothing(tmp_path):
    (value, hits, asked), complaint = run(tmp_path)
    assert not complaint and int(hits) == 0 < int(asked) == len(names(tmp_path))
    assert run(tmp_path) == ([value, asked, asked], "")


def test_programs_for_another_cpu_are_others(tmp_path):
    run(tmp_path, XLA_FLAGS="")
    before = names(tmp_path)
    (_, hits, asked), _ = run(tmp_path, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")
    assert int(hits) == 0 < int(asked) and len(names(tmp_path)) == 2 * len(before)


def test_a_user_without_a_home_keeps_nothing_and_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an entry in passwd
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        cache.keep_compiled()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    make_planner(small_config())
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "compiled programs are not kept: [Errno 2] this user has no home; XDG_CACHE_HOME names another folder:"
        " '~/.cache'"
    ]


def test_layouts_that_cannot_be_read_are_found_again(tmp_path, monkeypatch, caplog):
    """A cache folder of somebody else, or one that is no folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layouts = make_planner(small_config()).layouts
    (kept,) = (tmp_path / "greenjax").iterdir()
    for text in ("", "{", "[3]"):
        kept.write_text(text)
        assert make_planner(small_config()).layouts == layouts
        assert "cannot be read" in caplog.text
        caplog.clear()
    kept.unlink()
    kept.mkdir()
    assert make_planner(small_config()).layouts == layouts


def test_above_the_largest_size_the_least_recently_used_go(tmp_path, monkeypatch):
    for age, name in enumerate(("newest", "older", "oldest")):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "of XLA").mkdir()
    os.utime(tmp_path / "of XLA", (0, 0))
    monkeypatch.setattr(cache, "LARGEST", 10)
    cache._shrink(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "older", "of XLA"}


def test_what_the_user_says_is_respected(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    _, complaint = run(tmp_path / "home", **own)
    assert not complaint and not (tmp_path / "home").exists() and list((tmp_path / "own").glob("*-cache"))
    (_, hits, asked), _ = run(tmp_path / "home", JAX_ENABLE_COMPILATION_CACHE="0")
    assert (hits, asked) == ("0", "0") and not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path):
    (tmp_path / "greenjax").write_text("a file where the folder should be")
    (_, hits, _), complaint = run(tmp_path)
    assert hits == "0"
    (line,) = complaint.splitlines()
    assert "compiled programs are not kept" in line and str(tmp_path / "greenjax") in line


@pytest.mark.slow
def test_a_run_from_the_cache_has_the_same_bits(tmp_path):
    config = config_file(tmp_path, dict(**ONE_STAGE, steps=3, optim__base_lr=1e-2, mesh__data=1))
    lines = []
    for workdir in ("new", "kept"):
        _, complaint = run(tmp_path, (*MAIN, "--config", config, "--workdir", tmp_path / workdir))
        assert not complaint
        written = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
        exact = ("step", "loss", "grad_norm", "param_norm")
        lines.append([[json.loads(line).get(key) for key in exact] for line in written])
    assert lines[0] == lines[1] and len(lines[0]) == 3 and names(tmp_path)


def test_several_processes_share_a_folder_beside_their_results(tmp_path):
    """The one place that all machines of a run are known to see."""
    config = config_file(tmp_path, dict(**ONE_STAGE, steps=2))
    workdir = tmp_path / "run"
    told = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "home")}
    ended(spawned(2, *MAIN, "--config", config, "--workdir", workdir, **told), 0)
    assert list((workdir / "compiled").glob("jit_update*-cache"))
    assert not (tmp_path / "home" / "greenjax" / "compiled").exists()
