"""A plain-text table of results over seeds."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_WIDTH = 200  # columns at most: a table is as wide as it has to be, and never wraps on its own


def results_table(rows: Sequence[Mapping[str, Any]], by: Sequence[str], numbers: Sequence[str]) -> str:
    """A plain-text table of results with mean and sample standard deviation over seeds.

    Rows with the same values of the keys `by` make one line, in the order of their first row; each of `numbers` is a
    column, "0.912 ± 0.004 (n=3)". A row without a number is left out of its mean and of n.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in by), []).append(row)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for key in by:
        table.add_column(key, no_wrap=True)
    for key in numbers:
        table.add_column(key, justify="right", no_wrap=True)
    for group, members in groups.items():
        table.add_row(
            *("-" if value is None else str(value) for value in group),
            *(mean_and_spread([row[key] for row in members if key in row]) for key in numbers),
        )
    # Names are no markup, whatever brackets are in them.
    console = Console(file=io.StringIO(), width=_WIDTH, markup=False, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def mean_and_spread(values: Sequence[float | int | None]) -> str:
    """ "0.912 ± 0.004 (n=3)", the sample standard deviation; of one value the value, of none "-"."""
    if not values:
        return "-"
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    if len(finite) < len(values):
        return "not finite"
    mean = f"{statistics.fmean(finite):.3f}"
    return mean if len(finite) == 1 else f"{mean} ± {statistics.stdev(finite):.3f} (n={len(finite)})"
