"""An update compiled for a GPU that is not here: its FLOPs, bytes moved, memory, and the least time.

XLA compiles the update for the description of a card. The result is the card's own program, but XLA cannot time
kernels to choose among them. Nothing runs: times are limits by the rates of the data sheet, kernel by kernel, as
roofline.py defines them. docs/performance.md explains the figures.
"""

from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from benchmarks.hlo import Kernel, read_kernels
from benchmarks.measure import TIMING
from benchmarks.programs import METHODS, ONE_DEVICE, check_pretraining, compile_part, memory_slope, sized
from benchmarks.roofline import Cost, grouped, least, part, rows, total
from benchmarks.tables import Column, table
from greenjax.errors import InputError
from greenjax.runtime.cost import peak_flops


class Card(NamedTuple):
    """A GPU by its data sheet."""

    name: str  # of the device
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int  # float32 units of one multiprocessor
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: int  # bytes a second
    cache: int  # bytes of the second level
    shared: int  # bytes of shared memory of one multiprocessor


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 80 * 2**30, 2039 * 10**9, 40 * 2**20, 164 * 2**10),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 80 * 2**30, 3352 * 10**9, 50 * 2**20, 228 * 2**10),
    "h200": Card("NVIDIA H200", (9, 0), 132, 128, 1.98, 141 * 10**9, 4800 * 10**9, 50 * 2**20, 228 * 2**10),
}
FLAGS = {
    "--batch": TIMING["--batch"],
    "--gpu": dict(choices=CARDS, default="h100", help="the card to compile for"),
}


def run(config: ConfigDict, batch: int, gpu: str = "h100") -> dict[str, Any]:
    """Prints the tables of one update, green and dense, on one card, and returns their figures.

    Raises InputError for a type of numbers whose rate data sheets do not give, and without JAX's CUDA plugin.
    """
    check_pretraining(config)
    card = CARDS[gpu]
    peak = peak_flops(card.name, config.model.dtype)
    if peak is None:
        raise InputError(f"model.dtype is {config.model.dtype!r}: expected 'bfloat16', whose rate data sheets give")
    device, rates = described(card), (peak, float(card.bandwidth))
    report: dict[str, Any] = {"device": card.name, "jax": jax.__version__}
    report |= {"model": config.model.name, "dtype": config.model.dtype, "attention": config.model.attention}
    report |= {"batch": batch, "flops_per_second": rates[0], "bytes_per_second": rates[1], "rows": [], "parts": {}}
    for name, method in METHODS.items():
        of = sized(config, batch, method=method, **ONE_DEVICE)
        program = compile_part(of, "update", devices=[device])
        kernels = read_kernels(program.compiled.as_text())
        costs = at_best(kernels, rates)
        whole = total(costs.values())
        row = {"method": name, "flops": program.unpadded_flops, "bytes": whole.bytes, "kernels": whole.runs}
        row |= {"temporary": program.temporary, "memory": program.memory, "compile_seconds": program.compile_seconds}
        row |= {"memory_slope_bytes": memory_slope(of, program, [device]), "least_seconds": whole.seconds}
        row |= {"most_images_per_second": batch / whole.seconds, "most_mfu": row["flops"] / peak / whole.seconds}
        report["rows"].append(row)
        report["parts"][name] = rows(grouped(costs, lambda kernel, of=kernels: (part(of[kernel]),)), ("part",))
    green, dense = report["rows"]
    report["memory_slope_ratio"] = green["memory_slope_bytes"] / dense["memory_slope_bytes"]
    report["least_seconds_ratio"] = dense["least_seconds"] / green["least_seconds"]
    print(text(report))
    return report


def described(card: Card) -> Any:
    """A device to compile for. Raises InputError without JAX's CUDA plugin."""
    jax.config.update("jax_platforms", "cpu")  # do not look for a GPU
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=description(card), topology="1x1x1")
    except NotImplementedError as error:
        raise InputError(
            "ahead needs JAX's CUDA plugin, though no GPU: bash launch/ahead.sh installs it beside what is here"
        ) from error
    return found.devices[0]


def description(card: Card) -> str:
    """The card as text of XLA's GpuTargetConfigProto; constants are the same for all CARDS."""
    major, minor = card.capability
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {card.shared - 1024}
          shared_memory_per_core: {card.shared} core_count: {card.multiprocessors} fpus_per_core: {card.lanes}
          memory_bandwidth: {card.bandwidth} device_memory_size: {card.memory} l2_cache_size: {card.cache}
          clock_rate_ghz: {card.clock} cuda_compute_capability {{ major: {major} minor: {minor} }}
        }}
        platform_name: "CUDA" device_description_str: "{card.name}"
        dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 8 patch: 0 }}"""


def at_best(kernels: dict[str, Kernel], rates: tuple[float, float]) -> dict[str, Cost]:
    """Every kernel at its roofline time. `rates`: FLOPs of matrix products, and bytes, a second."""
    costs = {}
    for name, kernel in kernels.items():
        if not kernel.calls and (kernel.flops or kernel.bytes):
            runs = kernel.runs or 1  # a loop of unknown length counts once
            took = runs * least(kernel.flops, kernel.bytes, rates)
            costs[name] = Cost(runs, took, runs * kernel.flops, runs * kernel.bytes, took)
    return costs


COLUMNS: list[Column] = [
    ("update", "method", 1, ""),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("GB moved", "bytes", 1e9, ".1f"),
    ("kernels", "kernels", 1, "d"),
    ("MB", "temporary", 1e6, ".1f"),
    ("MB in all", "memory", 1e6, ".1f"),
    ("MB an image", "memory_slope_bytes", 1e6, ".1f"),
    ("ms at least", "least_seconds", 1e-3, ".2f"),
    ("images/s at most", "most_images_per_second", 1, ".0f"),
    ("MFU at most", "most_mfu", 1, ".2f"),
    ("compiled, s", "compile_seconds", 1, ".1f"),
]
OF_PART: list[Column] = [
    ("part", "part", 1, ""),
    ("ms at least", "seconds", 1e-3, ".2f"),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("GB moved", "bytes", 1e9, ".2f"),
    ("kernels", "runs", 1, "d"),
]


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"{report['model']}, {report['dtype']}, attention by {report['attention']}, batch {report['batch']},"
        f" compiled for one {report['device']} ({report['flops_per_second'] / 1e12:.0f} TFLOP/s,"
        f" {report['bytes_per_second'] / 1e9:.0f} GB/s): not run",
        table(COLUMNS, report["rows"]),
        f"memory for each image, green / dense: {report['memory_slope_ratio']:.2f}",
        f"dense / green, each at its limit: {report['least_seconds_ratio']:.2f}",
    ]
    for name, parts in report["parts"].items():
        lines += ["", name, table(OF_PART, parts)]
    return "\n".join(lines)
