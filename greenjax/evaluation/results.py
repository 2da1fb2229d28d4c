"""What evaluations leave behind: results.json and predictions as files, a table over seeds for people."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from greenjax.evaluation.classify import Predictions
from greenjax.runtime.files import read_json, replace_text

_WIDTH = 200  # columns at most: a table is as wide as it has to be, and never wraps on its own


def write_results(workdir: str | Path, name: str, result: Mapping[str, Any]) -> None:
    """Sets the entry `name` of DIR/results.json, {name: {task, split, images, top1, ...}}; other entries stay.

    The file is replaced as a whole. Numbers that are not finite become null, which JSON has in their place. Raises
    InputError where the file holds something else than named results, or the folder cannot be made.
    """
    path = Path(workdir) / "results.json"
    results = read_results(workdir) | {name: {key: _plain(value) for key, value in result.items()}}
    replace_text(path, json.dumps(results, indent=2) + "\n")


def read_results(workdir: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of DIR/results.json; none where there is no such file."""
    path = Path(workdir) / "results.json"
    if not path.exists():
        return {}
    return read_json(path, dict, "expected named results; move it away")


def write_predictions(path: str | Path, predictions: Predictions, files: Sequence[str], names: Sequence[str]) -> None:
    """Writes a CSV with a header, an image a line; replaces the file.

    Columns: index, label, predicted, confidence, file, label_name, predicted_name. `files` are the names of these
    images, `names` those of the classes.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("index", "label", "predicted", "confidence", "file", "label_name", "predicted_name"))
    printable = [_printable(name) for name in names]
    for (index, label, predicted, confidence), file in zip(zip(*predictions), files, strict=True):
        words = _printable(file), printable[label], printable[predicted]
        lines.writerow((index, label, predicted, f"{confidence:.6f}", *words))
    replace_text(Path(path), text.getvalue())


def results_table(rows: Sequence[Mapping[str, Any]], by: Sequence[str], numbers: Sequence[str]) -> str:
    """A plain-text table of results with mean and sample standard deviation over seeds.

    Rows that agree in the keys `by` are seeds of one thing and make one line, in the order of their first row; each
    of `numbers` is a column, "0.912 ± 0.004 (n=3)". What a row lacks is left out of its mean and out of n.
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


def _printable(text: str) -> str:
    """File names may hold bytes that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: Any) -> Any:
    """What JSON knows: NumPy's and JAX's scalars as numbers, null in place of NaN and infinity."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
