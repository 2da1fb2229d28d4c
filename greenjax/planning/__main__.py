"""The layouts of a configuration, their cost against Algorithm 1, and the share of redrawn masks.

    greenjax plan --config swin_b [--set mask.ratio=0.6] [--masks N] [--plot FILE.png]

`python -m greenjax.planning` does the same.
"""

import sys
from collections.abc import Sequence

from ml_collections import ConfigDict
from rich.console import Console

from greenjax.backbones.geometry import make_planner, stage_channels
from greenjax.config import flags
from greenjax.errors import InputError
from greenjax.planning.analysis import analyse
from greenjax.planning.report import check_figure, group_size_figure, layout_table, summary

WIDTH = 110  # columns, where the output is not a terminal


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(flags.program(argv, "greenjax.planning"), __doc__)
    parser.add_argument("--masks", type=flags.positive, default=10_000, help="how many masks to simulate")
    parser.add_argument("--plot", help="file to draw the paper's figure 4 into, such as FILE.png")
    arguments, config = flags.parse_command(parser, argv)
    try:
        report(config, arguments.masks, arguments.plot)
    except (InputError, OSError) as error:
        parser.error(str(error))


def report(config: ConfigDict, masks: int, plot: str | None = None) -> None:
    """Simulates masks of a resolved configuration and prints the analysis; `plot` names a file for the figure.

    Raises InputError for a method that groups nothing, for layouts that lose too many masks, and for a figure of a
    backbone without windows.
    """
    if config.method != "green":
        raise InputError(
            f"method is {config.method!r}, whose encoder takes all tokens and groups none: expected 'green'"
        )
    if plot:
        check_figure(plot)
    planner = make_planner(config)
    windows = any(planner.partitions)
    if plot and not windows:
        raise InputError(f"model.name is {config.model.name!r}, which has no windows: no figure can be drawn")
    analysis = analyse(planner, stage_channels(config), masks)
    title = f"{config.model.name}, {'x'.join(map(str, config.image_size))} pixels"
    title += f", window {config.model.window}" if windows else ", no windows"
    units = planner.grid.units[0] * planner.grid.units[1]
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False)
    console.print(
        f"{title}, patch {config.model.patch}: {planner.visible} of {units} mask units visible,"
        f" {planner.grid.unit} pixels a side{f', {planner.block} x {planner.block} to a block' * (planner.block > 1)}"
    )
    if windows:
        console.print(layout_table(analysis))
        console.print("\n".join(summary(analysis)))
    console.print(f"Time to draw and plan one mask: {analysis.milliseconds:.2f} ms (median)")
    if plot:
        group_size_figure(analysis, f"{title}, mask ratio {config.mask.ratio:g}").savefig(plot, dpi=150)
        console.print(f"Figure 4: {plot}")


if __name__ == "__main__":
    main(sys.argv)
