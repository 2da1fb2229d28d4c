"""Ways to group the windows of visible tokens, side by side: what they cost on paper, and the time of an update.

The table of the paper's appendix A.2 (arXiv 2205.13515), and more: Algorithm 1, packings of simpler kinds, one masked
attention over all visible tokens, and the static layouts that greenjax trains with. docs/grouping.md
explains it.

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
from benchmarks.programs import Program, compile_part, first_state, random_batch, runnable, sized
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
    masks, ways = group_all(everywhere, simulated_masks(planner.grid.units, planner.visible, MASKS, seed=FRESH))
    report = {**machine(), "model": config.model.name, "window": config.model.window}
    report |= {"image_size": list(config.image_size), "mask_ratio": config.mask.ratio, "dtype": config.model.dtype}
    report |= {"batch": batch, "repeats": repeats, "masks": len(masks), "redrawn": MASKS - len(masks)}
    rows = {name: on_paper(grouped, everywhere) for name, grouped in ways.items()}
    index, distance = typical([row.pop("costs") for row in rows.values()])
    report["typical_mask"] = {"index": index, "cost_from_median": distance}
    print("\n".join(paper_table(report, rows, everywhere)), flush=True)
    plans = {name: plan_of(planner, masks[index], grouped[index]) for name, grouped in ways.items()}
    for name, measured in measure(config, plans, repeats).items():
        rows[name] |= measured
    for row in rows.values():
        row["ratios"] = {f"{key} / {STATIC}": row[key] / rows[STATIC][key] for key in ("cost", "cost_eq8", "flops")}
        quartiles = row.pop("seconds_ratio")
        row["ratios"][f"seconds / {STATIC}"], row["seconds_ratio_quartiles"] = quartiles[1], quartiles[::2]
    print("\n".join(time_table(report, rows)))
    return report | {"rows": [{"way": name, **row} for name, row in rows.items()]}


def check(config: ConfigDict, batch: int) -> None:
    """Raises InputError for what groups no windows, before anything is compiled."""
    if config.task != "pretrain" or config.method != "green":
        found = f"task is {config.task!r} and method {config.method!r}"
        raise InputError(f"{found}: expected 'pretrain' and 'green', which groups windows")
    if not config.model.window:
        raise InputError(f"model.name is {config.model.name!r}, which has no windows: expected one that has")
    if batch % jax.device_count():
        raise InputError(f"--batch is {batch}: expected a multiple of the {jax.device_count()} devices")


def places(config: ConfigDict, planner: Planner) -> list[Place]:
    """Where windows are grouped, by stage and partition."""
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
    """The masks that would not be redrawn, and by way what it makes of each of them at every place."""
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
    """What one way comes to; costs are multiplications of the attention of all blocks for one image, mean over masks.

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
    """The mask that is nearest to the median cost by the way by which it is farthest, and that distance, as a share."""
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
    """Updates under each plan take turns on one state. `loss` is that of the first update by each of them."""
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
    """The loss before an update of a copy of the state: a compiled update takes its own away."""
    _, metrics = program.compiled(jax.tree.map(jnp.copy, state), Placement(make_mesh(config))(batch))
    return float(metrics["loss"])


def paper_table(report: dict[str, Any], rows: dict[str, dict[str, Any]], everywhere: list[Place]) -> list[str]:
    """Costs and shapes as text."""
    heads = [f"stage {place.partition.stage + 1}, shift {place.partition.windows.shift[0]}" for place in everywhere]
    lines = [
        f"{report['model']}, window {report['window']}, {'x'.join(map(str, report['image_size']))} pixels, mask ratio"
        f" {report['mask_ratio']:g}: {report['masks']} masks, {report['redrawn']} more do not fit the static layout",
        "attention of all blocks for one image, mean over masks, in millions of multiplications: with projections",
        "before grouping, as all ways are run here, and by Eq. 8; programs: how many different shapes the masks need",
        f"{'':30}{'before':>9}{'Eq. 8':>9}{'padding':>9}{'programs':>10}",
    ]
    for name, row in rows.items():
        needed = list(row["programs"].values())[-1]
        costs = f"{row['cost'] / 1e6:9.1f}{row['cost_eq8'] / 1e6:9.1f}"
        lines.append(f"{name:30}{costs}{row['padding']:9.1%}{needed:10}")
    lines.append("slots x groups (most groups), mean over masks")
    lines.append(f"{'':30}" + "".join(f"{head:>20}" for head in heads))
    for name, row in rows.items():
        cells = (f"{p['slots_mean']:.1f} x {p['groups_mean']:.1f} ({p['groups_max']})" for p in row["partitions"])
        lines.append(f"{name:30}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def time_table(report: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[str]:
    """Measurements as text."""
    distance = report["typical_mask"]["cost_from_median"]
    lines = [
        f"one update, {report['dtype']}, batch {report['batch']}, on {report['cores']} cores of {report['device']}:"
        f" median of {report['repeats']} interleaved runs,",
        f"under one mask, whose cost by every way is within {distance:.1%} of the median",
        f"{'':30}{'s':>9}{'x static':>10}{'quartiles':>14}{'GFLOP':>9}{'MB':>10}{'compiled, s':>13}{'loss':>12}",
    ]
    for name, row in rows.items():
        low, high = row["seconds_ratio_quartiles"]
        line = f"{name:30}{row['seconds']:9.3f}{row['ratios'][f'seconds / {STATIC}']:10.3f}{low:8.3f}-{high:5.3f}"
        lines.append(
            line
            + f"{row['flops'] / 1e9:9.1f}"
            + f"{row['temporary'] / 1e6:10.1f}{row['compile_seconds']:13.1f}{row['loss']:12.7f}"
        )
    return lines
