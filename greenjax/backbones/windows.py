"""The windows of a model on its grids, and the rules of libraries that treat them otherwise. NumPy only."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ml_collections import ConfigDict

from greenjax.backbones.geometry import stage_specs, token_grid
from greenjax.backbones.rules import Fault
from greenjax.errors import InputError
from greenjax.planning.plan import Windows


class WindowedStage(NamedTuple):
    """A stage with square windows."""

    number: int  # from 0
    rows: int  # of its grid of tokens
    columns: int
    window: int  # model.window
    side: int  # of its windows: `window`, or the shorter side of a smaller grid
    shifted: bool  # odd blocks shift their windows
    depth: int
    patch: int
    padded: bool  # zeros fill up windows at the border, and attend

    @property
    def cut(self) -> tuple[bool, bool]:
        """Does the border cut windows, or do zeros fill them up there, along rows and along columns?"""
        return bool(self.rows % self.side), bool(self.columns % self.side)

    def __str__(self) -> str:
        return f"stage {self.number + 1} has a grid of {self.rows} x {self.columns} tokens"


def windowed_stages(config: ConfigDict) -> list[WindowedStage]:
    """The stages of a resolved config that have windows."""
    grid, model = token_grid(config), config.model
    return [
        WindowedStage(
            i,
            *grid.shape(i),
            window=model.window,
            side=_side(i, spec.windows),
            shifted=len(spec.windows) > 1,
            depth=model.depths[i],
            patch=model.patch,
            padded=grid.padded,
        )
        for i, spec in enumerate(stage_specs(config))
        if spec.windows
    ]


def _side(stage: int, windows: Sequence[Windows]) -> int:
    """The one side of all windows of a stage. Raises InputError where they have several."""
    sides = {side for partition in windows for side in (partition.rows, partition.columns)}
    if len(sides) > 1:
        found = " and ".join(f"{partition.rows} x {partition.columns}" for partition in windows)
        raise InputError(f"the windows of stage {stage + 1} are {found}: expected square ones of one size")
    return sides.pop()


WindowRule = Callable[[WindowedStage], Fault | None]


def window_faults(*rules: WindowRule) -> Callable[[ConfigDict], Iterator[Fault]]:
    """The `faults` of a layout whose library has these rules, stage by stage."""
    return partial(_faults, rules)


def _faults(rules: tuple[WindowRule, ...], config: ConfigDict) -> Iterator[Fault]:
    for stage in windowed_stages(config):
        yield from filter(None, (rule(stage) for rule in rules))


def windows_do_not_shrink(stage: WindowedStage) -> Fault | None:
    """The library does not shrink a window that is larger than the grid."""
    if stage.side == stage.window:
        return None
    least = stage.window * stage.patch * 2**stage.number
    expected = f", which the library does not shrink: expected an image_size of at least {least} a side"
    return Fault(f"{stage}, smaller than the window of {stage.window}", expected, "refused")


def windows_are_whole(stage: WindowedStage) -> Fault | None:
    """The library runs only on grids that are multiples of the window."""
    if not any(stage.cut):
        return None
    return Fault(_no_multiple(stage), f", which the library cannot run: expected multiples of {stage.side}", "refused")


def padding_attends(stage: WindowedStage) -> Fault | None:
    """The library pads grids that are no multiple of the window with zeros, and these attend."""
    if stage.padded or not any(stage.cut):
        return None
    then = ": the library's padding attends, and greenjax has none: expected model.border 'pad'"
    return Fault(_no_multiple(stage), then, "differs")


def small_grids_have_one_window(stage: WindowedStage) -> Fault | None:
    """The library shrinks a window that covers an axis of a grid, or does not shift it, as model.border "cut" does."""
    if not stage.padded or min(stage.rows, stage.columns) > stage.window or stage.rows == stage.columns == stage.window:
        return None
    then = ", which the library does not fill up: expected model.border 'cut', or larger images"
    return Fault(f"{stage} with a window of {stage.window}", then, "differs")


def windows_shrink_on_each_axis(stage: WindowedStage) -> Fault | None:
    """timm's rule for windows that are larger than the grid."""
    if stage.padded:
        return small_grids_have_one_window(stage) if min(stage.rows, stage.columns) < stage.window else None
    if stage.rows == stage.columns or min(stage.rows, stage.columns) > stage.window:
        return None
    then = ", which timm cuts on each axis by itself: expected a square grid, or one with both sides above the window"
    return Fault(f"{stage} with a window of {stage.window}", then, "refused")


def _no_multiple(stage: WindowedStage) -> str:
    return f"{stage}, no multiple of the window of {stage.side}"
