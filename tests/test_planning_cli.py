"""python -m greenjax.planning: the table, the figure, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from greenjax.backbones.geometry import make_planner, stage_specs
from greenjax.config import load_config
from greenjax.planning.__main__ import report
from greenjax.planning.analysis import Analysis, analyse, cost_ratio
from greenjax.planning.grouping import layout_cost, optimal_grouping
from greenjax.planning.planner import Planner, simulated_masks
from greenjax.planning.report import group_size_figure, layout_table, summary

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "configs" / "digits.py"
# A geometry of the test's own: the recipe of the digits may change.
STAGES = {"model.patch": 2, "model.embed_dim": 48, "model.depths": (2, 2, 2), "model.num_heads": (3, 6, 12)}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Layouts are found once for this file, and nothing outside is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def planner() -> Planner:
    return make_planner(load_config(DIGITS, STAGES))


@pytest.fixture(scope="module")
def analysis(planner) -> Analysis:
    return analyse(planner, [48, 96, 192], masks=40)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "greenjax.planning", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_command_prints_the_table_and_draws_the_figure(tmp_path):
    figure = tmp_path / "figure4.png"
    stages = (f"--config.{key}={value}" for key, value in STAGES.items())
    done = run(f"--config={DIGITS}", *stages, "--config.mask.ratio=0.6", "--masks=30", f"--plot={figure}")
    assert done.returncode == 0, done.stderr
    assert "6 of 16 mask units visible" in done.stdout
    assert re.search(r"1 +16x16 +4 +0 +\d+ +\d+ +96 ", done.stdout)
    assert re.search(r"redrawn, all stages together: \d+\.\d\d% of 30", done.stdout)
    assert figure.read_bytes().startswith(PNG)


def test_what_cannot_be_planned_is_refused_in_one_line():
    for arguments, message in [
        ((f"--config={DIGITS}", "--config.method=simmim"), "method is 'simmim'"),
        ((f"--config={DIGITS}", "--config.mask.ratoi=0.5"), "nearest are mask.ratio"),
        ((f"--config={DIGITS}", "--masks=0"), "masks"),
    ]:
        done = run(*arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"), [("twins_s", r"1 +56x56 +7 +0 +56 +16 +768 "), ("pcpvt_s", "224x224 pixels, no windows")]
)
def test_twins_are_reported(name, expected, capsys):
    report(load_config(ROOT / "configs" / "twins_s.py", {"model.name": name}), masks=20)
    printed = capsys.readouterr().out
    assert re.search(expected, printed)
    assert re.search(r"Time to draw and plan one mask: \d+\.\d\d ms", printed)


def test_without_windows_there_is_no_figure(tmp_path):
    config = load_config(ROOT / "configs" / "pcpvt_l.py")
    with pytest.raises(ValueError, match="'pcpvt_l', which has no windows: no figure can be drawn"):
        report(config, masks=1, plot=str(tmp_path / "figure.png"))


def test_every_block_with_local_attention_has_its_windows():
    def blocks(config):
        return [[windows.blocks for windows in spec.windows] for spec in stage_specs(config)]

    assert blocks(load_config(DIGITS, STAGES | {"model.depths": (3, 2, 1)})) == [[2, 1], [1, 1], [1]]
    assert blocks(load_config(ROOT / "configs" / "twins_s.py")) == [[1], [1], [5], [2]]
    assert blocks(load_config(ROOT / "configs" / "pcpvt_l.py")) == [[], [], [], []]


def test_planning_does_not_import_jax():
    code = "import sys, greenjax.planning; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_analysis_agrees_with_its_definitions(analysis, planner):
    """Costs, padding and group sizes of the table, computed again from masks."""
    masks = simulated_masks(planner.grid.units, planner.visible, 40, seed=1)
    for channels, stage, partitions in zip([48, 96, 192], analysis.facts, planner.partitions, strict=True):
        for facts, partition in zip(stage, partitions, strict=True):
            slots, groups = facts.layout
            optima = [optimal_grouping(sizes.tolist(), channels) for sizes in partition.sizes(masks)]
            assert facts.optimal_slots == tuple(optimum.slots for optimum in optima)
            assert facts.optimal_cost == sum(optimum.cost for optimum in optima) / 40
            assert facts.cost == layout_cost(facts.tokens, slots, groups, channels)
            assert facts.tokens == planner.visible * planner.grid.tokens_per_unit(partition.stage)
            assert facts.padding == pytest.approx((slots * groups - facts.tokens) / (slots * groups))
            assert facts.moves == (groups > 1 or slots > facts.tokens)


def test_cost_ratio_counts_blocks():
    """Of five blocks three have regular windows and two shifted ones."""
    depths = {"model.embed_dim": 48, "model.depths": (5, 1), "model.num_heads": (3, 6), "model.patch": 2}
    (one, two), (three,) = (facts := analyse(make_planner(load_config(DIGITS, depths)), [48, 96], masks=9)).facts
    optimal = 3 * one.optimal_cost + 2 * two.optimal_cost + three.optimal_cost
    assert cost_ratio(facts) == pytest.approx((3 * one.cost + 2 * two.cost + three.cost) / optimal)


def test_table_and_summary_name_every_stage(analysis):
    table = layout_table(analysis)
    assert table.row_count == sum(map(len, analysis.facts))
    still = [str(number + 1) for number, stage in enumerate(analysis.facts) if not any(f.moves for f in stage)]
    assert any(f"one row: {', '.join(still)}" in line for line in summary(analysis))


def test_figure_shows_algorithm_1_and_the_static_slots(analysis):
    axes = group_size_figure(analysis, "digits").axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert sum("Algorithm 1" in label for label in labels) == 2
    assert sum("static slots" in label for label in labels) == 2
    drawn = [line.get_ydata() for line in axes.lines if line.get_label() == "regular windows, static slots"]
    assert list(drawn[0]) == [stage[0].layout.slots for stage in analysis.facts]


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/figure.png", "expected an existing folder"), ("figure.xyz", "expected a file named")],
)
def test_a_plot_that_cannot_be_drawn_is_refused_before_the_simulation(tmp_path, capsys, name, message):
    with pytest.raises(ValueError, match=message):
        report(load_config(DIGITS), masks=5, plot=str(tmp_path / name))
    assert capsys.readouterr().out == ""
