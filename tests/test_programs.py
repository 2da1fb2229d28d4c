"""Programs that an earlier run kept: found without tracing, the same bits, and never one that is another."""

import os
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from small import small_config

from greenjax import cache, fingerprint, programs
from greenjax.programs import Program, foresee

CONFIG = small_config()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where programs are kept."""
    monkeypatch.setattr(cache, "_programs", tmp_path / "programs")
    monkeypatch.setattr(programs, "_foreseen", {})
    return tmp_path / "programs"


class Run:
    """One process after the other, so to speak: they share nothing but the folder. `traced`: what was, in order."""

    def __init__(self):
        self.traced = []

    def program(self, name="wave", config=CONFIG, others=(), scale=0.1):
        def wave(x, y):
            self.traced.append(name)
            return {"sorted": jnp.sort(jnp.sin(x) @ y * scale, axis=0), "y": y + 1}

        return Program(jax.jit(wave, donate_argnums=1), name, config, *others)

    def __call__(self, rows=4, devices=1, first=0, within=None, **program):
        one, given = self.program(**program), arguments(rows, devices, first)
        with jax.set_mesh(within) if within else nullcontext():
            return jax.device_get(one(*given)), one.flops


@pytest.fixture
def run():
    return Run()


def arguments(rows=4, devices=1, first=0):
    mesh = Mesh(np.array(jax.devices()[first : first + devices]), ("data",))
    x = jnp.arange(rows * 3.0).reshape(rows, 3)
    return jax.device_put((x, jnp.full((3, 5), 0.3)), (NamedSharding(mesh, P("data")), NamedSharding(mesh, P())))


def kept(folder):
    """The files of programs, and the links that lead to them."""
    links = [path for path in folder.iterdir() if path.is_symlink()]
    return [path for path in folder.iterdir() if path not in links], links


def test_a_kept_program_is_not_traced_and_computes_the_same_bits(run, folder):
    (before, flops), (again, flops_again) = run(), run()
    assert run.traced == ["wave"] and flops == flops_again == 2 * 4 * 3 * 5
    jax.tree.map(np.testing.assert_array_equal, before, again)
    expected = np.sort(np.sin(np.arange(12.0).reshape(4, 3)) @ np.full((3, 5), 0.3) * 0.1, axis=0)
    np.testing.assert_allclose(again["sorted"], expected, rtol=1e-5)
    files, links = kept(folder)
    assert len(files) == len(links) == 1 and links[0].resolve() == files[0]
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.gpu
def test_programs_of_a_gpu_are_kept(run, caplog):
    (before, _), (again, _) = run(), run()
    assert run.traced == ["wave"] and not caplog.messages
    jax.tree.map(np.testing.assert_array_equal, before, again)


@pytest.mark.parametrize("devices", [1, 2])
def test_it_runs_where_it_did_and_takes_what_it_may(run, devices):
    for _ in range(2):
        x, y = arguments(devices=devices, first=3)
        result = run.program()(x, y)
        assert result["y"].sharding.is_equivalent_to(y.sharding, 2) and result["y"].devices() == x.devices()
        assert y.is_deleted() and not x.is_deleted()  # donated by what is loaded, too
    assert len(run.traced) == 1


OTHERS = {
    "shapes": dict(rows=6),
    "shardings": dict(devices=2),
    "devices": dict(first=1),
    "length": dict(others=(10, 2)),
    "name": dict(name="another"),
    "config": dict(config=small_config(optim__clip=1.0)),
    "mesh around it": dict(within=Mesh(np.array(jax.devices()[:1]), ("another",))),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_a_program_follows_from_finds_it(run, other):
    before, _ = run()
    run(**other), run(**other)
    assert len(run.traced) == 2
    again, _ = run()
    assert len(run.traced) == (2 if {"name", "config"} & set(other) else 3)  # one for each name and configuration
    jax.tree.map(np.testing.assert_array_equal, before, again)


def test_so_do_code_libraries_processor_and_settings(run, monkeypatch):
    run()
    names = ("code", "CODE"), ("_instructions",), ("_libraries",), ("cores",)
    for what in names:
        with monkeypatch.context() as changed:
            for name in what:
                changed.setattr(fingerprint, name, "another" if name == "CODE" else lambda: "another")
            run(), run()
    with monkeypatch.context() as changed:
        changed.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} ")
        run(), run()
    with jax.default_matmul_precision("float32"):
        run(), run()
    with jax.transfer_guard("allow"):  # no program follows from it
        run()
    assert len(run.traced) == 1 + len(names) + 2


def test_what_code_that_changed_since_has_traced_is_not_kept(run, monkeypatch, folder):
    monkeypatch.setattr(fingerprint, "code", lambda: "edited")
    run()
    assert not folder.exists()


def test_a_program_of_the_same_text_is_not_compiled_again(run, folder):
    run()
    asked = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: asked.append(name))
    run(config=small_config(log__every=7))
    assert len(run.traced) == 2 and not [name for name in asked if "backend_compile" in name]
    files, links = kept(folder)
    assert len(files) == 1 and len(links) == 2


def test_what_is_foreseen_is_loaded_before_it_starts(run, monkeypatch, folder):
    before = [run(), run(name="small")]
    foresee(small_config(optim__clip=1.0))
    assert not programs._foreseen
    foresee(CONFIG)
    assert len(programs._foreseen) == 2
    assert all(future.result() is not None for future in programs._foreseen.values())
    for path in folder.iterdir():
        path.unlink()
    jax.tree.map(np.testing.assert_array_equal, before, [run(), run(name="small")])
    assert run.traced == ["wave", "small"] and not programs._foreseen


@pytest.mark.parametrize("damage", [b"", b"no program", "half"])
def test_a_damaged_program_costs_one_line_and_is_replaced(run, folder, caplog, damage):
    before, _ = run()
    (file,), _ = kept(folder)
    file.write_bytes(file.read_bytes()[:-1000] if damage == "half" else damage)
    again, _ = run()
    (line,) = caplog.messages
    assert "cannot be loaded" in line and str(folder) in line and len(run.traced) == 2
    last, _ = run()
    assert len(run.traced) == 2 and len(caplog.messages) == 1
    jax.tree.map(np.testing.assert_array_equal, (before, before), (again, last))


def test_a_folder_that_cannot_be_written_costs_one_line(run, folder, caplog):
    folder.write_text("a file where the folder should be")
    run()
    (line,) = caplog.messages
    assert "is not kept" in line


CALLS = {
    "pure": lambda seen, x: jax.pure_callback(lambda x: seen.append(0) or np.asarray(x) + 1, x, x),
    "debug": lambda seen, x: jax.debug.callback(lambda x: seen.append(0), x) or x + 1,
    "print": lambda seen, x: jax.debug.print("{}", x) or x + 1,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_program_that_calls_python_is_not_kept(run, folder, caplog, call):
    seen = []

    def program():
        def calling(x, y):
            run.traced.append("calling")
            return jax.lax.cond(x[0, 0] < 1, lambda: call(seen, x), lambda: x), y

        return Program(jax.jit(calling), "calling", CONFIG)

    for _ in range(2):
        x, y = arguments()
        result, _ = program()(x, y)
        np.testing.assert_array_equal(result, np.asarray(x) + 1)
    jax.effects_barrier()
    assert len(run.traced) == 2 and not folder.exists() and not caplog.messages
    assert len(seen) == (0 if call is CALLS["print"] else 2)


def test_nothing_is_kept_unasked(run, monkeypatch, folder):
    monkeypatch.setattr(cache, "_programs", None)
    run(), run()
    foresee(CONFIG)
    assert len(run.traced) == 2 and not folder.exists() and not programs._foreseen


def test_what_was_not_used_for_longest_goes(run, monkeypatch, folder):
    for age, name in enumerate(("first", "second")):  # the first is the younger one; links are older than all
        run(name=name, scale=0.2 * age)
        (newest,) = (path for path in kept(folder)[0] if path.stat().st_mtime > 1e9)
        os.utime(newest, (1e9 - age, 1e9 - age))
    for link in kept(folder)[1]:
        os.utime(link, (1e8, 1e8), follow_symlinks=False)
    monkeypatch.setattr(programs, "LARGEST", 2.5 * max(path.stat().st_size for path in kept(folder)[0]))
    run(name="third", scale=0.3)
    assert [len(paths) for paths in kept(folder)] == [2, 2]
    run(name="first", scale=0.0)
    assert run.traced == ["first", "second", "third"]
    run(name="second", scale=0.2)
    assert run.traced == ["first", "second", "third", "second"]


def test_a_link_that_leads_nowhere_costs_nothing_but_the_compilation(run, folder, caplog):
    before, _ = run()
    (file,), (link,) = kept(folder)
    file.unlink()
    foresee(CONFIG)
    again, _ = run()
    assert len(run.traced) == 2 and not caplog.messages and link.resolve() == file
    jax.tree.map(np.testing.assert_array_equal, before, again)


def test_arguments_of_another_kind_are_refused(run):
    for _ in range(2):  # compiled, loaded
        one = run.program()
        one(*arguments())
        with pytest.raises(TypeError, match="compiled"):
            one(*arguments(rows=5))
        with pytest.raises(TypeError, match="compiled"):
            one(arguments(), 1.0)
    assert len(run.traced) == 1
