"""One update side by side: green, dense (SimMIM on the same encoder), and transformers' SimMIM in PyTorch.

Forward, forward + backward and the whole update, medians of runs in which all take turns; XLA's FLOPs and temporary
memory; the limits that measured rates of matrix products and of a copy set. docs/performance.md explains it.
"""

from importlib.util import find_spec
from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax.benchmark.measure import Timed, copy, interleaved_medians, machine, product
from greenjax.benchmark.programs import PARTS, Program, compile_part, runnable, sized
from greenjax.errors import InputError
from greenjax.planning import Planner
from greenjax.planning.analysis import planning_time

SLOPE = 3  # memory per image: the slope between the batch and so many times it
PEER = "transformers"


def step(config: ConfigDict, batch: int, repeats: int) -> dict[str, Any]:
    """Prints the table of a resolved pre-training configuration and returns its figures."""
    if config.task != "pretrain":
        raise InputError(f"task is {config.task!r}: expected 'pretrain'")
    if batch % jax.device_count():
        raise InputError(f"--batch is {batch}: expected a multiple of the {jax.device_count()} devices")
    methods = {"green": sized(config, batch, method="green"), "dense": sized(config, batch, method="simmim")}
    programs = {name: {part: compile_part(of, part) for part in PARTS} for name, of in methods.items()}
    larger = {name: compile_part(sized(of, SLOPE * batch), "update") for name, of in methods.items()}
    runs: dict[Any, Timed] = {
        (name, part): (run, ()) for name, of in methods.items() for part, run in runnable(of, programs[name]).items()
    }
    left_out = why_no_peer(config)
    if left_out:
        print(f"{PEER} is left out: {left_out}")
    else:
        from greenjax.benchmark import torch_swin

        peer = torch_swin.programs(methods["dense"], batch)
        runs |= {(PEER, part): (peer[part], ()) for part in PARTS}
    (runs["matmul", ""], flops), (runs["copy", ""], moved) = product(config.model.dtype), copy()
    seconds = interleaved_medians(runs, repeats)
    rates = flops / seconds.pop(("matmul", "")), moved / seconds.pop(("copy", ""))
    report = {"suite": "step", **machine(), "model": config.model.name, "dtype": config.model.dtype, "batch": batch}
    report |= {"repeats": repeats, "left_out": left_out, "matmul_flops_per_second": rates[0]}
    report["copy_bytes_per_second"] = rates[1]
    report["planning_ms"] = planning_time(Planner.from_config(methods["green"]), 100)
    report["rows"] = [row(name, part, time, programs, rates) for (name, part), time in seconds.items()]
    report["memory_slope_bytes"] = {
        name: (larger[name].temporary - of["update"].temporary) / (SLOPE - 1) / batch for name, of in programs.items()
    }
    report["ratios"] = {
        f"{slow} / green, {part}": seconds[slow, part] / seconds["green", part]
        for slow, part in seconds
        if slow != "green"
    }
    print("\n".join(table(report)))
    return report


def why_no_peer(config: ConfigDict) -> str | None:
    """Why PyTorch's Swin cannot run beside this configuration; None: it can."""
    missing = [name for name in ("torch", PEER) if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if not config.model.name.startswith("swin"):
        return f"it has no {config.model.name}"
    height, width = config.image_size
    last = height // config.model.patch // 2 ** (len(config.model.depths) - 1)
    if height != width or config.model.window > last:
        return f"it takes no {height}x{width} pixels with window {config.model.window}"
    return None


def row(
    name: str, part: str, time: float, programs: dict[str, dict[str, Program]], rates: tuple[float, float]
) -> dict[str, Any]:
    """One line of the table. `rates`: FLOPs of matrix products, and bytes of a copy, a second."""
    found = {"method": name, "part": part, "seconds": time}
    if name not in programs:
        return found
    program = programs[name][part]
    found |= program._asdict() | {"limit_share": program.flops / rates[0] / time}
    found["bytes_limit_share"] = program.bytes_accessed / rates[1] / time
    del found["compiled"]
    return found


def table(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    lines = [
        f"{report['model']}, {report['dtype']}, batch {report['batch']}, on {report['cores']} cores of"
        f" {report['device']}: median of {report['repeats']} interleaved runs",
        f"matrix products at {report['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, a copy at"
        f" {report['copy_bytes_per_second'] / 1e9:.1f} GB/s; one mask planned in {report['planning_ms']:.2f} ms",
        f"{'':24}{'s':>9}{'GFLOP':>9}{'MB':>10}{'share of limit':>16}{'of bytes':>10}{'compiled, s':>13}",
    ]
    for each in report["rows"]:
        line = f"{each['method'] + ' ' + each['part']:24}{each['seconds']:9.3f}"
        if "flops" in each:
            line += f"{each['flops'] / 1e9:9.1f}{each['temporary'] / 1e6:10.1f}{each['limit_share']:16.2f}"
            line += f"{each['bytes_limit_share']:10.2f}"
            line += f"{each['compile_seconds']:13.1f}"
        lines.append(line)
    lines += [f"{name}: {ratio:.2f}" for name, ratio in report["ratios"].items()]
    lines += [
        f"{name}: {slope / 1e6:.1f} MB more for each image" for name, slope in report["memory_slope_bytes"].items()
    ]
    return lines
