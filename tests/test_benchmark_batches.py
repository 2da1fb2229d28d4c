"""The batches suite: the greatest batch of a card, from the memory of two compiled updates."""

import pytest
from small import ONE_STAGE, small_config

from benchmarks import batches
from benchmarks.programs import compile_part, sized


def test_the_greatest_batch_is_a_multiple_of_the_masks_that_just_fits():
    assert [batches.greatest(memory, 100, 10, 4) for memory in (1000, 179, 180, 99)] == [88, 4, 8, 0]


def test_an_update_of_the_found_batch_needs_as_much_as_the_card_has(monkeypatch, capsys):
    """On a card as small as the model. The found batch, compiled, is the reference of the straight line."""
    config = small_config(mask__groups=2, method="simmim", **ONE_STAGE)  # the batches are those of green
    monkeypatch.setattr(batches, "named", lambda config, name: config)
    monkeypatch.setattr(batches, "VARIANTS", {"float32": {"model__dtype": "float32"}})
    monkeypatch.setattr(batches, "COLUMNS", [*batches.COLUMNS[:4], ("tiny", "batch_0.01", 1, "d")])
    monkeypatch.setattr(batches, "CARDS_GB", (0.01,))
    (row,) = batches.run(config, names=["swin_t"])["rows"]
    found = row["batch_0.01"]
    assert found > max(row["compiled"]) and found % 2 == 0
    need = compile_part(sized(config, found, method="green", mask__groups=2, mesh__data=1), "update").memory
    assert need == pytest.approx(batches.SHARE * 0.01 * 2**30, rel=0.03)
    assert f"{found} |" in capsys.readouterr().out.splitlines()[-1]
