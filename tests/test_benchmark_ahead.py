"""Programs compiled for a GPU that is not here: the suite's figures, and what such programs must keep."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from small import small_config

from benchmarks import ahead
from greenjax.errors import InputError
from greenjax.ops.primitives import hold

ROOT = Path(__file__).parents[1]
GPU_COMPILER = ROOT / ".venv" / "gpu_compiler"


def test_what_a_cpu_holds_is_free_on_a_gpu():
    """Checked where it matters, in the program that a compiler gets."""
    export = jax.export.export(jax.jit(lambda x: hold((x + 1, x))), platforms=["cuda"])
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert "optimization_barrier" not in export(shape).mlir_module()
    assert "optimization_barrier" in jax.jit(lambda x: hold((x + 1, x))).lower(shape).as_text()


def test_the_suite_tells_what_programs_move_and_hold(monkeypatch, capsys):
    """By programs for the CPU, which has the same figures of its own."""
    monkeypatch.setattr(ahead, "described", lambda card: jax.devices()[0])
    report = ahead.run(small_config(model__dtype="bfloat16", model__depths=(1, 1)), batch=2, gpu="a100")
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["green"]["flops"] < rows["dense"]["flops"] and report["memory_slope_ratio"] < 1
    for name, row in rows.items():
        parts = report["parts"][name]
        assert row["least_seconds"] == pytest.approx(sum(part["seconds"] for part in parts))
        assert row["bytes"] == sum(part["bytes"] for part in parts)
        assert 1.000001 * row["least_seconds"] >= max(row["bytes"] / 2039e9, row["flops"] / 312e12)
        assert row["most_mfu"] * row["least_seconds"] == pytest.approx(row["flops"] / 312e12)
        assert row["memory_slope_bytes"] > 0
    printed = capsys.readouterr().out
    assert (
        "attention by xla, batch 2, compiled for one NVIDIA A100-SXM4-80GB (312 TFLOP/s, 2039 GB/s): not run" in printed
    )
    assert "memory for each image, green / dense" in printed and "attention" in printed


def test_wrong_settings_and_a_missing_compiler_end_before_anything_is_compiled(monkeypatch):
    def missing(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(ahead.topologies, "get_topology_desc", missing)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the other tests keep their devices
    with pytest.raises(InputError, match=r"model.dtype is 'float32': expected 'bfloat16'"):
        ahead.run(small_config(), batch=2)
    with pytest.raises(InputError, match=r"needs JAX's CUDA plugin.*launch/ahead.sh"):
        ahead.run(small_config(model__dtype="bfloat16"), batch=2)


@pytest.mark.gpu_compiler
@pytest.mark.slow
def test_an_update_for_an_h100_keeps_what_the_backward_pass_reads_and_no_more():
    """For one block more. Float32 logits, which XLA for GPUs once kept beside the weights of attention, would be more.
    The fused kernel, machine code by now, keeps less, and moves less."""
    script = f"""
        import json, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from small import small_config
        from benchmarks.ahead import CARDS, described
        from benchmarks.forecast import forecast
        from benchmarks.hlo import read_kernels
        from benchmarks.programs import compile_part, sized
        device = described(CARDS["h100"])
        found = []
        for attention, depth in (("xla", 2), ("xla", 3), ("pallas", 3)):
            config = small_config(
                model__dtype="bfloat16", model__embed_dim=32, model__depths=(depth, 1), model__attention=attention
            )
            config = sized(config, 256, mask__groups=1, mesh__data=1)
            program = compile_part(config, "update", devices=[device])
            kernels = read_kernels(program.compiled.as_text())
            moved, ours = (sum(k.bytes for k in kernels.values()), sum("pallas" in k.op_name for k in kernels.values()))
            found.append((program.temporary, forecast(config).kept, moved, ours))
        print(json.dumps(found))
    """
    path = os.pathsep.join([str(GPU_COMPILER), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    temporary, kept, moved, kernels = zip(*json.loads(done.stdout.splitlines()[-1]))
    more = (temporary[1] - temporary[0]) / (kept[1] - kept[0])
    assert 0.95 < more < 1.05, more
    assert temporary[2] < temporary[1] and moved[2] < moved[1]
    assert kernels == (0, 0, 8)  # of 4 blocks, forward and backward
