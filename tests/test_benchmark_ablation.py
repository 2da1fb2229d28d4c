"""The ablation suite: what it puts in place of greenjax's own operations computes the same."""

import jax
import numpy as np
from small import ONE_STAGE, small_config

from benchmarks import ablation
from benchmarks.programs import compile_part, first_state, runnable, sized
from greenjax.ops import group_attention, primitives
from greenjax.training import optim

MODULES = (primitives, group_attention, optim)


def test_an_update_without_any_own_piece_is_the_same():
    config = sized(small_config(**ONE_STAGE, model__name="swin_t", optim__clip=0.1), jax.device_count())

    def two_updates():
        update = runnable(config, {"update": compile_part(config, "update")}, held=[first_state(config)])["update"]
        return [{key: float(value) for key, value in update().items()} for _ in range(2)]

    def in_use(own):
        return any(value is own for module in MODULES for value in vars(module).values())

    expected = two_updates()
    before = [dict(vars(module)) for module in MODULES]
    owns = [own for own, _ in ablation.PIECES.values()]
    assert all(map(in_use, owns))
    with ablation.replaced(*ablation.PIECES), jax.numpy_rank_promotion("allow"):
        assert not any(map(in_use, owns))
        found = two_updates()
    assert [dict(vars(module)) for module in MODULES] == before
    assert expected[0]["loss"] != expected[1]["loss"] and expected[0]["grad_norm"] > 0.1  # clipped
    for ours, theirs in zip(found, expected):
        for key, value in theirs.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-5, err_msg=key)


def test_each_piece_has_a_row_of_ratios(capsys, monkeypatch):
    monkeypatch.setattr(ablation, "DTYPES", ("float32",))
    config = small_config(**ONE_STAGE, model__name="swin_t")
    report = ablation.run(config, 3, 1, ["gelu_matmul"])
    (row,) = report["rows"]
    for dtype in ablation.DTYPES:
        assert row[f"memory_{dtype}"] > 1 and row[f"bytes_{dtype}"] != 1 and row[f"time_{dtype}"] > 0
    assert "| gelu_matmul |" in capsys.readouterr().out
