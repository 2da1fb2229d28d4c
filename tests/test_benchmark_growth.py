"""python -m benchmarks growth: the forecast against traced programs, lines against known ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from small import config_file, small_config

from benchmarks import __main__, growth
from benchmarks.forecast import forecast
from benchmarks.programs import random_batch, sized, trace_part
from greenjax.errors import InputError
from greenjax.runtime.cost import matmul_flops

PNG = b"\x89PNG\r\n\x1a\n"
AXES = {"image_size": (32, 48, 50), "batch": (0.5, 1, 2), "mask_ratio": (0.5, 0.75), "window": (2, 4)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__window": 2, "mask__ratio": 0.6},
        {"model__depths": (3, 1), "model__mlp_ratio": (2, 3), "decoder__depth": 2},
        {"image_size": (32, 48), "model__in_channels": 3, "data__mean": (0.3,) * 3, "data__std": (0.4,) * 3},
    ],
)
def test_matrix_products_are_those_that_are_traced(changes):
    config = sized(small_config(**changes), 16)
    assert forecast(config).flops == matmul_flops(trace_part(config, "update", random_batch(config)).jaxpr)


def test_a_forecast_doubles_with_the_batch():
    once, twice = (forecast(sized(small_config(), batch)) for batch in (8, 16))
    assert (twice.tokens, twice.kept, twice.gradients) == (2 * once.tokens, 2 * once.kept, once.gradients)
    assert once.flops < twice.flops < 2 * once.flops  # the gradient of the position bias is taken once a mask
    assert once.tokens == 8 * 16 * 4


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "AXES", AXES)
        patch.setattr(growth, "LONGEST", 2.2)
        folder = tmp_path_factory.mktemp("growth")
        files = [f"--json={folder / 'figures.json'}", f"--plot={folder / 'figure.png'}"]
        config = config_file(folder / "config.py")
        __main__.main(["", "growth", f"--config={config}", "--batch=8", "--repeats=2", *files])
        assert (folder / "figure.png").read_bytes().startswith(PNG)
        return json.loads((folder / "figures.json").read_text())


def test_every_axis_is_measured_where_it_can_be(report):
    values = {axis: [row[axis] for row in found["rows"]] for axis, found in report["axes"].items()}
    assert values == {"image_size": [32, 48], "batch": [8, 16], "mask_ratio": [0.5, 0.75], "window": [2, 4]}
    assert "multiples of the mask unit" in report["left_out"]["image_size 50"]
    assert "multiple of the 8 devices" in report["left_out"]["batch 4"]
    large = report["axes"]["image_size"]["rows"][1]
    assert large["seconds"] is None and large["temporary"] > 0  # compiled, and too long to be run
    for found in report["axes"].values():
        for row in found["rows"]:
            assert row["flops"] == row["expected_flops"] < row["dense_flops"]
            assert row["temporary"] < row["dense_temporary"]
            assert (row["batch"], row["image_size"], row["mask_ratio"], row["window"]) != (8, 32, 0.75, 4) or (
                row["seconds_ratio"] == 1
            )


def test_exponents_stand_beside_the_expected_ones(report):
    batch = report["axes"]["batch"]["slopes"]
    assert batch["flops"] == batch["expected_flops"] and 0.8 < batch["flops"] < 1
    assert batch["expected_seconds"] == pytest.approx(batch["flops"], rel=1e-12)
    assert report["axes"]["mask_ratio"]["slopes"]["dense_flops"] == pytest.approx(0, abs=1e-9)
    assert report["axes"]["batch"]["lines"]["expected_temporary by token"]["per_unit"] > 0
    assert "temporary by token" not in report["axes"]["window"]["lines"]


def test_lines_and_exponents_of_known_curves():
    x = np.array([1.0, 2.0, 5.0])
    assert growth.slope(x.tolist(), (3 * x**1.5).tolist()) == pytest.approx(1.5)
    assert growth.line(x.tolist(), [7.0, 9.0, None]) == pytest.approx({"constant": 5.0, "per_unit": 2.0})
    assert growth.slope([2, 2], [1, 3]) is None and growth.line([1, 2], [3.0, None]) is None


def test_families_without_a_forecast_or_windows_grow_too(monkeypatch, tmp_path):
    """Their own figures stand without expected ones, in a figure beside another run's."""
    monkeypatch.setattr(growth, "AXES", {"mask_ratio": (0.5, 0.75), "window": (2, 4)})
    report = growth.run(small_config("convnext", model__depths=(1, 1)), 8, 1)
    (tmp_path / "other.json").write_text(json.dumps(report | {"dtype": "bfloat16"}))
    plot = tmp_path / "figure.png"
    growth.growth_figure(report, json.loads((tmp_path / "other.json").read_text())).savefig(plot)
    assert plot.read_bytes().startswith(PNG)
    assert list(report["axes"]) == ["mask_ratio"] and report["window"] is None
    more, fewer = report["axes"]["mask_ratio"]["rows"]
    assert more["tokens"] == 2 * fewer["tokens"] and more["flops"] > fewer["flops"]
    assert more["expected_flops"] is None and more["dense_flops"] == fewer["dense_flops"]


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({"method": "simmim"}, 8, "method 'simmim'"),
        ({"model__remat": True}, 8, "model.remat is True"),
        ({"image_size": (32, 48)}, 8, "expected a square"),
        ({}, 3, "--batch is 3: expected a multiple of the 8 devices"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_compiled(monkeypatch, changes, batch, message):
    monkeypatch.setattr(growth, "compile_part", None)
    with pytest.raises(InputError, match=message):
        growth.run(small_config(**changes), batch, 1)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--plot=a.txt", "--plot is 'a.txt': expected a file named *.png or *.pdf or *.svg"),
        ("--plot=nowhere/a.png", "--plot is 'nowhere/a.png': expected an existing folder"),
        ("--json=.", "--json is '.': expected a file in a folder"),
        (f"--json={Path(__file__)}/a.json", "expected a file in a folder"),
    ],
)
def test_files_that_cannot_be_written_are_refused_first(monkeypatch, tmp_path, flag, message):
    monkeypatch.setattr(growth, "compile_part", None)
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["", "growth", f"--config={config_file(tmp_path / 'config.py')}", flag])
    assert message in str(stopped.value) and "\n" not in str(stopped.value)
