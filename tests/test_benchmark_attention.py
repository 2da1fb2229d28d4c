"""The candidates of attention inside groups agree, and the suite says who cannot run."""

import jax
import numpy as np
import pytest
from small import small_config

from benchmarks import attention
from benchmarks.programs import sized
from greenjax.backbones import geometry
from greenjax.errors import InputError
from greenjax.planning.plan import GroupLayout


def one_device(*args, **overrides):
    return sized(small_config(*args, **overrides), 2, mesh__data=1, mask__groups=1)


def wider(layouts):
    return tuple(tuple(GroupLayout(slots + 8, groups + 1) for slots, groups in stage) for stage in layouts)


@pytest.mark.parametrize(("family", "method"), [("swin", "green"), ("swin", "simmim"), ("twins", "green")])
def test_candidates_agree_in_values_and_gradients(monkeypatch, family, method):
    """Beside slots and rows of padding. With a bias (Swin) and without (Twins)."""
    known = geometry.cached_layouts
    monkeypatch.setattr(geometry, "cached_layouts", lambda *of: wider(known(*of)))
    found = attention.cases(one_device(family, method=method))
    assert any((np.asarray(case.grouping.window) < 0).any() for case in found) == (method == "green")
    assert sum(case.blocks for case in found) == (4 if family == "swin" else 2)
    for case in found:
        own, other = (
            jax.jit(attention.both_ways(attention.CANDIDATES[name], case))(case.inputs, case.grouping, case.dy)
            for name in ("greenjax", "xla")
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), other, own)


def test_the_suite_compares_what_can_run(capsys):
    report = attention.run(small_config(), batch=2, repeats=1)
    assert {row["candidate"] for row in report["rows"]} == {"greenjax", "xla"}
    assert all(row["ms"] > 0 and row["difference"] < 1e-5 for row in report["rows"])
    assert set(report["update_ms"]) == {"greenjax", "xla"} and set(report["left_out"]) == {"pallas", "cudnn"}
    assert all("GPU, found cpu" in reason for reason in report["left_out"].values())
    assert "all blocks, xla" in capsys.readouterr().out
    with pytest.raises(InputError, match="pcpvt_s"):
        attention.run(small_config("pcpvt"), batch=2, repeats=1)


def test_shapes_that_a_library_does_not_take_are_a_row_that_says_so(monkeypatch):
    def refusing(*_):
        raise NotImplementedError("Unsupported sequence length Q 7, KV 7.\nand more")

    monkeypatch.setitem(attention.CANDIDATES, "xla", refusing)
    case = attention.cases(one_device())[0]
    own, refused = attention.measured(case, ["greenjax", "xla"], repeats=1)
    assert own["ms"] > 0 and refused["error"] == "Unsupported sequence length Q 7, KV 7."


@pytest.mark.gpu
def test_fused_ones_agree_in_bfloat16():
    report = attention.run(small_config(model__dtype="bfloat16", model__embed_dim=32), batch=2, repeats=1)
    assert all(row["difference"] < 0.05 for row in report["rows"] if "error" not in row)
    assert set(report["update_ms"]) >= {"greenjax", "pallas", "xla"}  # cuDNN refuses rows of an odd number of slots
