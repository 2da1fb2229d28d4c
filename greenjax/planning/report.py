"""The analysis of a run's layouts as a table and as the paper's figure 4."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.table import Table

from greenjax.errors import InputError
from greenjax.planning.analysis import Analysis, LayoutFacts, cost_ratio

FORMATS = (".png", ".pdf", ".svg")
COLUMNS = (
    *("stage", "grid", "window", "shift", "slots", "groups", "visible"),
    *("padding", "cost", "search", "redrawn"),
)


def check_figure(plot: str | Path) -> None:
    """Raises InputError for a file that a figure cannot be drawn into."""
    if Path(plot).suffix not in FORMATS:
        expected = " or ".join(f"*{name}" for name in FORMATS)
        raise InputError(f"--plot is {str(plot)!r}: expected a file named {expected}")
    if not Path(plot).absolute().parent.is_dir():
        raise InputError(f"--plot is {str(plot)!r}: expected an existing folder")


def layout_table(analysis: Analysis) -> Table:
    """One row a window partition."""
    table = Table(*COLUMNS, box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for facts in _rows(analysis):
        partition, layout = facts.partition, facts.layout
        table.add_row(
            str(partition.stage + 1),
            "x".join(map(str, partition.grid.shape(partition.stage))),
            _sides(*partition.windows[:2]),
            _sides(*partition.windows.shift),
            str(layout.slots),
            str(layout.groups),
            str(facts.tokens),
            f"{facts.padding:.1%}",
            f"{facts.cost / facts.optimal_cost:.3f}",
            f"{facts.harder:.2%}",
            f"{facts.lost:.2%}",
        )
    return table


def summary(analysis: Analysis) -> list[str]:
    """What the columns mean, and what holds for all stages together."""
    gathered = {facts.partition.stage for facts in _rows(analysis) if facts.moves}
    still = [str(stage + 1) for stage, facts in enumerate(analysis.facts) if facts and stage not in gathered]
    optima = len(next(_rows(analysis)).optimal_slots)
    return [
        "visible: tokens of one mask. padding: share of slots without a token.",
        f"cost: of attention, projections before grouping / mean of Algorithm 1's choice for {optima} masks by Eq. 8,",
        "which projects padding too.",
        f"search: share of {analysis.masks} masks that need the stronger search. redrawn: that do not fit.",
        "",
        f"Stages that gather nothing, their visible tokens being one row: {', '.join(still) or 'none'}",
        f"Cost of the window attention of all blocks / Algorithm 1's: {cost_ratio(analysis):.3f}",
        f"Masks redrawn, all stages together: {analysis.redrawn:.2%} of {analysis.masks}",
    ]


def group_size_figure(analysis: Analysis, title: str) -> Figure:
    """The paper's figure 4: the group size g_s that Algorithm 1 finds, by stage; beside it the static one."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for number in range(max(map(len, analysis.facts))):
        facts = [stage[number] for stage in analysis.facts if len(stage) > number]
        name = "shifted" if any(facts[0].partition.windows.shift) else "regular"
        _draw_group_sizes(axes, facts, name, f"C{number}", offset=0.16 * number - 0.08)
    axes.set(
        xlabel="stage",
        ylabel="group size $g_s$ (tokens): mean, deviation",
        title=title,
        xlim=(0.5, len(analysis.facts) + 0.5),
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_group_sizes(axes: Axes, facts: Sequence[LayoutFacts], name: str, colour: str, offset: float) -> None:
    stages = [each.partition.stage + 1 + offset for each in facts]
    axes.errorbar(
        stages,
        [statistics.fmean(each.optimal_slots) for each in facts],
        yerr=[statistics.pstdev(each.optimal_slots) for each in facts],
        fmt="o-",
        capsize=3,
        color=colour,
        label=f"{name} windows, Algorithm 1 ({len(facts[0].optimal_slots)} masks)",
    )
    slots = [each.layout.slots for each in facts]
    axes.plot(stages, slots, "D", color=colour, fillstyle="none", label=f"{name} windows, static slots")


def _sides(rows: int, columns: int) -> str:
    return str(rows) if rows == columns else f"{rows}x{columns}"


def _rows(analysis: Analysis) -> Iterator[LayoutFacts]:
    for stage in analysis.facts:
        yield from stage
