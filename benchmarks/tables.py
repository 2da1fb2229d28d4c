"""Rows of figures as text."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Heading; key of the row; unit, which divides figures; format. Texts stand to the left, figures to the right.
Column = tuple[str, str, float, str]


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    """Headings and rows; a dash where a row has no figure."""
    lines = [[heading for heading, *_ in columns]]
    texts = [True] * len(columns)
    for row in rows:
        values = [row.get(key) for _, key, *_ in columns]
        texts = [text and isinstance(value, str) for text, value in zip(texts, values)]
        lines.append([cell(value, unit, form) for value, (*_, unit, form) in zip(values, columns)])
    widths = [max(map(len, column)) for column in zip(*lines)]

    def line(cells: Sequence[str]) -> str:
        sided = (f"{cell:{'<' if text else '>'}{width}}" for cell, text, width in zip(cells, texts, widths))
        return "  ".join(sided).rstrip()

    return "\n".join(map(line, lines))


def markdown(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of a table in Markdown: headings, a rule, rows; a cell is empty where a row has no figure."""
    values = [[row.get(key) for _, key, *_ in columns] for row in rows]
    texts = [
        ["" if value is None else cell(value, unit, form) for value, (*_, unit, form) in zip(row, columns)]
        for row in values
    ]
    lines = [[heading for heading, *_ in columns], ["---"] * len(columns), *texts]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def cell(value: Any, unit: float, form: str) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if isinstance(value, str) or unit == 1 else f"{value / unit:{form}}"


def seeds_table(rows: Sequence[Mapping[str, Any]], by: Sequence[str], numbers: Sequence[str]) -> str:
    """A table of results with mean and sample standard deviation over seeds, "0.912 ± 0.004 (n=3)".

    Rows with the same values of the keys `by` make one line, in the order of their first row; each of `numbers` is a
    column. A row without a number is left out of its mean and of n.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in by), []).append(row)
    lines = [
        {key: None if value is None else str(value) for key, value in zip(by, group)}
        | {key: mean_and_spread([row[key] for row in members if key in row]) for key in numbers}
        for group, members in groups.items()
    ]
    return table([(key, key, 1, "") for key in (*by, *numbers)], lines)


def mean_and_spread(values: Sequence[float | int | None]) -> str | None:
    """ "0.912 ± 0.004 (n=3)", the sample standard deviation; of one value the value, of none None."""
    if not values:
        return None
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    if len(finite) < len(values):
        return "not finite"
    mean = f"{statistics.fmean(finite):.3f}"
    return mean if len(finite) == 1 else f"{mean} ± {statistics.stdev(finite):.3f} (n={len(finite)})"
