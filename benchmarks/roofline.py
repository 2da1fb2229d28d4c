"""The time of an update kernel by kernel, and the share that the machine's limits explain.

The roofline time of a kernel is the least time for its matrix products and its memory traffic: the larger of FLOPs
over the measured rate of matrix products, and bytes over the measured rate of a copy. Bytes are operands and results,
as if no cache held them. The share of the roofline is the sum of these times over the time of an update.

The update alone comes first: its median time, the share of the data sheet's rate (MFU) and its memory.

A kernel can exceed the rate of a copy: caches may hold its arrays, and a CPU reads memory before a copy overwrites it,
but not for updates in place. So the report has a second share, in which no kernel counts above its own time.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from benchmarks.hlo import Kernel, read_kernels
from benchmarks.measure import TIMING, Timed, copy, interleaved_seconds, machine, product
from benchmarks.profile import Event, profiled, shared_seconds, without_callers
from benchmarks.programs import ONE_DEVICE, Program, check_pretraining, compile_part, runnable, sized
from benchmarks.tables import Column, table
from greenjax.errors import InputError
from greenjax.runtime.cost import peak_flops, peak_memory

FLAGS = TIMING
PROFILED = 3  # runs at most, of which the fastest counts; reading a profile takes seconds
SHOWN = 25  # kinds of kernel in the printed table; the report has all
# Pattern of a Python call that a kernel was traced in -> part of the update. The innermost matching call decides, but
# all calls of the decoder belong to the decoder. A fusion has the calls of its last operation.
DECODER = "models/decoder.py"
GELU = "activation functions"  # a layer of a GELU has products, too
PARTS = {
    r"Linear\.of_gelu|Mlp\.|primitives\.py:_gelu": GELU,
    r"(linear|layers)\.py:Linear\.|primitives\.py:_?(matmul|rows|d_kernel)": "projections and MLPs",
    r"LayerNorm\.|layer_norm": "norms",
    r"enter_groups|leave_groups|primitives\.py:_permute": "gathers",
    r"ops/sparse|BlockEmbed\.|PositionalEncoding\.": "convolutions",
    r"ops/(group|fused)_attention(_kernel)?\.py|(Local|Global)Attention\.": "attention",
    # Shared primitives belong to their callers.
    r"greenjax/(models|backbones|ops)/(?!primitives)": "the rest of the model",
    r"training/optim\.py|/optax/|training/step\.py": "optimizer",
}


class Cost(NamedTuple):
    """Time and work of kernels in one update."""

    runs: int
    seconds: float
    flops: int
    bytes: int
    roofline_seconds: float


def run(config: ConfigDict, batch: int, repeats: int) -> dict[str, Any]:
    """Prints the tables of one update by `config.method` on one device, and returns their figures."""
    check_pretraining(config)
    config = sized(config, batch, **ONE_DEVICE)
    program = compile_part(config, "update")
    kernels = read_kernels(program.compiled.as_text())
    update = runnable(config, {"update": program})["update"]
    report: dict[str, Any] = {**machine(), "model": config.model.name, "method": config.method}
    report |= {"dtype": config.model.dtype, "attention": config.model.attention, "batch": batch, "repeats": repeats}
    report |= timed(update, program, report)
    print(head(report), flush=True)  # the rest takes time, and may fail
    rates = report["matmul_flops_per_second"], report["copy_bytes_per_second"]
    events, report["profiled_seconds"] = least_disturbed(update, kernels, min(repeats, PROFILED))
    costs = kernel_costs(events, kernels, rates)
    whole = total(costs.values())
    report["kernels"] = whole._asdict() | {
        "not_in_program": total(c for n, c in costs.items() if n not in kernels).seconds
    }
    report["share_of_roofline"] = whole.roofline_seconds / report["update_seconds"]
    capped = sum(min(cost.roofline_seconds, cost.seconds) for cost in costs.values())
    report["share_of_roofline_capped"] = capped / report["update_seconds"]
    report["parts"] = rows(grouped(costs, lambda name: (part(kernels.get(name)),)), ("part",))
    report["kinds"] = rows(grouped(costs, lambda name: kind(name, kernels.get(name))), ("kernel", "place", "op"))
    print(text(report))
    return report


def timed(update: Callable[[], Any], program: Program, report: dict[str, Any]) -> dict[str, Any]:
    """Figures of the whole update, and the rates of this machine."""
    jax.block_until_ready(update())
    found: dict[str, Any] = {"peak_memory_bytes": peak_memory()}  # before other arrays are made
    runs: dict[str, Timed] = {"update": (update, ())}
    (runs["matmul"], flops, found["matmul"]), (runs["copy"], moved) = product(report["dtype"]), copy()
    times = interleaved_seconds(runs, report["repeats"])
    # The fastest run of each: limits are the best that the machine does.
    least_seconds = {name: min(seconds) for name, seconds in times.items()}
    found |= {"matmul_flops_per_second": flops / least_seconds["matmul"]}
    found |= {"copy_bytes_per_second": moved / least_seconds["copy"], "update_seconds": least_seconds["update"]}
    median = statistics.median(times["update"])
    peak = peak_flops(report["device"], report["dtype"])
    found |= {"median_seconds": median, "images_per_second": report["batch"] / median}
    found |= {"mfu": peak and program.unpadded_flops / peak / median, "compile_seconds": program.compile_seconds}
    return found | {"temporary": program.temporary, "memory": program.memory, "program_flops": program.flops}


def least_disturbed(update: Callable[[], Any], kernels: dict[str, Kernel], repeats: int) -> tuple[list[Event], float]:
    """The kernels of the fastest run, and its seconds. Raises InputError for a profile without kernels."""
    events, wall = min((profiled(update, kernels) for _ in range(repeats)), key=lambda found: found[1])
    if not events:
        device = jax.devices()[0].device_kind
        raise InputError(f"the profile of {device} has no kernels: expected a CPU, or a GPU that may be profiled")
    return events, wall


def kernel_costs(events: list[Event], kernels: dict[str, Kernel], rates: tuple[float, float]) -> dict[str, Cost]:
    """By instruction. `rates`: FLOPs of matrix products, and bytes of a copy, a second."""
    events = without_callers(events, {name: kernel.calls for name, kernel in kernels.items()})
    seconds, found = defaultdict(float), defaultdict(int)
    for event, took in zip(events, shared_seconds(events)):
        seconds[event.name] += took
        found[event.name] += 1
    costs = {}
    for name, count in found.items():
        kernel = kernels.get(name)
        flops, moved = (kernel.flops, kernel.bytes) if kernel else (0, 0)
        # On a GPU an instruction may start several kernels, which share its work.
        times = kernel.runs if kernel and kernel.runs is not None else count
        costs[name] = Cost(count, seconds[name], times * flops, times * moved, times * least(flops, moved, rates))
    return costs


def least(flops: int, moved: int, rates: tuple[float, float]) -> float:
    """The roofline time of a kernel, in seconds."""
    return max(flops / rates[0], moved / rates[1])


def total(costs: Iterable[Cost]) -> Cost:
    runs, seconds, flops, moved, limit = (sum(column) for column in zip(Cost(0, 0.0, 0, 0, 0.0), *costs))
    return Cost(int(runs), seconds, int(flops), int(moved), limit)


def grouped(costs: dict[str, Cost], key: Any) -> dict[tuple[str, ...], Cost]:
    """The sums of costs by key, the largest first."""
    groups = defaultdict(list)
    for name, cost in costs.items():
        groups[key(name)].append(cost)
    sums = {key: total(members) for key, members in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def part(kernel: Kernel | None) -> str:
    """The part of the update that a kernel belongs to."""
    stack = kernel.stack if kernel else ()
    if any(DECODER in call for call in stack):
        return "decoder"
    parts = (name for call in stack for pattern, name in PARTS.items() if re.search(pattern, call))
    return next((name for name in parts if name != GELU or not kernel.flops), "other")


def kind(name: str, kernel: Kernel | None) -> tuple[str, str, str]:
    """XLA's name without numbers; the function of greenjax; the pass and JAX's operation."""
    bare = re.sub(r"(\.?\d+)+$|\.clone|\.remat\d*", "", name)
    if kernel is None:
        return bare, "", ""
    own = (call for call in kernel.stack if "/greenjax/" in call and not re.search(r"primitives\.py|:Linear\.", call))
    place = re.sub(r"\.__call__|\.?<\w+>", "", next(own, ":").rpartition(":")[2])
    op = re.sub(r"\d+", "#", kernel.op_name.split(";")[0])
    when = "backward" if "transpose(" in op else "forward" if "jvp(" in op else "update"
    return bare, place, f"{when} {op.rpartition('/')[2]}"


def rows(groups: dict[tuple[str, ...], Cost], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [dict(zip(names, key)) | cost._asdict() for key, cost in groups.items()]


FIGURES: list[Column] = [
    ("ms", "seconds", 1e-3, ".2f"),
    ("share", "share", 1, ".1%"),
    ("runs", "runs", 1, "d"),
    ("GFLOP", "flops", 1e9, ".2f"),
    ("MB", "bytes", 1e6, ".1f"),
    ("of roofline", "of_roofline", 1, ".2f"),
]


def head(report: dict[str, Any]) -> str:
    """The figures of the whole update as text."""
    peak, mfu = report["peak_memory_bytes"], report["mfu"]
    return "\n".join(
        [
            f"{report['model']}, {report['method']}, {report['dtype']}, attention by {report['attention']}, batch"
            f" {report['batch']}, on {report['cores']} cores of {report['device']}: one update in"
            f" {1e3 * report['median_seconds']:.1f} ms, the median of {report['repeats']}",
            f"{report['images_per_second']:.1f} images/s, MFU {'-' if mfu is None else f'{mfu:.3f}'},"
            f" {report['program_flops'] / 1e9:.1f} GFLOP; compiled in {report['compile_seconds']:.1f} s",
            f"{report['temporary'] / 1e6:.1f} MB of temporaries, {report['memory'] / 1e6:.1f} MB in all, at the peak"
            f" {'-' if peak is None else f'{peak / 1e6:.1f}'} MB",
            f"matrix products ({report['matmul']}) at {report['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, a copy at"
            f" {report['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        ]
    )


def text(report: dict[str, Any]) -> str:
    """The figures of the kernels as text."""
    kernels, update = report["kernels"], report["update_seconds"]

    def shares(row: dict[str, Any]) -> dict[str, Any]:
        of_roofline = row["roofline_seconds"] / row["seconds"] if row["seconds"] else 0.0
        return row | {"share": row["seconds"] / kernels["seconds"], "of_roofline": of_roofline}

    parts = map(shares, [*report["parts"], kernels | {"part": "all"}])
    names: list[Column] = [("kernel", "kernel", 1, ".33"), ("from", "place", 1, ".25"), ("", "op", 1, ".28")]
    return "\n".join(
        [
            f"the fastest update took {1e3 * update:.1f} ms; profiled: {1e3 * kernels['seconds']:.1f} ms in kernels of"
            f" {1e3 * report['profiled_seconds']:.1f} ms, {1e3 * kernels['not_in_program']:.1f} ms outside the program",
            table([("part", "part", 1, ""), *FIGURES], parts),
            f"share of the roofline: {report['share_of_roofline']:.2f}, {1e3 * kernels['roofline_seconds']:.1f} of"
            f" {1e3 * update:.1f} ms; {report['share_of_roofline_capped']:.2f} with no kernel above its own time",
            "",
            table([*names, *FIGURES], map(shares, report["kinds"][:SHOWN])),
        ]
    )
