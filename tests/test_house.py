"""The house: which room imports which, how long it is, and which files an image and a config pass.

A room is the first path component under greenjax/. There is an arrow between two rooms where a module of one imports
from the other, by any `import` or `from`: inside functions and under TYPE_CHECKING as well. `greenjax/__init__.py` is
no room: it resolves the public names, and modules import `__version__` alone from it. The forwards to benchmarks/ are
counted apart.
"""

import ast
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from setuptools import find_packages
from small import config_file

import greenjax
from greenjax.backbones.geometry import make_planner
from greenjax.backbones.registry import FAMILIES
from greenjax.data.encoded import Encoded
from greenjax.data.loader import Batch, train_batches
from greenjax.data.open import open_source
from greenjax.tasks.pretrain import pretraining
from greenjax.training.sharding import make_mesh

ROOT = Path(__file__).parents[1]
# `lines`: of the package without its families and its detector; `family`: of one of them; `detector`: of its folders.
LIMITS = dict(rooms=16, arrows=64, lines=22_950, family=550, detector=2_600, function=50, image=12, config=15)
FLOORS = (  # from the ground up; a module imports from its own floor and those below
    ("errors",),
    ("runtime",),
    ("planning",),
    ("ops",),
    ("backbones",),
    ("data",),
    ("config",),
    ("models",),
    ("evaluation",),
    ("interop",),
    ("training",),
    ("tasks",),
    ("main", "convert", "commands", "__main__"),  # commands, the __main__.py of a room included
)
FORWARD = "benchmark"

Module = tuple[str, ...]  # ("greenjax", "data", "loader")


def module_of(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


TREES = {
    module_of(path): ast.parse(path.read_text())
    for top in ("greenjax", "benchmarks")
    for path in ROOT.glob(f"{top}/**/*.py")
}


def imports(module: Module) -> Iterator[tuple[Module, ast.AST]]:
    """Modules of the checkout that a module imports, or whose names it imports."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom):
            base = tuple((node.module or "").split("."))
            found = [(*base, alias.name) if (*base, alias.name) in TREES else base for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from ((target, node) for target in dict.fromkeys(found) if target in TREES)


PACKAGE = [module for module in TREES if module[0] == "greenjax" and module[1:] and module[1] != FORWARD]
ARROWS = {(module, target) for module in PACKAGE for target, _ in imports(module) if target[1:]}


def floor(module: Module) -> int:
    name = module[-1] if module[-1] == "__main__" else module[1]
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_rooms_and_arrows_are_few():
    rooms = {module[1] for module in PACKAGE}
    assert len(rooms) <= LIMITS["rooms"], rooms
    arrows = {(module[1], target[1]) for module, target in ARROWS if module[1] != target[1]}
    assert len(arrows) <= LIMITS["arrows"], sorted(arrows)


def test_nothing_imports_upwards():
    assert not [(module, target) for module, target in ARROWS if floor(module) < floor(target)]


def test_modules_do_not_import_in_a_circle():
    waiting = {module: {target for m, target in ARROWS if m == module and target != module} for module in PACKAGE}
    while free := [module for module, targets in waiting.items() if not targets & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, sorted(waiting)


def test_the_package_imports_its_public_front_for_the_version_alone():
    fronts = [node for module in PACKAGE for target, node in imports(module) if target == ("greenjax",)]
    names = {alias.name for node in fronts for alias in node.names}
    assert names <= {"__version__"}


def test_no_file_takes_a_private_name_of_another():
    """By `from x import _y`, or as `x._y` of an imported module."""
    taken = []
    for module in TREES:
        bound = set()
        for target, node in imports(module):
            for alias in node.names:
                bound.add(alias.asname or alias.name)
                if private(alias.name):
                    taken.append((module, target, alias.name))
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
                taken += [(module, node.value.id, node.attr)] if private(node.attr) else []
    assert not taken


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_functions_and_the_package_are_short():
    lengths = {(module, node.name): node.end_lineno - node.lineno + 1 for module in TREES for node in functions(module)}
    longest = max(lengths, key=lengths.__getitem__)
    assert lengths[longest] <= LIMITS["function"], (longest, lengths[longest])
    of_family = {name: count_lines(ROOT / "greenjax" / "backbones" / name) for name in FAMILIES}
    assert max(of_family.values()) <= LIMITS["family"], of_family
    detector = sum(map(count_lines, (ROOT / "greenjax").glob("*/detection")))
    assert detector <= LIMITS["detector"]
    assert count_lines(ROOT / "greenjax") - sum(of_family.values()) - detector <= LIMITS["lines"]


def count_lines(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("*.py"))


def test_what_forwards_to_the_benchmarks_is_short_and_imports_nothing_of_the_package():
    assert len((ROOT / "greenjax" / f"{FORWARD}.py").read_text().splitlines()) <= 15
    assert {target[1:] for target, _ in imports(("greenjax", FORWARD))} <= {()}


def test_the_wheel_holds_no_benchmark():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = find_packages(ROOT, include=found["include"])
    assert {name.partition(".")[0] for name in packages} == {"greenjax"} and "greenjax.planning" in packages


def test_what_data_workers_import_is_numpy_alone():
    """`import greenjax`, then planning, which knows no config either, then the workers' modules."""
    script = """
        import importlib, pkgutil, sys
        def check(*names):
            for name in names:
                importlib.import_module(name)
            assert "jax" not in sys.modules, names
        check("greenjax")
        import greenjax.planning
        modules = pkgutil.walk_packages(greenjax.planning.__path__, "greenjax.planning.")
        check(*(module.name for module in modules if not module.name.endswith("__main__")))
        assert not any(name.startswith("greenjax.config") for name in sys.modules)
        check("greenjax.backbones.registry", "greenjax.data.loader")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Files with a function that takes the image, or the config, as an argument on the way from config to gradient.

    sys.setprofile watches all calls from load_config to the traced gradient of pre-training, without worker processes.
    The image is encoded, an array of uint8 or a batch on the host, and any array of floats in the traced program. The
    config is the whole tree or a section of it.
    """
    file = config_file(tmp_path_factory.mktemp("house") / "config.py", mesh__data=1, model__depths=(1, 1))
    found, package = {"config": set(), "image": set()}, f"{ROOT / 'greenjax'}/"

    def watch(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            for kind, is_one in (("config", is_config), ("image", is_image)):
                if code.co_filename not in found[kind] and any(is_one(frame.f_locals.get(name)) for name in arguments):
                    found[kind].add(code.co_filename)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        config = greenjax.load_config(file)
        batch = next(train_batches(config, open_source(config.data, "train"), make_planner(config)))
        params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: greenjax.build(config)), nnx.Param))
        task = pretraining(config)
        with jax.set_mesh(make_mesh(config)):
            loss = jax.grad(lambda params, batch: task.loss(params, ((batch, None), None))[0])
            jax.jit(loss).trace(params, batch)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def is_config(value) -> bool:
    return isinstance(value, ConfigDict)


def is_image(value) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim > 1
    if isinstance(value, jax.core.Tracer):
        return jnp.issubdtype(value.dtype, jnp.floating) and value.ndim > 1
    return isinstance(value, Encoded | Batch)


@pytest.mark.parametrize("kind", ["image", "config"])
def test_few_files_lie_between_the_config_and_the_gradient(passed, kind):
    assert 0 < len(passed[kind]) <= LIMITS[kind], sorted(passed[kind])
