"""One update in float32 and in bfloat16, interleaved: green, dense (SimMIM), and transformers' SimMIM in PyTorch.

--windows adds green and dense updates of other windows. Reports seconds, temporary memory and its slope by image, the
share of the limit that the fastest large product sets in each type, and ratios between methods, types and windows.
docs/performance.md explains the figures.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.measure import TIMING, Timed, interleaved_seconds, machine, product
from benchmarks.peers import PEER, find_peers
from benchmarks.programs import (
    METHODS,
    ONE_DEVICE,
    Program,
    check_pretraining,
    compile_part,
    first_state,
    memory_slope,
    runnable,
    sized,
)
from benchmarks.tables import Column, table
from greenjax.config.flags import positive

FLAGS = TIMING | {"--windows": dict(type=positive, nargs="*", default=[], help="windows beside the configuration's")}
DTYPES = ("float32", "bfloat16")


class Update(NamedTuple):
    """What makes one row."""

    method: str
    dtype: str
    window: int | None  # None: a backbone without windows


def run(config: ConfigDict, batch: int, repeats: int, windows: Sequence[int] = ()) -> dict[str, Any]:
    """Prints the table of a resolved pre-training configuration and returns its figures."""
    check_pretraining(config)
    own, states = config.model.window, {}
    compiled: dict[Update, tuple[ConfigDict, Program]] = {}
    runs: dict[Any, Timed] = {}
    for dtype in DTYPES:
        for window in dict.fromkeys((own, *windows)):
            for name, method in METHODS.items():
                changes = dict(method=method, model__dtype=dtype, model__window=window)
                of = sized(config, batch, **changes, **ONE_DEVICE)
                program = compile_part(of, "update")
                compiled[Update(name, dtype, window)] = of, program
                # Parameters are float32 in both types: updates of both go on from one state.
                held = states.setdefault((name, window), [])
                runs[Update(name, dtype, window)] = runner(of, program, held), ()
    limits, flops, left_out = {}, 0, {}
    for dtype in DTYPES:
        runs["matmul", dtype], flops, limits[dtype] = product(dtype)
        peers = find_peers(compiled[Update("dense", dtype, own)][0], batch, compiled=False)
        left_out |= peers.left_out
        if PEER in peers.makers:
            runs[Update(PEER, dtype, own)] = peers.makers[PEER]()["update"], ()
    seconds = {key: statistics.median(times) for key, times in interleaved_seconds(runs, repeats).items()}
    rates = {dtype: flops / seconds.pop(("matmul", dtype)) for dtype in DTYPES}
    report = {**machine(), "model": config.model.name, "batch": batch, "repeats": repeats, "left_out": left_out}
    report["limits"] = {name: {"product": limits[name], "flops_per_second": rates[name]} for name in DTYPES}
    report["rows"] = [row(key, time, batch, compiled.get(key), rates[key.dtype]) for key, time in seconds.items()]
    report["ratios"] = ratios(report["rows"], own)
    print(text(report))
    return report


def runner(config: ConfigDict, program: Program, held: list[Any]) -> Any:
    """The update as a function without arguments, on the state in `held`, which it makes where there is none."""
    if not held:
        held.append(first_state(config))
    return runnable(config, {"update": program}, held=held)["update"]


def row(
    key: Update, time: float, batch: int, compiled: tuple[ConfigDict, Program] | None, rate: float
) -> dict[str, Any]:
    """One line of the table."""
    found: dict[str, Any] = {**key._asdict(), "seconds": time, "images_per_second": batch / time}
    if compiled is None:
        return found
    config, program = compiled
    found |= {"flops": program.flops, "limit_share": program.flops / rate / time, "temporary": program.temporary}
    return found | {"memory_slope_bytes": memory_slope(config, program)}


def ratios(rows: Sequence[dict[str, Any]], own: int | None) -> dict[str, float]:
    """Ratios of the seconds of two rows; between windows, also of the memory that each image takes."""
    by = {Update(row["method"], row["dtype"], row["window"]): row for row in rows}
    found = {}
    for key, of in by.items():
        if key.method != "green":
            found[f"{key.method} / green, {key.dtype}, window {key.window}"] = (
                of["seconds"] / by[key._replace(method="green")]["seconds"]
            )
        elif key.window != own:
            first = by[key._replace(window=own)]
            found[f"window {key.window} / {own}, {key.dtype}"] = of["seconds"] / first["seconds"]
            name = f"window {key.window} / {own}, {key.dtype}, memory for each image"
            found[name] = of["memory_slope_bytes"] / first["memory_slope_bytes"]
        if key.dtype == DTYPES[0]:
            faster = by[key._replace(dtype=DTYPES[1])]
            found[f"float32 / bfloat16, {key.method}, window {key.window}"] = of["seconds"] / faster["seconds"]
    return found


COLUMNS: list[Column] = [
    ("update", "method", 1, ""),
    ("type", "dtype", 1, ""),
    ("window", "window", 1, "d"),
    ("s", "seconds", 1, ".3f"),
    ("images/s", "images_per_second", 1, ".1f"),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("share of limit", "limit_share", 1, ".2f"),
    ("MB", "temporary", 1e6, ".1f"),
    ("MB an image", "memory_slope_bytes", 1e6, ".1f"),
]


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    return "\n".join(
        [
            f"{report['model']}, one update, batch {report['batch']}, on {report['cores']} cores of"
            f" {report['device']}: median of {report['repeats']} interleaved runs",
            *(f"{name} is left out: {reason}" for name, reason in report["left_out"].items()),
            *(
                f"products at most at {limit['flops_per_second'] / 1e9:.0f} GFLOP/s, {limit['product']}"
                for limit in report["limits"].values()
            ),
            table(COLUMNS, report["rows"]),
            *(f"{name}: {ratio:.2f}" for name, ratio in report["ratios"].items()),
        ]
    )
