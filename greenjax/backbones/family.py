"""`Family`: what a family of backbones states of itself. NumPy only, because data workers import it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from greenjax.backbones.rules import Layout, Resizing
from greenjax.backbones.settings import Key
from greenjax.errors import InputError
from greenjax.planning import StageSpec, TokenGrid, Windows

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A family is one folder of backbones/: family.py holds this statement, encoder.py the `Encoder`, weights.py the
    tables of PyTorch names, `LAYOUTS`.

    The functions take `model`, the model section of a resolved config.
    """

    package: str | None  # the folder as Python imports it: __package__
    sizes: Mapping[str, Settings]  # the published settings of every model.name
    # Settings in `sizes` that not every family has, by their name in the section model; families may share them.
    settings: Mapping[str, Key]
    channels: Callable[[Any], tuple[int, ...]]  # of every stage
    stages: Callable[[Any, TokenGrid], tuple[StageSpec, ...]]  # others call geometry.specs_of
    check: Callable[[Any], None]  # raises InputError where settings contradict each other
    # Layer decay: the block whose learning rate each other module of a stage takes, by the module's name. "before": the
    # last block of the stage before; "first", "last": that block of its own stage. Arrays beside the stages, such as
    # positions, are as modules of the first stage: "before" gives them the rate of the patch embedding.
    beside_blocks: Mapping[str, Literal["before", "first", "last"]]
    undecayed: frozenset[str] = frozenset()  # modules whose kernels have no weight decay
    any_window: bool = False  # weights are for every window, without resizing
    # Settings that keep the value of the weights: by name, the value with which a model on these grids computes.
    kept: Mapping[str, Callable[[Any, TokenGrid], Any]] = field(default_factory=dict)
    pads: bool = False  # model.border may be "pad": zeros fill up windows at the border, and attend
    overlapping: bool = False  # embeddings whose kernels are larger than their strides, beside the kernels of `stages`
    norms_pooled: bool = False  # a classifier pools the tokens before the last norm, not behind it
    norms_stages: bool = False  # every stage ends with a norm, the last one with the encoder's last norm
    # How many of the last stages keep the grid of the one before, in place of pooling 2x2 tokens; None: no stage does.
    unpooled: Callable[[Any], int] | None = None
    unpooled_by: str = ""  # the setting that says so
    read_by_head: tuple[str, ...] = ()  # settings that decide what a head reads; it fits only those of its training
    # Does a classifier read the normed token behind those of the last stage, a class token, and pool none?
    reads_token: Callable[[Any], bool] = lambda model: False

    @property
    def encoder(self) -> Any:
        """The class of the encoder: `Encoder(config, rngs=...)`, an NNX module.

        Its `patch_embed` takes (units, plan), the colour-normalised pixels [b, v, side, side, c] of the plan's visible
        units, to their tokens [b, n, c] in unit-major order. A call (tokens, plan, drop-path key or None) takes these
        to the normed tokens of the last stage and a tuple of every stage's tokens. A class token attends with them,
        and stands behind the normed tokens alone. Blocks are `stages/{stage}/blocks/{block}`.
        """
        return import_module(f"{self.package}.encoder").Encoder

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """The tables of PyTorch names, by the name of the layout."""
        return import_module(f"{self.package}.weights").LAYOUTS

    @property
    def resizing(self) -> Resizing | None:
        """The arrays of the encoder whose shape follows from the window or the image size; None where it has none."""
        return getattr(import_module(f"{self.package}.weights"), "RESIZING", None)

    def layer(self, path: Sequence[Any], depths: Sequence[int], blocks: int = 1) -> int:
        """The layer of a parameter of the encoder, for the layer decay: 0 at the patch embedding, the next after every
        `blocks` blocks and at every stage, the last at the last norm.

        `path` is the parameter's place in the encoder: ("stages", 0, "blocks", 1, ...).
        """
        if path[0] == "patch_embed":
            return 0
        layers = [math.ceil(depth / blocks) for depth in depths]
        if path[0] == "norm":
            return sum(layers) + 1
        stage, module = path[1:3] if path[0] == "stages" else (0, path[0])
        first = 1 + sum(layers[:stage])
        if module == "blocks":
            return first + path[3] // blocks
        return first + {"before": -1, "first": 0, "last": layers[stage] - 1}[self.beside_blocks[module]]


def refuse_part(model: Any, part: str, allowed: str) -> None:
    """Raises the InputError for one setting of a model section."""
    raise InputError(f"model.{part} is {getattr(model, part)!r}: expected {allowed}")


def check_heads(model: Any, channels: Sequence[int], note: str = "") -> None:
    """Raises InputError where the heads of a stage do not divide its channels; `note` says how channels follow."""
    for stage, (width, heads) in enumerate(zip(channels, model.num_heads)):
        if width % heads:
            allowed = f"a divisor of the {width} channels of stage {stage + 1} in place of {heads}"
            refuse_part(model, "num_heads", allowed + note)


def square_windows(
    side: int, grid: tuple[int, int], blocks: int, *, shifted: bool, padded: bool = False
) -> tuple[Windows, ...]:
    """The windows of the `blocks` blocks of a stage with local attention, `side` tokens a side.

    With `shifted`, every second block moves them by half a side. A grid (rows, columns) that is not larger than the
    window on both axes gets one window size, its shorter side, and no shift: the rule of the official Swin Transformer.
    In a `padded` grid windows keep their side, and rest on an axis that one of them covers: the rule of torchvision.
    """
    if not padded and min(grid) <= side:
        return (Windows(min(grid), min(grid), blocks=blocks),)
    rows, columns = (side // 2 if length > side else 0 for length in grid)
    if not shifted or blocks < 2 or not rows + columns:
        return (Windows(side, side, blocks=blocks),)
    return Windows(side, side, blocks=(blocks + 1) // 2), Windows(side, side, (rows, columns), blocks // 2)
