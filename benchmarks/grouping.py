"""Ways to group the windows of visible tokens, side by side: what they cost on paper, and the time of an update.

Algorithm 1 of the paper (arXiv 2205.13515), simpler packings, one masked attention over all visible tokens, and the
static layouts that greenjax trains with. The paper's appendix A.2 asks the same question. docs/grouping.md explains the
figures.

The shapes of all ways but the last two depend on the mask. Their updates are compiled for one typical mask: of all
simulated ones, the mask whose cost is nearest to the median by every way at once. All ways are timed on it, and have
equal losses under it, since they compute the same attention.
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from benchmarks.measure import TIMING, interleaved_seconds, machine, ratio_quartiles
from benchmarks.programs import Program, check_devices, compile_part, first_state, random_batch, runnable, sized
from benchmarks.tables import Column, table
from benchmarks.ways import STATIC, WAYS, Grouped, Place, static
from greenjax.backbones.geometry import make_planner, stage_channels
from greenjax.data.loader import Batch
from greenjax.errors import InputError
from greenjax.planning import Plan, Planner
from greenjax.planning.grouping import grouping_cost, layout_cost
from greenjax.planning.plan import packed_plan, stack_plans
from greenjax.planning.planner import simulated_masks
from greenjax.runtime.placement import Placement
from greenjax.training.sharding import make_mesh
from greenjax.training.state import State

FLAGS = TIMING
MASKS = 1000  # simulated
FRESH = 1  # their seed; layouts were chosen by those of seed 0
AFTER = (1, 10, 100, 1000)  # masks, of which the different programs are counted


def run(config: ConfigDict, batch: int, repeats: int) -> dict[str, Any]:
    """Prints the tables of a resolved pre-training configuration and returns their figures."""
    check(config, batch)
    config = sized(config, batch)
    planner = make_planner(config)
    everywhere = places(config, planner)
    simulated = simulated_masks(planner.grid.units, planner.visible, MASKS, FRESH, planner.block)
    masks, ways = group_all(everywhere, simulated)
    report = {**machine(), "model": config.model.name, "window": config.model.window}
    report |= {"image_size": list(config.image_size), "mask_ratio": config.mask.ratio, "dtype": config.model.dtype}
    report |= {"batch": batch, "repeats": repeats, "masks": len(masks), "redrawn": MASKS - len(masks)}
    rows = {name: on_paper(grouped, everywhere) for name, grouped in ways.items()}
    index, distance = typical([row.pop("costs") for row in rows.values()])
    report["typical_mask"] = {"index": index, "cost_from_median": distance}
    print(paper_text(report, rows), flush=True)
    plans = {name: plan_of(planner, masks[index], grouped[index]) for name, grouped in ways.items()}
    for name, measured in measure(config, plans, repeats).items():
        rows[name] |= measured
    for row in rows.values():
        row["ratios"] = {f"{key} / {STATIC}": row[key] / rows[STATIC][key] for key in ("cost", "cost_eq8", "flops")}
        quartiles = row.pop("seconds_ratio")
        row["ratios"][f"seconds / {STATIC}"], row["seconds_ratio_quartiles"] = quartiles[1], quartiles[::2]
    print(time_text(report, rows))
    return report | {"rows": [{"way": name, **row} for name, row in rows.items()]}


def check(config: ConfigDict, batch: int) -> None:
    """Raises InputError for a configuration that groups no windows, before anything is compiled."""
    if config.task != "pretrain" or config.method != "green":
        found = f"task is {config.task!r} and method {config.method!r}"
        raise InputError(f"{found}: expected 'pretrain' and 'green', which groups windows")
    if not config.model.window:
        raise InputError(f"model.name is {config.model.name!r}, which has no windows: expected one that has")
    check_devices(batch)


def places(config: ConfigDict, planner: Planner) -> list[Place]:
    """The places at which windows are grouped, by stage and partition."""
    stages = zip(planner.partitions, planner.layouts, stage_channels(config), strict=True)
    tokens = [planner.visible * planner.grid.tokens_per_unit(stage) for stage in range(len(planner.partitions))]
    return [
        Place(partition, layout, tokens[partition.stage], channels, partition.windows.blocks)
        for partitions, layouts, channels in stages
        for partition, layout in zip(partitions, layouts, strict=True)
    ]


def group_all(
    everywhere: list[Place], masks: Bool[np.ndarray, "m h w"]
) -> tuple[list[Bool[np.ndarray, "h w"]], dict[str, list[list[Grouped]]]]:
    """The masks that would not be redrawn; by way, the groupings of each of them at every place."""
    kept, ways = [], {name: [] for name in WAYS}
    for mask in masks:
        sizes = [place.partition.sizes(mask).tolist() for place in everywhere]
        if None in map(static, sizes, everywhere):
            continue
        kept.append(mask)
        for name, way in WAYS.items():
            ways[name].append(list(map(way, sizes, everywhere)))
    return kept, ways


def on_paper(grouped: list[list[Grouped]], everywhere: list[Place]) -> dict[str, Any]:
    """Costs and shapes of one way: multiplications of the attention of all blocks for one image, mean over masks.

    `cost` projects before grouping, as greenjax does by every way, `cost_eq8` after it, as the paper counts.
    """
    layouts = [tuple(each.layout for each in of_mask) for of_mask in grouped]
    costs, eq8, slots = [], [], 0
    for of_mask in layouts:
        pairs = list(zip(of_mask, everywhere, strict=True))
        costs.append(sum(place.blocks * layout_cost(place.tokens, *layout, place.channels) for layout, place in pairs))
        eq8.append(sum(place.blocks * grouping_cost(*layout, place.channels) for layout, place in pairs))
        slots += sum(place.blocks * layout.slots * layout.groups for layout, place in pairs)
    tokens = len(layouts) * sum(place.blocks * place.tokens for place in everywhere)
    return {
        "cost": statistics.fmean(costs),
        "cost_eq8": statistics.fmean(eq8),
        "padding": 1 - tokens / slots,  # share of the slots of all blocks
        "programs": {str(count): len(set(layouts[:count])) for count in AFTER if count <= len(layouts)}
        | {str(len(layouts)): len(set(layouts))},
        "partitions": [
            {
                "stage": place.partition.stage + 1,
                "shift": place.partition.windows.shift[0],
                "slots_mean": statistics.fmean(layout.slots for layout in of_place),
                "groups_mean": statistics.fmean(layout.groups for layout in of_place),
                "groups_max": max(layout.groups for layout in of_place),
            }
            for place, of_place in zip(everywhere, zip(*layouts))
        ],
        "costs": costs,
    }


def typical(costs: list[list[int]]) -> tuple[int, float]:
    """The mask whose largest distance from the median cost over all ways is least, and that distance, as a share."""
    relative = np.array(costs, float)
    distances = np.abs(relative / np.median(relative, axis=1, keepdims=True) - 1).max(axis=0)
    return int(distances.argmin()), float(distances.min())


def plan_of(planner: Planner, mask: Bool[np.ndarray, "h w"], grouped: list[Grouped]) -> Plan:
    """The plan of one mask with its windows grouped in one way, for all mask groups."""
    rest = iter(grouped)
    by_stage = [[next(rest) for _ in partitions] for partitions in planner.partitions]
    layouts = [[each.layout for each in stage] for stage in by_stage]
    packings = [[each.packing for each in stage] for stage in by_stage]
    plan = packed_plan(mask, planner.partitions, layouts, packings, planner.neighbourhoods)
    return stack_plans([plan] * jax.device_count())


def measure(config: ConfigDict, plans: dict[str, Plan], repeats: int) -> dict[str, dict[str, Any]]:
    """Times updates under each plan in turn, on one state. `loss` is that of the first update under each plan."""
    programs, batches = {}, {}
    for name, plan in plans.items():
        batches[name] = random_batch(config, plan)
        programs[name] = compile_part(config, "update", batches[name])
        print(f"compiled in {programs[name].compile_seconds:.0f} s: {name}", flush=True)
    held = [first_state(config)]
    losses = {name: first_loss(config, program, batches[name], held[0]) for name, program in programs.items()}
    runs = {
        name: (runnable(config, {"update": program}, batches[name], held)["update"], ())
        for name, program in programs.items()
    }
    seconds = interleaved_seconds(runs, repeats)
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "seconds_ratio": ratio_quartiles(seconds[name], seconds[STATIC]),
            "flops": program.flops,
            "temporary": program.temporary,
            "compile_seconds": program.compile_seconds,
            "loss": losses[name],
        }
        for name, program in programs.items()
    }


def first_loss(config: ConfigDict, program: Program, batch: Batch, state: State) -> float:
    """The loss of an update on a copy of the state, because a compiled update donates its state."""
    _, metrics = program.compiled(jax.tree.map(jnp.copy, state), Placement(make_mesh(config))(batch))
    return float(metrics["loss"])


PAPER: list[Column] = [
    ("", "way", 1, ""),
    ("before", "cost", 1e6, ".1f"),
    ("Eq. 8", "cost_eq8", 1e6, ".1f"),
    ("padding", "padding", 1, ".1%"),
    ("programs", "shapes", 1, "d"),
]
TIME: list[Column] = [
    ("", "way", 1, ""),
    ("s", "seconds", 1, ".3f"),
    ("x static", "ratio", 1, ".3f"),
    ("quartiles", "quartiles", 1, ""),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("MB", "temporary", 1e6, ".1f"),
    ("compiled, s", "compile_seconds", 1, ".1f"),
    ("loss", "loss", 1, ".7f"),
]


def paper_text(report: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Costs and shapes as text."""
    shown = []
    for name, row in rows.items():
        shapes = {
            f"stage {found['stage']}, shift {found['shift']}": f"{found['slots_mean']:.1f} x {found['groups_mean']:.1f}"
            f" ({found['groups_max']})"
            for found in row["partitions"]
        }
        shown.append(row | shapes | {"way": name, "shapes": list(row["programs"].values())[-1]})
    heads = [(head, head, 1, "") for head in shown[0] if head.startswith("stage ")]
    return "\n".join(
        [
            f"{report['model']}, window {report['window']}, {'x'.join(map(str, report['image_size']))} pixels, mask"
            f" ratio {report['mask_ratio']:g}: {report['masks']} masks, {report['redrawn']} more do not fit the static"
            " layout",
            "attention of all blocks for one image, mean over masks, in millions of multiplications: with projections",
            "before grouping, as all ways run here, and by Eq. 8; programs: how many different shapes the masks need",
            table(PAPER, shown),
            "slots x groups (most groups), mean over masks",
            table([PAPER[0], *heads], shown),
        ]
    )


def time_text(report: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Measurements as text."""
    distance = report["typical_mask"]["cost_from_median"]
    shown = []
    for name, row in rows.items():
        quartiles = "-".join(f"{each:.3f}" for each in row["seconds_ratio_quartiles"])
        shown.append(row | {"way": name, "ratio": row["ratios"][f"seconds / {STATIC}"], "quartiles": quartiles})
    return "\n".join(
        [
            f"one update, {report['dtype']}, batch {report['batch']}, on {report['cores']} cores of"
            f" {report['device']}: median of {report['repeats']} interleaved runs,",
            f"under one mask, whose cost by every way is within {distance:.1%} of the median",
            table(TIME, shown),
        ]
    )
