"""The arms of every table of `benchmarks evidence`: ways to pre-train, each a configuration."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.evidence_patches import loss_of_green, swapped_latents
from benchmarks.study import changed
from greenjax.config import flatten
from greenjax.errors import InputError

GREEN, SIMMIM, SIMMIM_ALIKE, MAE = "green", "SimMIM", "SimMIM, loss of green", "MAE (ViT)"
GREEN_LONGER = "green, fine-tuned longer"
SCRATCH, SCRATCH_LONGER = "from scratch", "from scratch, longer"
# Rates of pre-training over green's: the best of `--table rates` on mnist5k (docs/evidence.md).
SIMMIM_RATE, SIMMIM_ALIKE_RATE = 1 / 8, 2


class Arm(NamedTuple):
    """One way to pre-train, and to fine-tune from there."""

    name: str
    config: ConfigDict | None  # None: no pre-training
    encoder: ConfigDict | None = None  # without a pre-training: whose encoder it has; by default --config's
    start: str = ""  # the run whose encoder is taken without a pre-training, in place of a random one
    longer: bool = False  # trained on to equal wall time
    tuned_on: bool = False  # from equal updates, or from scratch, fine-tuned on to equal wall time
    inside: Callable[[], AbstractContextManager[None]] = nullcontext  # a change that holds while it trains
    rate: float = 1.0  # of fine-tuning, times the recipe's
    of: str = ""  # the arm whose pre-training this one takes
    against: str = ""  # the arm that it is compared with; by default the table's first
    like: str = ""  # the arm whose costs it has; by default its own


def methods(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Green, what it replaces, and no pre-training."""
    dense = changed(config, {"method": "simmim"})

    def at(rate: float) -> ConfigDict:
        return changed(dense, {"optim.base_lr": rate * config.optim.base_lr})

    simmim = Arm(SIMMIM, at(SIMMIM_RATE), longer=True)
    alike = Arm(SIMMIM_ALIKE, at(SIMMIM_ALIKE_RATE), longer=True, inside=loss_of_green, like=SIMMIM)
    green, scratch = Arm(GREEN, config, longer=True), Arm(SCRATCH, None)
    arms = [green, simmim, alike] + ([Arm(MAE, mae, longer=True)] if mae is not None else [])
    arms += [scratch, scratch._replace(name=SCRATCH_LONGER, tuned_on=True)]
    longer = green._replace(name=GREEN_LONGER, tuned_on=True, of=GREEN, like=GREEN, against=SCRATCH_LONGER)
    return [*arms, longer]


def families(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Green and no pre-training, for the Swin of --config and for other backbones as wide and as deep."""
    if not config.model.name.startswith("swin_"):
        raise InputError(f"model.name of --config is {config.model.name!r}: --table families expects a Swin")
    arms = [Arm(GREEN, config, longer=True), Arm(SCRATCH, None)]
    for name, settings in backbones(config.model).items():
        sizes = {"norm_epsilon": None} | settings  # None: the family's own
        own = changed(config, {f"model.{key}": value for key, value in sizes.items()})
        arms += [Arm(name, own, against=name), Arm(f"{name}, {SCRATCH}", None, encoder=own, against=name)]
    return arms


def backbones(swin: ConfigDict) -> dict[str, dict[str, Any]]:
    """Other families in the size of a Swin, by name: what of `model` is not as there."""
    strides = [2**stage for stage in range(len(swin.depths))]
    by_stage = {"embed_dim": 0, "embed_dims": tuple(swin.embed_dim * stride for stride in strides)}
    reducing = {**by_stage, "sr_ratios": tuple(reversed(strides))}  # one key a mask unit
    return {
        "Swin V2": {"name": "swinv2_t"},
        "Twins-SVT": {"name": "twins_s", **reducing},
        "PVT v2": {"name": "pvt_v2_b0", "window": 0, **reducing},
        "ConvNeXt V2": {"name": "convnextv2_atto", "window": 0, "num_heads": (0,), **by_stage},
        "Hiera": {"name": "hiera_t", "window": 0},
    }


def continuing(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Green from the encoder that `init` of --config names, and from a random one; and neither pre-trained."""
    fresh = Arm("random, then green", changed(config, {"init": "none"}))
    return [fresh, Arm("init, then green", config), Arm("init", None, start=config.init), Arm(SCRATCH, None)]


def rates(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Rates of pre-training, the same ones for each method."""
    return [
        Arm(f"{arm.name}, {rate:g}", changed(arm.config, {"optim.base_lr": rate}), inside=arm.inside)
        for arm in methods(config, mae)
        if arm.config and not arm.tuned_on
        for rate in (config.optim.base_lr * factor for factor in (4, 2, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16))
    ]


def finetuning(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Rates of fine-tuning."""
    return [
        arm._replace(name=f"{arm.name}, rate x {rate:g}", rate=rate, of=arm.name, longer=False)
        for arm in methods(config, mae)
        if not arm.tuned_on
        for rate in (0.5, 1.0, 2.0, 4.0)
    ]


def choices(config: ConfigDict, values: dict[str, tuple[Any, ...]]) -> list[Arm]:
    """Green as it is, then with each value of some settings, one changed at a time."""
    own = flatten(config)
    return [Arm(GREEN, config, longer=True)] + [
        Arm(f"{key} {value}", changed(config, {key: value}))
        for key, others in values.items()
        for value in others
        if value != own[key]
    ]


def order(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Depths of the decoder, each with the visible latents at their own places and at each other's."""
    own = choices(config, {"decoder.depth": (1, 2, 4)})
    others = (
        arm._replace(name=f"{arm.name}, swapped", inside=swapped_latents, longer=False, against=arm.name) for arm in own
    )
    return [*own, *others]


def masks(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """How many masks a batch has, how much they hide, and in which pieces."""
    groups = 1, 8, config.data.batch_size
    return choices(config, {"mask.groups": groups, "mask.ratio": (0.5, 0.625, 0.75, 0.875), "mask.block": (1, 2)})


def decoders(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Widths of the decoder, and what it predicts."""
    return choices(config, {"decoder.dim": (16, 32, 64, 128), "decoder.norm_pixels": (True, False)})


def sizes(config: ConfigDict, mae: ConfigDict | None) -> list[Arm]:
    """Green on the first images of the training split, for as many updates; labels are of the whole split."""
    few = {f"{config.data.split}[:{count}]": f"{count} images" for count in (250, 1000)}
    fewer = [Arm(n, changed(config, {"data.split": s}), longer=True, like=GREEN) for s, n in few.items()]
    return [Arm(GREEN, config, longer=True), *fewer]


TABLES: dict[str, Callable[[ConfigDict, ConfigDict | None], list[Arm]]] = {
    "methods": methods,
    "families": families,
    "continuing": continuing,
    "rates": rates,
    "finetuning": finetuning,
    "order": order,
    "masks": masks,
    "decoders": decoders,
    "sizes": sizes,
}
