"""The figure of the suite `growth`: a column for each changed value, a row for each cost."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# What the report calls it, its label, its unit.
ROWS = (
    ("seconds", "time of an update (s)", 1.0),
    ("temporary", "temporary memory (GB)", 1e9),
    ("flops", "matrix products (TFLOP)", 1e12),
)
COLUMNS = {
    "image_size": "image size (pixels a side)",
    "batch": "batch (images)",
    "mask_ratio": "mask ratio",
    "window": "window (tokens a side)",
}
CURVES = {  # by what stands before the name in the report: label and style
    "": ("green", dict(color="tab:green", marker="o")),
    "expected_": ("green, expected", dict(color="black", linestyle="--", linewidth=1)),
    "dense_": ("dense (SimMIM on the same encoder)", dict(color="tab:red", marker="s", markersize=4)),
}
BESIDE = dict(color="tab:blue", marker="^", markersize=4)  # green, of the other run


def growth_figure(report: dict[str, Any], beside: dict[str, Any] | None = None) -> Figure:
    """Both axes are logarithmic, so that powers are straight lines.

    The horizontal axis is visible tokens of an update, for windows their side. `beside`: the report of another run.
    """
    columns = {axis: heading for axis, heading in COLUMNS.items() if axis in report["axes"]}
    figure = Figure(figsize=(15, 9.5), layout="constrained")
    grid = figure.subplots(len(ROWS), len(columns), sharex="col", sharey="row", squeeze=False)
    for line, (name, label, unit) in zip(grid, ROWS, strict=True):
        for axes, axis in zip(line, columns, strict=True):
            draw(axes, axis, name, unit, report["axes"][axis])
            if beside:
                known = [row for row in beside["axes"].get(axis, {"rows": []})["rows"] if row.get(name)]
                values = [row[name] / unit for row in known]
                axes.plot(places(axis, known), values, label=f"green, {beside['model']}, {beside['dtype']}", **BESIDE)
        line[0].set_ylabel(label)
    for axes, (axis, heading) in zip(grid[-1], columns.items(), strict=True):
        mark(axes, axis, heading, report["axes"][axis]["rows"])
    window = f", window {report['window']}" if report["window"] else ""
    figure.suptitle(
        f"One update of {report['model']}, {report['dtype']}: from {report['image_size']} pixels, batch"
        f" {report['batch']}, mask ratio {report['mask_ratio']:g}{window}, one thing changed at a"
        f" time\n{report['cores']} cores of {report['device']}, median of {report['repeats']} interleaved runs"
    )
    handles, labels = grid[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw(axes: Axes, axis: str, name: str, unit: float, found: dict[str, Any]) -> None:
    """The curves of one panel, and their exponents."""
    for before, (label, style) in CURVES.items():
        known = [row for row in found["rows"] if row.get(before + name)]
        axes.plot(places(axis, known), [row[before + name] / unit for row in known], label=label, **style)
    slopes = found["slopes"]
    measured, expected = (slopes.get(each) for each in (name, f"expected_{name}"))
    if measured is not None and expected is not None:
        text = f"exponent {measured:.2f}, expected {expected:.2f}"
        axes.text(0.03, 0.96, text, transform=axes.transAxes, va="top", fontsize=9)
    axes.set(xscale="log", yscale="log")
    axes.margins(y=0.18)
    axes.grid(axis="y", which="both", alpha=0.25)


def mark(axes: Axes, axis: str, heading: str, rows: list[dict[str, Any]]) -> None:
    """Ticks at the settings, which the columns share."""
    axes.set_xticks(places(axis, rows), [f"{row[axis]:g}" for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(heading if axis == "window" else f"{heading}, placed by visible tokens")


def places(axis: str, rows: list[dict[str, Any]]) -> list[int]:
    return [row["window" if axis == "window" else "tokens"] for row in rows]
