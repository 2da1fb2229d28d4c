"""The figure of `benchmarks evidence`: accuracy over the seconds, or the updates, of a training."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.evidence_reading import ALL, FEW
from benchmarks.evidence_text import Row
from benchmarks.study import FINETUNE, KNN, PROBE

PANELS = tuple(f"{way}, {labels}" for labels in (FEW, ALL) for way in (PROBE, KNN, FINETUNE))


def draw(rows: Sequence[Row]) -> Figure:
    """A panel a way of judging; lines are means over seeds, bands reach from the lowest seed to the highest."""
    figure = Figure(figsize=(12, 6.4), dpi=100, layout="constrained")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    along = "seconds" if all("seconds" in row for row in rows) else "updates"
    for index, key in enumerate(PANELS):
        panel = figure.add_subplot(2, 3, index + 1, title=key, xlabel=along)
        for number, arm in enumerate(arms):
            curve(panel, [row for row in rows if row["arm"] == arm and key in row], key, along, f"C{number}", arm)
        panel.grid(alpha=0.3)
        if index % 3 == 0:
            panel.set_ylabel("held-out top-1")
    handles = {label: line for panel in figure.axes for line, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    return figure


def curve(panel: Axes, rows: Sequence[Row], key: str, along: str, colour: str, arm: str) -> None:
    """One arm's accuracy; where it does no pre-training, a point."""
    places = sorted({row[along] for row in rows})
    values = [[row[key] for row in rows if row[along] == place] for place in places]
    means, lowest, highest = (list(map(of, values)) for of in (statistics.fmean, min, max))
    if len(places) > 1:
        panel.fill_between(places, lowest, highest, color=colour, alpha=0.15)
    panel.vlines(places, lowest, highest, color=colour, alpha=0.4)
    panel.plot(places, means, "o-", color=colour, label=arm, markersize=4)
