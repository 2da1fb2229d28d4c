"""Where the time of an update goes, kernel by kernel, and how much of it the machine's limits explain.

A kernel's roofline time is the least that its matrix products and its traffic to memory can take: the larger of FLOPs
over a measured rate of matrix products, and bytes over the measured rate of a copy. Bytes are operands and results, as
if no cache held any of them. What all kernels would take so, over the time of an update, is its share of the roofline.

A kernel can pass the rate of a copy: its arrays may be in a cache, and a CPU fetches what a copy is going to write
over, but not what is updated in place. So the share is given a second time, with no kernel above its own time.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from benchmarks.hlo import Kernel, read_kernels
from benchmarks.measure import TIMING, Timed, copy, interleaved_seconds, machine, product
from benchmarks.profile import Event, profiled, shared_seconds, without_callers
from benchmarks.programs import compile_part, runnable, sized
from greenjax.errors import InputError

FLAGS = TIMING
SHOWN = 25  # kinds of kernel in the printed table; the report has all
# Where a Python call stands that a kernel was traced in -> the part of the update. A kernel belongs to the part that
# its innermost call of these belongs to, except that whatever the decoder calls is the decoder's. A fusion is traced
# where its last operation was.
DECODER = "models/decoder.py"
PARTS = {
    r"flax/nnx/nn/linear\.py|layers\.py:_product|primitives\.py:_(matmul|rows|d_kernel)": "projections and MLPs",
    r"LayerNorm\.|layer_norm": "norms",
    r"enter_groups|leave_groups|primitives\.py:_permute": "gathers",
    r"ops/sparse|BlockEmbed\.|PositionalEncoding\.": "convolutions",
    r"Mlp\.|primitives\.py:_(gelu|normal)": "activation functions",
    r"ops/(group|fused)_attention(_kernel)?\.py|(Local|Global)Attention\.": "attention",
    # What an operation shares belongs to its caller.
    r"greenjax/(models|backbones|ops)/(?!primitives)": "the rest of the model",
    r"training/optim\.py|/optax/|training/step\.py": "optimizer",
}


class Cost(NamedTuple):
    """What kernels took in one update, and what they had to do."""

    runs: int
    seconds: float
    flops: int
    bytes: int
    roofline_seconds: float


def run(config: ConfigDict, batch: int, repeats: int) -> dict[str, Any]:
    """Prints the tables of one update by `config.method` on one device, and returns their figures."""
    if config.task != "pretrain":
        raise InputError(f"task is {config.task!r}: expected 'pretrain'")
    config = sized(config, batch, mesh__data=1, mesh__fsdp=1, mask__groups=1)
    program = compile_part(config, "update")
    kernels = read_kernels(program.compiled.as_text())
    update = runnable(config, {"update": program})["update"]
    runs: dict[str, Timed] = {"update": (update, ())}
    (runs["matmul"], flops), (runs["copy"], moved) = product(config.model.dtype), copy()
    # The least disturbed run of each: limits are what the machine can do at best.
    seconds = {name: min(times) for name, times in interleaved_seconds(runs, repeats).items()}
    rates = flops / seconds["matmul"], moved / seconds["copy"]
    events, wall = least_disturbed(update, kernels, repeats)
    costs = kernel_costs(events, kernels, rates)
    report = {**machine(), "model": config.model.name, "method": config.method}
    report |= {"dtype": config.model.dtype, "batch": batch, "repeats": repeats}
    report |= {"matmul_flops_per_second": rates[0], "copy_bytes_per_second": rates[1]}
    report |= {"update_seconds": seconds["update"], "profiled_seconds": wall, "program_flops": program.flops}
    whole = total(costs.values())
    report["kernels"] = whole._asdict() | {
        "not_in_program": total(c for n, c in costs.items() if n not in kernels).seconds
    }
    report["share_of_roofline"] = whole.roofline_seconds / seconds["update"]
    capped = sum(min(cost.roofline_seconds, cost.seconds) for cost in costs.values())
    report["share_of_roofline_capped"] = capped / seconds["update"]
    report["parts"] = rows(grouped(costs, lambda name: (part(kernels.get(name)),)), ("part",))
    report["kinds"] = rows(grouped(costs, lambda name: kind(name, kernels.get(name))), ("kernel", "place", "op"))
    print("\n".join(table(report)))
    return report


def least_disturbed(update: Callable[[], Any], kernels: dict[str, Kernel], repeats: int) -> tuple[list[Event], float]:
    """The kernels of the fastest of several runs, and its seconds. Raises InputError where no kernel is seen."""
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
        # An instruction may start several kernels on a GPU: it computes what it computes once.
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
    """The costs of instructions with one key, the dearest first."""
    groups = defaultdict(list)
    for name, cost in costs.items():
        groups[key(name)].append(cost)
    sums = {key: total(members) for key, members in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def part(kernel: Kernel | None) -> str:
    """The part of the update, one of the values of PARTS, or another."""
    stack = kernel.stack if kernel else ()
    if any(DECODER in call for call in stack):
        return "decoder"
    parts = (name for call in stack for pattern, name in PARTS.items() if re.search(pattern, call))
    return next(parts, "other")


def kind(name: str, kernel: Kernel | None) -> tuple[str, str, str]:
    """What XLA calls such kernels; the function of greenjax that they come from; and the pass and JAX's operation."""
    bare = re.sub(r"(\.?\d+)+$|\.clone|\.remat\d*", "", name)
    if kernel is None:
        return bare, "", ""
    own = (call for call in kernel.stack if "/greenjax/" in call and not re.search(r"operations\.py|:_product", call))
    place = re.sub(r"\.__call__|\.?<\w+>", "", next(own, ":").rpartition(":")[2])
    op = re.sub(r"\d+", "#", kernel.op_name.split(";")[0])
    when = "backward" if "transpose(" in op else "forward" if "jvp(" in op else "update"
    return bare, place, f"{when} {op.rpartition('/')[2]}"


