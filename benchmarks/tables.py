"""Rows of figures as text."""

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


def cell(value: Any, unit: float, form: str) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if isinstance(value, str) or unit == 1 else f"{value / unit:{form}}"
