"""Results as files that can be read back, and as a table over seeds."""

import csv
import json
import re

import numpy as np
import pytest

from benchmarks.tables import seeds_table
from greenjax.errors import InputError
from greenjax.evaluation.classify import Predictions
from greenjax.evaluation.results import read_results, write_predictions, write_results


def test_results_are_merged_by_name(tmp_path):
    workdir = tmp_path / "new" / "run"
    write_results(workdir, "knn", {"task": "knn", "top1": 0.5})
    write_results(workdir, "linear", {"top1": np.float32(0.75), "images": np.int64(10), "loss": float("nan")})
    write_results(workdir, "knn", {"top1": 0.6})
    expected = {"knn": {"top1": 0.6}, "linear": {"top1": 0.75, "images": 10, "loss": None}}
    assert json.loads((workdir / "results.json").read_text()) == read_results(workdir) == expected
    assert [path.name for path in workdir.iterdir()] == ["results.json"]


def test_a_write_that_fails_leaves_the_old_results(tmp_path):
    write_results(tmp_path, "knn", {"top1": 0.5})
    with pytest.raises(TypeError):
        write_results(tmp_path, "linear", {"top1": object()})
    assert read_results(tmp_path) == {"knn": {"top1": 0.5}}


@pytest.mark.parametrize(
    ("text", "found"), [("[1]", "holds no JSON object"), ("{", "is cut short or damaged"), ("", "is empty")]
)
def test_a_file_of_something_else_is_not_overwritten(tmp_path, text, found):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=rf"results\.json' {found}: expected named results"):
        write_results(tmp_path, "knn", {"top1": 0.5})
    assert (tmp_path / "results.json").read_text() == text


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    """As editors of Windows save it."""
    (tmp_path / "results.json").write_text('{"knn": {"top1": 0.5}}', encoding="utf-8-sig")
    assert read_results(tmp_path) == {"knn": {"top1": 0.5}}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/results\.json' cannot be written: "):
        write_results(tmp_path / "file", "knn", {})


def test_predictions_can_be_read_back(tmp_path):
    said = Predictions(np.array([0, 7]), np.array([3, 1]), np.array([2, 1]), np.array([0.25, 0.999999], np.float32))
    write_predictions(
        tmp_path / "predictions.csv", said, ["a/0.png", "\udcff,7.png"], ["ant", "K\udce4fer", "cow", "dog"]
    )
    with (tmp_path / "predictions.csv").open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    first = {"index": "0", "label": "3", "predicted": "2", "confidence": "0.250000"}
    assert lines[0] == first | {"file": "a/0.png", "label_name": "dog", "predicted_name": "cow"}
    assert lines[1]["file"] == r"\udcff,7.png"  # a name that is no UTF-8
    assert lines[1]["label_name"] == r"K\udce4fer"
    assert [(int(line["index"]), int(line["predicted"])) for line in lines] == [(0, 2), (7, 1)]
    assert float(lines[1]["confidence"]) == pytest.approx(0.999999, abs=1e-6)


def cells(table):
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def test_seeds_of_one_thing_make_one_line():
    rows = [{"init": "pre-trained", "seed": s, "top1": t, "loss": 0.5} for s, t in enumerate((0.91, 0.92, 0.93))]
    rows += [{"init": "[none]", "seed": 0, "top1": 0.8}]
    table = seeds_table(rows, ("init",), ("top1", "loss"))
    assert cells(table) == [
        ["init", "top1", "loss"],
        ["pre-trained", "0.920 ± 0.010 (n=3)", "0.500 ± 0.000 (n=3)"],
        ["[none]", "0.800", "-"],
    ]


def test_the_spread_is_numpys_sample_deviation():
    values = np.random.default_rng(0).uniform(size=5)
    table = seeds_table([{"a": 1, "b": 2, "x": value} for value in values], ("a", "b"), ("x",))
    expected = f"{values.mean():.3f} ± {values.std(ddof=1):.3f} (n=5)"
    assert cells(table)[1] == ["1", "2", expected]


def test_a_seed_that_diverged_is_not_hidden_in_a_mean():
    rows = [{"init": "none", "loss": value} for value in (0.5, None)]
    assert cells(seeds_table(rows, ("init",), ("loss",)))[1] == ["none", "not finite"]


def test_a_table_of_nothing_has_its_head():
    assert cells(seeds_table([], ("init",), ("top1",))) == [["init", "top1"]]
