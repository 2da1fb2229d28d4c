"""One update side by side: green, dense (SimMIM on the same encoder), and transformers' SimMIM in PyTorch.

Forward, forward + backward and the whole update, medians of runs in which all take turns; XLA's FLOPs and temporary
memory; the limit that a measured rate of matrix products sets. docs/performance.md explains it.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from greenjax.benchmark.measure import interleaved_medians, machine
from greenjax.benchmark.programs import PARTS, Program, compile_part, runnable, sized
from greenjax.benchmark.whole_run import whole_run
from greenjax.errors import InputError
from greenjax.planning import Planner
from greenjax.planning.analysis import planning_time

SIDE = 2048  # of the matrices whose product sets the limit
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
    runs: dict[Any, tuple[Callable[..., Any], tuple]] = {
        (name, part): (run, ()) for name, of in methods.items() for part, run in runnable(of, programs[name]).items()
    }
    left_out = why_no_peer(config)
    if left_out:
        print(f"{PEER} is left out: {left_out}")
    else:
        from greenjax.benchmark import torch_swin

        peer = torch_swin.programs(methods["dense"], batch)
        runs |= {(PEER, part): (peer[part], ()) for part in PARTS}
    runs["matmul", ""] = product(config.model.dtype)
    seconds = interleaved_medians(runs, repeats)
    rate = 2 * SIDE**3 / seconds.pop(("matmul", ""))
    report = {"suite": "step", **machine(), "model": config.model.name, "dtype": config.model.dtype, "batch": batch}
    report |= {"repeats": repeats, "left_out": left_out, "matmul_flops_per_second": rate}
    report["planning_ms"] = planning_time(Planner.from_config(methods["green"]), 100)
    report["rows"] = [row(name, part, time, programs, rate) for (name, part), time in seconds.items()]
    report["memory_slope_bytes"] = {
        name: (larger[name].temporary - of["update"].temporary) / (SLOPE - 1) / batch for name, of in programs.items()
    }
    report["ratios"] = {
        f"{slow} / green, {part}": seconds[slow, part] / seconds["green", part]
        for slow, part in seconds
        if slow != "green"
    }
    report |= whole_run(methods["green"], batch)
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


def product(dtype: str) -> tuple[Callable[..., Any], tuple[jax.Array, jax.Array]]:
    """A large product of square matrices, and its inputs."""
    a = jnp.ones((SIDE, SIDE), dtype)
    return jax.jit(jnp.matmul).lower(a, a).compile(), (a, a)


def row(name: str, part: str, time: float, programs: dict[str, dict[str, Program]], rate: float) -> dict[str, Any]:
    found = {"method": name, "part": part, "seconds": time}
    if name not in programs:
        return found
    program = programs[name][part]
    found |= program._asdict() | {"limit_share": program.flops / rate / time}
    del found["compiled"]
    return found


def table(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    lines = [
        f"{report['model']}, {report['dtype']}, batch {report['batch']}, on {report['cores']} cores of"
        f" {report['device']}: median of {report['repeats']} interleaved runs",
        f"matrix products at {report['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s;"
        f" one mask planned in {report['planning_ms']:.2f} ms",
        f"{'':24}{'s':>9}{'GFLOP':>9}{'MB':>10}{'share of limit':>16}{'compiled, s':>13}",
    ]
    for each in report["rows"]:
        line = f"{each['method'] + ' ' + each['part']:24}{each['seconds']:9.3f}"
        if "flops" in each:
            line += f"{each['flops'] / 1e9:9.1f}{each['temporary'] / 1e6:10.1f}{each['limit_share']:16.2f}"
            line += f"{each['compile_seconds']:13.1f}"
        lines.append(line)
    lines += [f"{name}: {ratio:.2f}" for name, ratio in report["ratios"].items()]
    lines += [
        f"{name}: {slope / 1e6:.1f} MB more for each image" for name, slope in report["memory_slope_bytes"].items()
    ]
    first = report["first_step_seconds"]
    lines += [
        f"whole run: first step after {first['cold']:.1f} s, {first['cached']:.1f} s with what was compiled before;"
        f" then {report['images_per_second']:.1f} images/s, {report['waited']:.2%} of the time waiting for data"
    ]
    return lines
