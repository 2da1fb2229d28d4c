"""Compiled programs are kept from run to run, and a run that finds them computes the same bits."""

import json
import os
import subprocess
import sys

import pytest
from small import ONE_STAGE
from test_processes import ROOT, config_file, ended, spawned

MAIN = ("-m", "greenjax.main")
# How many programs were compiled, how many found, and what one of them computes; after what is to be done first.
PROGRAM = """
import jax, jax.numpy as jnp
from greenjax.cache import keep_compiled
said = []
jax.monitoring.register_event_listener(lambda name, **_: said.append(name.rpartition("/")[2]))
keep_compiled()
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.full((3, 3), 0.1))[0, 0].item().hex())
print(said.count("cache_hits"), said.count("compile_requests_use_cache"))
"""
# A program of ours, from its text as JAX keeps it or as we do; what it computes, and whether it was traced.
KEPT = """
import sys, jax, jax.numpy as jnp
from small import small_config
from greenjax import cache
from greenjax.programs import Program
traced = []
def wave(x):
    traced.append(x)
    return jnp.sort(jnp.sin(x) @ x + jnp.arange(3.0)[:, None], axis=0)
cache.keep_compiled()
if "by JAX" in sys.argv:
    cache._programs = None
print(Program(jax.jit(wave), "wave", small_config())(jnp.full((3, 3), 0.1)).sum().item().hex(), len(traced))
"""


def run(cache, command=("-c", PROGRAM), **environment):
    """What a process says, and what it complains about; with the user's cache in a folder of the test."""
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    told = {key: value for key, value in os.environ.items() if key not in ours}
    told |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT / "tests")} | environment
    done = subprocess.run([sys.executable, *map(str, command)], env=told, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def names(cache):
    return {path.name for path in (cache / "greenjax" / "compiled").glob("*-cache")}


def test_a_second_process_compiles_nothing(tmp_path):
    (value, hits, asked), complaint = run(tmp_path)
    assert not complaint and int(hits) == 0 < int(asked) == len(names(tmp_path))
    assert run(tmp_path) == ([value, asked, asked], "")


def test_programs_for_another_cpu_are_others(tmp_path):
    run(tmp_path, XLA_FLAGS="")
    before = names(tmp_path)
    (_, hits, asked), _ = run(tmp_path, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")
    assert int(hits) == 0 < int(asked) and len(names(tmp_path)) == 2 * len(before)


def test_what_a_killed_process_left_is_dropped(tmp_path):
    """A program that was written half, without its time of use."""
    (_, _, asked), _ = run(tmp_path)
    folder = tmp_path / "greenjax" / "compiled"
    half = sorted(folder.glob("*-cache"))[0]
    half.write_bytes(half.read_bytes()[:20])
    half.with_name(half.name.removesuffix("cache") + "atime").unlink()
    (_, hits, _), complaint = run(tmp_path)
    assert not complaint and int(hits) == int(asked) - 1 and len(names(tmp_path)) == int(asked)


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
    lines, links = [], []
    for workdir in ("new", "kept"):
        _, complaint = run(tmp_path, (*MAIN, "--config", config, "--workdir", tmp_path / workdir))
        assert not complaint
        written = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
        exact = ("step", "loss", "grad_norm", "param_norm")
        found = (tmp_path / "greenjax/compiled/programs").glob("*-*")
        links.append(sorted((path.name, path.lstat().st_mtime_ns) for path in found))
        lines.append([[json.loads(line).get(key) for key in exact] for line in written])
    assert lines[0] == lines[1] and len(lines[0]) == 3 and names(tmp_path)
    assert {name.split("-")[1] for name, _ in links[0]} == {"update", "pictures"}
    assert links[0] == links[1]  # what is traced writes its link anew


def test_what_jax_kept_is_compiled_once_more_to_be_kept_here(tmp_path):
    """XLA does not write the whole of what it has loaded: the first run sees to it that the second compiles."""
    said = [run(tmp_path, ("-c", KEPT, *how)) for how in (["by JAX"], [], [], [])]
    assert [int(traced) for (_, traced), _ in said] == [1, 1, 1, 0]
    assert len({value for (value, _), _ in said}) == 1 and not any(complaint for _, complaint in said)


def test_several_processes_share_a_folder_beside_their_results(tmp_path):
    """The one place that all machines of a run are known to see."""
    config = config_file(tmp_path, dict(**ONE_STAGE, steps=2))
    workdir = tmp_path / "run"
    told = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "home")}
    ended(spawned(2, *MAIN, "--config", config, "--workdir", workdir, **told), 0)
    assert list((workdir / "compiled").glob("jit_update*-cache"))
    assert not (tmp_path / "home" / "greenjax" / "compiled").exists()
