"""Shows runs side by side: the settings in which they differ, their last measurements and their results.

greenjax compare runs/a runs/b --plot losses.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

from greenjax.config import KEYS, flatten
from greenjax.errors import InputError
from greenjax.evaluation.pictures.curve import draw_losses
from greenjax.runtime.console import rich_console, say
from greenjax.runtime.files import expanded, read_json, read_metrics, replace_text

Table = dict[str, dict[str, list[Any]]]  # part, name, a value a run; None where a run has none
REMEDY = "expected what a run of greenjax wrote"
# Measurements of the last moments of a run, which say nothing of the whole.
MOMENTARY = ("images_per_second", "flops_per_second", "waited", "learning_rate", "grad_norm", "param_norm")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(argv[0], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="WORKDIR", help="the folder of a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes the table into a file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draws the losses of all runs into one picture")
    arguments = parser.parse_args(argv[1:])
    try:
        table = compared([expanded(run) for run in arguments.runs])
        draw(arguments.runs, table)
        if arguments.json:
            replace_text(arguments.json, json.dumps({"runs": arguments.runs, **table}, indent=1) + "\n")
        if arguments.plot:
            plot_losses(arguments.plot, arguments.runs)
    except InputError as error:
        raise SystemExit(f"{argv[0]}: {error}") from None


def plot_losses(path: Path, runs: list[str]) -> None:
    """Draws the losses of these runs into a PNG. Raises InputError for another file, for one that
    cannot be written, and for a run without losses.
    """
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise InputError(f"--plot is {str(path)!r}: expected a file named *.png in a folder that is there")
    lines = {run: read_metrics(expanded(run)) for run in runs}
    if without := [run for run in runs if not any("loss" in line for line in lines[run])]:
        raise InputError(f"--plot: {without[0]!r} has no losses in metrics.jsonl: expected runs that train")
    try:
        draw_losses(path, lines)
    except OSError as error:
        raise InputError(f"--plot {str(path)!r} cannot be written: {error.strerror}") from error


def compared(workdirs: list[Path]) -> Table:
    """The table of these runs. Raises InputError where a folder has neither settings nor results of a run."""
    for workdir in workdirs:
        if not any((workdir / name).is_file() for name in ("config.json", "results.json")):
            raise InputError(f"{str(workdir)!r} is no run: expected a folder with config.json or results.json")
    settings = [flatten(_read(workdir / "config.json")) for workdir in workdirs]
    known = [column for column in settings if column]  # an evaluation by k-NN writes results alone
    differing = {key for key in set().union(*known) if len({repr(column.get(key)) for column in known}) > 1}
    return {
        "settings": {key: row for key, row in _rows(settings).items() if key in differing},
        "measured": _rows([_measured(workdir) for workdir in workdirs]),
        "results": _rows([_results(workdir) for workdir in workdirs]),
    }


def draw(runs: list[str], table: Table) -> None:
    """Prints the table, a column a run."""
    from rich.table import Table as Grid
    from rich.text import Text  # in a plain str rich reads markup

    for part, rows in table.items():
        if not rows:
            continue
        grid = Grid(box=None, pad_edge=False)
        grid.add_column(part, no_wrap=True)
        for run in runs:
            grid.add_column(Text(run), overflow="fold")
        for name, values in rows.items():
            grid.add_row(*map(Text, (name, *map(_shown, values))))
        rich_console().print(grid)
        say("")


def _measured(workdir: Path) -> dict[str, Any]:
    """The last value of each number in metrics.jsonl; counts of what never happened are left out."""
    found: dict[str, Any] = {}
    for line in read_metrics(workdir):
        found |= line
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float) and value != 0}
    return {name: value for name, value in numbers.items() if name not in MOMENTARY}


def _results(workdir: Path) -> dict[str, Any]:
    """The accuracies in results.json, by set and measure."""
    entries = {name: entry for name, entry in _read(workdir / "results.json").items() if isinstance(entry, dict)}
    return {
        f"{name} {measure}": value
        for name, entry in entries.items()
        for measure, value in entry.items()
        if isinstance(value, float) and measure not in ("temperature", "step")
    }


def _rows(columns: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A row for each name: settings in the order of the table of settings, other names as they come."""
    names = {name for column in columns for name in column}
    order = [*(name for name in KEYS if name in names), *(name for column in columns for name in column)]
    return {name: [column.get(name) for column in columns] for name in dict.fromkeys(order)}


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, dict, REMEDY) if path.is_file() else {}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
