"""Which batch fits which GPU: memory of the green update by batch, from compiled programs.

Of each model in float32, in bfloat16, and in bfloat16 with `model.remat`, two batches are compiled, for this machine's
device or with --gpu for a card that is not here. The straight line through their memory (weights, optimizer, images,
temporaries) says which batch fits SHARE of a card of each of CARDS_GB. Batches are multiples of `mask.groups`. Nothing
is run. docs/which_backbone.md has the figures.
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks.ahead import CARDS, described
from benchmarks.families import named
from benchmarks.programs import ONE_DEVICE, check_pretraining, compile_part, sized
from benchmarks.tables import Column, markdown
from greenjax.backbones.registry import family_of

CARDS_GB = (8, 16, 24, 40, 80)  # GiB, as cards are sold
SHARE = 0.9  # of a card's memory; the rest is CUDA's, and gaps between arrays
COMPILED = (4, 16)  # images of a mask, in the two programs
NAMES = ("swin_t", "swin_b", "swin_l", "twins_l", "hiera_b", "convnextv2_base")
VARIANTS = {
    "float32": {"model__dtype": "float32"},
    "bfloat16": {"model__dtype": "bfloat16"},
    "bfloat16, remat": {"model__dtype": "bfloat16", "model__remat": True},
}
FLAGS = {
    "--names": dict(nargs="+", default=list(NAMES), metavar="NAME", help=f"model.name, by default {' '.join(NAMES)}"),
    "--gpu": dict(choices=CARDS, help="compile for this card"),
}
COLUMNS: list[Column] = [
    ("`model.name`", "name", 1, ""),
    ("numbers", "variant", 1, ""),
    ("GB", "constant", 1e9, ".1f"),
    ("MB an image", "slope", 1e6, ".1f"),
    *[(f"{size} GB", f"batch_{size}", 1, "d") for size in CARDS_GB],
]


def run(config: ConfigDict, names: list[str], gpu: str | None = None) -> dict[str, Any]:
    """Prints the rows of a pre-training configuration with each of `names`, one by one, and returns them.

    A batch of 0: `mask.groups` images do not fit. Raises InputError with `gpu` and without JAX's CUDA plugin.
    """
    check_pretraining(config)
    for name in names:
        family_of(name)  # raises InputError for an unknown name before minutes of work
    device = described(CARDS[gpu]) if gpu else jax.devices()[0]
    card = CARDS[gpu].name if gpu else device.device_kind
    shared = ONE_DEVICE | {"mask__groups": config.mask.groups, "method": "green"}
    print(f"the green update, compiled for one {card}, {config.mask.groups} masks, {SHARE:g} of the memory: not run")
    rows: list[dict[str, Any]] = []
    for name in names:
        for variant, changes in VARIANTS.items():
            rows.append({"name": name, "variant": variant} | row(named(config, name), changes | shared, device))
            lines = markdown(COLUMNS, rows[-1:])
            print("\n".join(lines if len(rows) == 1 else lines[2:]), flush=True)
    return {"device": card, "jax": jax.__version__, "share": SHARE, "rows": rows}


def row(config: ConfigDict, changes: dict[str, Any], device: Any) -> dict[str, Any]:
    """Memory of an update, in bytes, as a constant and a slope by image; the greatest batch of each card."""
    groups = changes["mask__groups"]
    batches = [images * groups for images in COMPILED]
    memory = [compile_part(sized(config, n, **changes), "update", devices=[device]).memory for n in batches]
    slope = (memory[1] - memory[0]) / (batches[1] - batches[0])
    constant = memory[0] - slope * batches[0]
    fits = {f"batch_{size}": greatest(SHARE * size * 2**30, constant, slope, groups) for size in CARDS_GB}
    return {"compiled": dict(zip(batches, memory)), "constant": constant, "slope": slope} | fits


def greatest(memory: float, constant: float, slope: float, groups: int) -> int:
    """The greatest multiple of `groups` whose update fits into these bytes; 0 where none does."""
    return max(0, int((memory - constant) / slope)) // groups * groups
