"""python -m benchmarks grouping: packings against their definitions, one loss by every way."""

import json

import numpy as np
import pytest
from small import config_file, small_config

from benchmarks import __main__, grouping
from benchmarks.ways import STATIC, WAYS, first_fit, first_fit_decreasing
from greenjax.errors import InputError


def test_first_fit_packs_as_its_name_says():
    sizes = [4, 8, 0, 1, 4, 2, 1]
    assert first_fit(sizes, 10) == [[0, 3, 4, 6], [1, 5]]
    assert first_fit([3, 6, 5, 1], 10) == [[0, 1, 3], [2]]
    assert first_fit_decreasing([3, 6, 5, 1, 0], 10) == [[1, 0, 3], [2]]


@pytest.mark.parametrize("packing", [first_fit, first_fit_decreasing])
def test_every_window_with_tokens_is_packed_once_and_no_group_overflows(packing):
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(50, size=rng.integers(1, 60)).tolist()
        groups = packing(sizes, 49)
        assert sorted(window for group in groups for window in group) == [
            window for window, size in enumerate(sizes) if size
        ]
        totals = [sum(sizes[window] for window in group) for group in groups]
        assert max(totals, default=0) <= 49
        # A window stands in a group only if it found no room in any before it: at most one group is half empty.
        assert sum(2 * total <= 49 for total in totals) <= 1


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "MASKS", 30)
        patch.setattr(grouping, "AFTER", (1, 10))
        file = tmp_path_factory.mktemp("grouping") / "figures.json"
        config = config_file(file.with_name("config.py"), mask__ratio=0.7, model__depths=(2, 1))
        __main__.main(["", "grouping", f"--config={config}", "--batch=8", "--repeats=2", f"--json={file}"])
        return json.loads(file.read_text())


def test_the_loss_is_the_same_by_every_way(report):
    losses = {row["way"]: row["loss"] for row in report["rows"]}
    assert set(losses) == set(WAYS)
    shapes = {tuple((p["slots_mean"], p["groups_mean"]) for p in row["partitions"]) for row in report["rows"]}
    assert len(shapes) > 3  # the ways are not one and the same here
    np.testing.assert_allclose(list(losses.values()), losses[STATIC], rtol=1e-6)


def test_costs_are_ordered_as_the_ways_promise(report):
    rows = {row["way"]: row for row in report["rows"]}
    assert rows["Algorithm 1"]["cost_eq8"] <= rows["Eq. 7 at p^2"]["cost_eq8"]
    assert rows["first fit, swept"]["cost_eq8"] <= rows["first fit at p^2"]["cost_eq8"]
    assert rows["one masked attention"]["padding"] == 0
    assert rows["one masked attention"]["cost"] == rows["one masked attention"]["cost_eq8"]
    for row in rows.values():
        assert row["cost"] <= row["cost_eq8"] and 0 <= row["padding"] < 1
        assert list(row["programs"]) == ["1", "10", str(report["masks"])] and row["programs"]["1"] == 1
        assert row["seconds"] > 0 and row["flops"] > 0
    assert rows[STATIC]["programs"]["10"] == rows["one masked attention"]["programs"]["10"] == 1
    assert rows["Algorithm 1"]["programs"]["10"] > 1
    assert set(rows[STATIC]["ratios"].values()) == {1.0}
    assert report["masks"] + report["redrawn"] == 30


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({"family": "pcpvt"}, 8, "which has no windows"),
        ({"method": "simmim"}, 8, "method 'simmim'"),
        ({}, 3, "--batch is 3: expected a multiple of the 8 devices"),
    ],
)
def test_what_cannot_be_grouped_is_refused_before_anything_is_compiled(monkeypatch, changes, batch, message):
    monkeypatch.setattr(grouping, "compile_part", None)
    with pytest.raises(InputError, match=message):
        grouping.run(small_config(**changes), batch, 1)


def test_twins_has_windows_in_every_second_block():
    config = small_config("twins")
    planner = grouping.make_planner(config)
    everywhere = grouping.places(config, planner)
    assert [(place.partition.stage, place.partition.windows.shift[0], place.blocks) for place in everywhere] == [
        (0, 0, 1),
        (1, 0, 1),
    ]
