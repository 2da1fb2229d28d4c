"""Eight CPU devices and strict shapes, set before anything imports JAX; skips what the machine lacks."""

import gc
import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda runs the tests on a GPU
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
_FLAGS = ["--xla_force_host_platform_device_count=8"]

# XLA's passes stay as they are: the same programs, memory and bits from run to run. Machine code is made of them
# without LLVM's expensive passes and without MLIR, which take two thirds of the time to compile.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 brings both back.
if os.environ["JAX_PLATFORMS"] == "cpu" and os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0":
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join(_GIVEN + [flag for flag in _FLAGS if flag not in _GIVEN])

# A traced program is a million of small objects that live: the collector would look through them again and again.
gc.set_threshold(100_000)

# Equal programs are compiled once for all tests, workers and child processes: XLA is slow on two cores.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "home")  # not the user's
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub of Hugging Face


@pytest.fixture(scope="session", autouse=True)
def small_chunks():
    """Models of tests have small arrays: of the 65,536 values that a program draws at once they would use a few."""
    from greenjax.backbones import initial

    initial.CHUNK = 1 << 12


def process_state():
    """What a test can leave behind in its process without a trace in the test itself."""
    import jax
    from absl import logging

    settings = {key: value for key, value in jax.config.values.items() if key.startswith("jax_")}
    return dict(os.environ) | settings | {"folder": os.getcwd(), "verbosity": logging.get_verbosity()}


@pytest.fixture(autouse=True)
def same_process():
    """A test leaves its process as it found it: otherwise another passes or fails by the order of the tests."""
    before = process_state()
    yield
    after = process_state()  # libraries add variables of their own when they are imported
    assert {key for key in before if after.get(key) != before[key]} <= {"PYTEST_CURRENT_TEST"}


def pytest_collection_modifyitems(items):
    # Long tests first, so that no worker is left alone with one at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    missing = {}
    if os.environ["JAX_PLATFORMS"] == "cpu":
        missing["gpu"] = "needs an accelerator: JAX_PLATFORMS=cuda"
    # Where the tests are the gate, a missing package is a failure, not a skip.
    if not os.environ.get("CI") and not all(importlib.util.find_spec(name) for name in ("torch", "spconv")):
        missing["spconv"] = "needs torch and spconv"
    if not os.environ.get("CI") and not (Path(__file__).parents[1] / ".venv" / "gpu_compiler" / "installed").exists():
        missing["gpu_compiler"] = "needs JAX's compiler for NVIDIA GPUs: launch/test.sh installs it"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
