"""The windows of a model's stages, and in which libraries they differ. NumPy only."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.rules import Fault


class Windows(NamedTuple):
    """The windows of one stage."""

    stage: int
    rows: int  # of the stage's grid of tokens
    columns: int
    window: int  # model.window
    patch: int
    depth: int

    @property
    def side(self) -> int:
        """A window is no larger than the shorter side of the grid."""
        return min(self.window, self.rows, self.columns)

    @property
    def cut(self) -> tuple[bool, bool]:
        """Does the border cut windows, along rows and along columns?"""
        return bool(self.rows % self.side), bool(self.columns % self.side)

    def __str__(self) -> str:
        return f"stage {self.stage + 1} has a grid of {self.rows} x {self.columns} tokens"


def stage_windows(config: ConfigDict) -> list[Windows]:
    """The windows of every stage of a resolved config; none where the model has no windows."""
    grid, model = token_grid(config), config.model
    stages = range(grid.stages if model.window else 0)
    return [Windows(i, *grid.shape(i), model.window, model.patch, model.depths[i]) for i in stages]


Rule = Callable[[Windows], Fault | None]


def window_faults(*rules: Rule) -> Callable[[ConfigDict], Iterator[Fault]]:
    """The `faults` of a layout whose library has these rules, stage by stage."""
    return partial(_faults, rules)


def _faults(rules: tuple[Rule, ...], config: ConfigDict) -> Iterator[Fault]:
    for windows in stage_windows(config):
        yield from filter(None, (rule(windows) for rule in rules))


def windows_do_not_shrink(windows: Windows) -> Fault | None:
    """The library has no window that is larger than the grid."""
    if windows.side == windows.window:
        return None
    least = windows.window * windows.patch * 2**windows.stage
    there = f", which it cannot have: expected an image_size of at least {least} a side there"
    return Fault(f"{windows}, smaller than the window of {windows.window}", there, "refused")


def windows_are_whole(windows: Windows) -> Fault | None:
    """The library runs only on grids that are multiples of the window."""
    if not any(windows.cut):
        return None
    return Fault(_no_multiple(windows), f", which it cannot run: expected multiples of {windows.side}", "refused")


def padding_attends(windows: Windows) -> Fault | None:
    """The library pads grids that are no multiple of the window with zeros, and these attend."""
    if not any(windows.cut):
        return None
    return Fault(_no_multiple(windows), ": there, padding attends; here it does not", "differs")


def _no_multiple(windows: Windows) -> str:
    return f"{windows}, no multiple of the window of {windows.side}"