def rows(groups: dict[tuple[str, ...], Cost], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [dict(zip(names, key)) | cost._asdict() for key, cost in groups.items()]


def table(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    kernels, update = report["kernels"], report["update_seconds"]
    head = f"{'ms':>10}{'share':>7}{'runs':>7}{'GFLOP':>9}{'MB':>9}{'of roofline':>13}"

    def line(name: str, row: dict[str, Any]) -> str:
        share = row["roofline_seconds"] / row["seconds"] if row["seconds"] else 0.0
        figures = f"{1e3 * row['seconds']:10.2f}{row['seconds'] / kernels['seconds']:7.1%}{row['runs']:7}"
        return f"{name:88.88}{figures}{row['flops'] / 1e9:9.2f}{row['bytes'] / 1e6:9.1f}{share:13.2f}"

    return [
        f"{report['model']}, {report['method']}, {report['dtype']}, batch {report['batch']}, on {report['cores']} cores"
        f" of {report['device']}: one update in {1e3 * update:.1f} ms, the fastest of {report['repeats']}",
        f"matrix products at {report['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, a copy at"
        f" {report['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        f"profiled: {1e3 * kernels['seconds']:.1f} ms in kernels of {1e3 * report['profiled_seconds']:.1f} ms;"
        f" {1e3 * kernels['not_in_program']:.1f} ms in such as are not the program's",
        f"{'part':88}{head}",
        *(line(row["part"], row) for row in report["parts"]),
        line("all", kernels),
        f"share of the roofline: {report['share_of_roofline']:.2f}, {1e3 * kernels['roofline_seconds']:.1f} of"
        f" {1e3 * update:.1f} ms; {report['share_of_roofline_capped']:.2f} where no kernel counts above its own time",
        f"{'kernel':34}{'from':26}{'':28}{head}",
        *(line(f"{r['kernel']:33.33} {r['place']:25.25} {r['op']}", r) for r in report["kinds"][:SHOWN]),
    ]
