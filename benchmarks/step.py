"""One update by three programs: green, dense (SimMIM on the same encoder), and transformers' SimMIM in PyTorch.

Reports median seconds of forward, forward + backward and the whole update, FLOPs and temporary memory, and compares
with the measured rates of matrix products and of a copy. docs/performance.md explains the figures.
"""

from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import whole_run
from benchmarks.measure import TIMING, Timed, copy, interleaved_medians, machine, medians_one_by_one, product
from benchmarks.peers import Maker, Peers, find_peers
from benchmarks.programs import (
    METHODS,
    ONE_DEVICE,
    PARTS,
    Program,
    check_pretraining,
    compile_part,
    memory_slope,
    runnable,
    sized,
)
from benchmarks.tables import Column, table
from greenjax.backbones.geometry import make_planner
from greenjax.planning.analysis import planning_time
from greenjax.runtime.cost import peak_flops, peak_memory

FLAGS = TIMING | {"--compiled": dict(action="store_true", help="PyTorch by torch.compile, too; on a GPU always")}


def run(config: ConfigDict, batch: int, repeats: int, compiled: bool = False) -> dict[str, Any]:
    """Prints the table of a resolved pre-training configuration and returns its figures.

    `compiled`: time torch.compile too, which takes minutes on a CPU; on a GPU it is timed always.
    """
    check_pretraining(config)
    methods = {name: sized(config, batch, method=method, **ONE_DEVICE) for name, method in METHODS.items()}
    peers = find_peers(methods["dense"], batch, compiled or jax.default_backend() == "gpu")
    for name, reason in peers.left_out.items():
        print(f"{name} is left out: {reason}")
    programs = {name: {part: compile_part(of, part) for part in PARTS} for name, of in methods.items()}
    makers: dict[str, Maker] = {name: partial(runnable, of, programs[name]) for name, of in methods.items()}
    limit, seconds, rates = timed(makers, peers, config.model.dtype, repeats, jax.default_backend() == "cpu")
    report = {**machine(), "model": config.model.name, "dtype": config.model.dtype, "batch": batch}
    report |= {"repeats": repeats, "left_out": peers.left_out}
    report |= {"matmul": limit, "matmul_flops_per_second": rates[0]}
    report |= {"copy_bytes_per_second": rates[1], "peak_memory_bytes": peak_memory()}
    report["peak_flops_per_second"] = peak_flops(report["device"], config.model.dtype)
    report["planning_ms"] = planning_time(make_planner(methods["green"]), 100)
    report["rows"] = [row(name, part, time, programs, peers, report) for (name, part), time in seconds.items()]
    slopes = {name: memory_slope(of, programs[name]["update"]) for name, of in methods.items()}
    report["memory_slope_bytes"] = slopes
    report["memory_slope_ratio"] = slopes["green"] / slopes["dense"] if slopes["dense"] else None
    report["ratios"] = {
        f"{slow} / green, {part}": time / least
        for (slow, part), time in seconds.items()
        if slow != "green" and time and (least := seconds["green", part])
    }
    report |= whole_run.whole_run(methods["green"], batch)
    print(text(report))
    return report


def timed(
    makers: dict[str, Maker], peers: Peers, dtype: str, repeats: int, together: bool
) -> tuple[str, dict[tuple[str, str], float | None], tuple[float, float]]:
    """The types of the product that sets the limit; seconds of every part of every method, None where memory does not
    suffice; the best FLOP/s and bytes/s.

    On a CPU all programs take turns `together`, so that all meet the same disturbances. A GPU is undisturbed, but does
    not hold all programs at once: each method is deleted before the next is made. PyTorch's come first, because JAX
    keeps the memory that it once had.
    """
    runs: dict[Any, Timed] = {}
    seconds: dict[Any, float | None] = {}
    for name, make in (peers.makers | makers).items():
        made = make()
        parts = {(name, part): (made.pop(part), ()) for part in PARTS}
        if together:
            runs |= parts
        else:
            seconds |= medians_one_by_one(parts, repeats)
            made.clear()
            parts.clear()
            peers.free()
    (runs["matmul", ""], flops, limit), (runs["copy", ""], moved) = product(dtype), copy()
    found: dict[Any, Any] = seconds | interleaved_medians(runs, repeats)
    rates = flops / found.pop(("matmul", "")), moved / found.pop(("copy", ""))
    order = [*makers, *peers.makers]
    return limit, {key: found[key] for key in sorted(found, key=lambda key: order.index(key[0]))}, rates


def row(
    name: str,
    part: str,
    time: float | None,
    programs: dict[str, dict[str, Program]],
    peers: Peers,
    report: dict[str, Any],
) -> dict[str, Any]:
    """One line of the table."""
    found: dict[str, Any] = {"method": name, "part": part, "seconds": time}
    # PyTorch's network is the dense one, with the same products.
    needed = programs[name if name in programs else "dense"][part].unpadded_flops
    if time is not None:
        found["images_per_second"] = report["batch"] / time
        if report["peak_flops_per_second"]:
            found["mfu"] = needed / report["peak_flops_per_second"] / time
    if name not in programs:
        memory = peers.peaks[name].get(part)
        return found | ({} if memory is None else {"memory": memory})
    program = programs[name][part]
    found |= program._asdict()
    del found["compiled"]
    if time is not None:
        found["limit_share"] = program.flops / report["matmul_flops_per_second"] / time
        found["bytes_limit_share"] = program.bytes_accessed / report["copy_bytes_per_second"] / time
    return found


COLUMNS: list[Column] = [
    ("", "name", 1, ""),
    ("s", "seconds", 1, ".3f"),
    ("images/s", "images_per_second", 1, ".1f"),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("MB", "temporary", 1e6, ".1f"),
    ("MB in all", "memory", 1e6, ".1f"),
    ("share of limit", "limit_share", 1, ".2f"),
    ("of bytes", "bytes_limit_share", 1, ".2f"),
    ("MFU", "mfu", 1, ".2f"),
    ("compiled, s", "compile_seconds", 1, ".1f"),
]


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    rows = [row | {"name": f"{row['method']} {row['part']}"} for row in report["rows"]]
    lines = [
        f"{report['model']}, {report['dtype']}, batch {report['batch']}, on {report['cores']} cores of"
        f" {report['device']}: median of {report['repeats']} runs",
        f"matrix products ({report['matmul']}) at {report['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, a copy at"
        f" {report['copy_bytes_per_second'] / 1e9:.1f} GB/s; one mask planned in {report['planning_ms']:.2f} ms",
        table(COLUMNS, rows),
        *(f"{row['name']}: out of memory" for row in rows if row["seconds"] is None),
        *(f"{name}: {ratio:.2f}" for name, ratio in report["ratios"].items()),
        *(f"{name}: {slope / 1e6:.1f} MB more for each image" for name, slope in report["memory_slope_bytes"].items()),
    ]
    if report["memory_slope_ratio"] is not None:
        lines.append(f"memory for each image, green / dense: {report['memory_slope_ratio']:.2f}")
    return "\n".join([*lines, whole_run.text(report)])
