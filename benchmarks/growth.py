"""How time, temporary memory and matrix products of an update grow with image size, batch, mask ratio and window.

Starting from the configuration at --batch, the suite varies one of these four at a time. The forecasts:

    matrix products    as forecast.py counts them for a Swin: in the main proportional to the visible tokens
    time               as the matrix products
    temporary memory   for a Swin: gradients, and a constant number of bytes for each visible token

Other families have no forecast of products and memory, and those without windows keep none of another size.

Exponents are slopes of log-log lines against the visible tokens of an update, for windows against their side. The dense
update (SimMIM on the same encoder) is compiled for its memory and products, and not run. docs/growth.md explains the
figures.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.forecast import Forecast, forecast
from benchmarks.growth_figure import growth_figure
from benchmarks.measure import TIMING, interleaved_seconds, machine, ratio_quartiles
from benchmarks.programs import Program, check_devices, compile_part, first_state, runnable, sized
from benchmarks.tables import Column, table
from greenjax.backbones.geometry import make_planner
from greenjax.backbones.registry import FAMILIES
from greenjax.errors import InputError
from greenjax.planning.report import check_figure
from greenjax.training.sharding import make_mesh
from greenjax.training.state import abstract_state

FLAGS = TIMING | {
    "--plot": dict(type=Path, help="file to draw the curves into, such as FILE.png"),
    "--beside": dict(type=Path, help="--json of another run, such as one in bfloat16, to draw its curves too"),
}


class Setting(NamedTuple):
    """The four values that the suite changes."""

    image_size: int  # pixels a side
    batch: int
    mask_ratio: float
    window: int | None  # None: the model has no windows


AXES: dict[str, tuple[float, ...]] = {
    "image_size": (224, 384, 512, 640),
    "batch": (0.5, 1, 2, 4),  # times --batch
    "mask_ratio": (0.5, 0.6, 0.75, 0.9),
    "window": (4, 7, 8, 14),
}
LONGEST = 12  # an update with more than this many times the matrix products of the own one is not run


class Update(NamedTuple):
    """A setting, compiled."""

    config: ConfigDict
    green: Program
    dense: Program
    tokens: int  # visible, of the first stage, all images
    expected: Forecast | None  # of a Swin


def run(
    config: ConfigDict, batch: int, repeats: int, plot: Path | None = None, beside: Path | None = None
) -> dict[str, Any]:
    """Prints the table of a resolved pre-training configuration, draws it into `plot`, and returns its figures.

    `beside`: the figures of another run, to be drawn as well.
    """
    check(config, batch)
    if plot:
        check_figure(plot)
    other = json.loads(beside.read_text()) if beside else None
    own = Setting(config.image_size[0], batch, config.mask.ratio, config.model.window)
    configs, left_out = settings(config, own)
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    updates = compile_all(configs, own)
    seconds = run_all(updates, own, repeats)
    pace = statistics.median(seconds[own]) / updates[own].green.flops
    report = {**machine(), "model": config.model.name, "dtype": config.model.dtype}
    report |= {"repeats": repeats, **own._asdict(), "left_out": left_out, "axes": {}}
    for axis in axes_of(config):
        along = [setting for setting in updates if setting._replace(**{axis: getattr(own, axis)}) == own]
        along.sort(key=lambda setting: getattr(setting, axis))
        rows = [row(setting, updates[setting], seconds.get(setting), seconds[own], pace) for setting in along]
        report["axes"][axis] = {"rows": rows, **fits(axis, rows)}
    print(text(report))
    if plot:
        growth_figure(report, other).savefig(plot, dpi=110)
        print(f"figure: {plot}")
    return report


def check(config: ConfigDict, batch: int) -> None:
    """Raises InputError for a configuration that has nothing to compare with, before anything is compiled."""
    if config.task != "pretrain" or config.method != "green":
        found = f"task is {config.task!r} and method {config.method!r}"
        raise InputError(f"{found}: expected 'pretrain' and 'green', which is compared with the dense one")
    if config.model.remat:
        raise InputError("model.remat is True: expected False, for which memory is known in advance")
    if len(set(config.image_size)) > 1:
        raise InputError(f"image_size is {tuple(config.image_size)}: expected a square, of which other sizes are made")
    check_devices(batch)


def axes_of(config: ConfigDict) -> dict[str, tuple[float, ...]]:
    """AXES, without windows where the model has none."""
    return {axis: values for axis, values in AXES.items() if axis != "window" or config.model.window}


def settings(config: ConfigDict, own: Setting) -> tuple[dict[Setting, ConfigDict], dict[str, str]]:
    """Every setting with its configuration, the own one first; and reasons for those left out."""
    configs, left_out = {}, {}
    for axis, values in axes_of(config).items():
        for value in [own.batch * share for share in values] if axis == "batch" else values:
            try:
                if axis == "batch" and value % jax.device_count():
                    raise InputError(f"expected a multiple of the {jax.device_count()} devices")
                setting = own._replace(**{axis: type(getattr(own, axis))(value)})
                configs[setting] = sized_as(config, setting)
            except InputError as error:
                left_out[f"{axis} {value:g}"] = str(error)
    return {own: sized_as(config, own)} | configs, left_out


def sized_as(config: ConfigDict, setting: Setting) -> ConfigDict:
    """The configuration in another setting. Raises InputError where its masks cannot be planned."""
    changes = {"mask__ratio": setting.mask_ratio, "model__window": setting.window, "image_size": setting.image_size}
    changed = sized(config, setting.batch, **changes)
    make_planner(changed)  # raises InputError where its masks cannot be planned
    return changed


def visible_tokens(config: ConfigDict) -> int:
    """Of the first stage, all images of an update."""
    planner = make_planner(config)
    return config.data.batch_size * planner.visible * planner.grid.tokens_per_unit(0)


def compile_all(configs: dict[Setting, ConfigDict], own: Setting) -> dict[Setting, Update]:
    """The updates of all settings, green and dense. Settings that differ in the mask ratio share one dense program."""
    updates, dense = {}, {}
    for setting, config in configs.items():
        unmasked = setting._replace(mask_ratio=own.mask_ratio)
        green = compile_part(config, "update")
        if unmasked not in dense:
            dense[unmasked] = compile_part(sized(config, config.data.batch_size, method="simmim"), "update")
        known = config.model.name in FAMILIES["swin"].sizes and not config.decoder.fusion
        expected = forecast(config) if known else None
        updates[setting] = Update(config, green, dense[unmasked], visible_tokens(config), expected)
        print(f"compiled {len(updates)} of {len(configs)}: {described(setting)}", flush=True)
    return updates


def run_all(updates: dict[Setting, Update], own: Setting, repeats: int) -> dict[Setting, list[float]]:
    """Seconds by round of every green update up to LONGEST; settings with equal shapes share a state."""
    states, runs = {}, {}
    for setting, (config, green, *_) in updates.items():
        if green.flops > LONGEST * updates[own].green.flops:
            continue
        held = states.setdefault(state_shapes(config), [])
        held[:] = held or [first_state(config)]
        runs[setting] = runnable(config, {"update": green}, held=held)["update"], ()
    print(f"running {len(runs)} updates in turn, {repeats} times", flush=True)
    return interleaved_seconds(runs, repeats)


def state_shapes(config: ConfigDict) -> tuple[tuple[int, ...], ...]:
    """Equal for configurations that can share a state."""
    state = abstract_state(config, make_mesh(config))
    return tuple(leaf.shape for leaf in jax.tree.leaves(state))


def row(setting: Setting, update: Update, seconds: list[float] | None, own: list[float], pace: float) -> dict[str, Any]:
    """The figures of one setting; `own` are the seconds of the configuration's own, `pace` its seconds per FLOP."""
    _, green, dense, tokens, expected = update
    return {
        **setting._asdict(),
        "tokens": tokens,
        "seconds": seconds and statistics.median(seconds),
        "seconds_ratio": seconds and ratio_quartiles(seconds, own)[1],
        "expected_seconds": pace * green.flops,
        "flops": green.flops,
        "expected_flops": expected and expected.flops,
        "temporary": green.temporary,
        "expected_temporary": expected and expected.gradients + expected.kept,
        "dense_flops": dense.flops,
        "dense_temporary": dense.temporary,
        "compile_seconds": green.compile_seconds,
    }


def fits(axis: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Exponents by quantity, measured and expected, and the straight lines of memory and time.

    Memory is a constant and so many bytes a visible token, time a constant and so many seconds a FLOP.
    """
    x = "window" if axis == "window" else "tokens"
    slopes = {
        name: slope([row[x] for row in rows if row[name]], [row[name] for row in rows if row[name]])
        for kind in ("seconds", "flops", "temporary")
        for name in (kind, f"expected_{kind}", f"dense_{kind}")
        if name in rows[0]
    }
    lines = {"seconds by FLOP": line([row["flops"] for row in rows], [row["seconds"] for row in rows])}
    if x == "tokens":
        for name in ("temporary", "expected_temporary"):
            lines[f"{name} by token"] = line([row["tokens"] for row in rows], [row[name] for row in rows])
    return {"slopes": slopes, "lines": lines}


def slope(x: Sequence[int | float], y: Sequence[int | float]) -> float | None:
    """Slope of the straight line through log y against log x; None for less than two points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(set(x)) > 1 else None


def line(x: Sequence[int | float], y: Sequence[int | float | None]) -> dict[str, float] | None:
    """The straight line through the known points; None for less than two."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if len({a for a, _ in known}) < 2:
        return None
    per_unit, constant = np.polyfit([a for a, _ in known], [b for _, b in known], 1)
    return {"constant": float(constant), "per_unit": float(per_unit)}


def described(setting: Setting) -> str:
    size, batch, ratio, window = setting
    return f"{size} pixels, batch {batch}, mask ratio {ratio:g}{f', window {window}' if window else ''}"


FIGURES: list[Column] = [
    ("tokens", "tokens", 1, "d"),
    ("s", "seconds", 1, ".3f"),
    ("expected", "expected_seconds", 1, ".3f"),
    ("ratio", "seconds_ratio", 1, ".2f"),
    ("GFLOP", "flops", 1e9, ".1f"),
    ("expected", "expected_flops", 1e9, ".1f"),
    ("dense", "dense_flops", 1e9, ".1f"),
    ("MB", "temporary", 1e6, ".0f"),
    ("expected", "expected_temporary", 1e6, ".0f"),
    ("dense", "dense_temporary", 1e6, ".0f"),
]


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"{report['model']}, {report['dtype']}, on {report['cores']} cores of {report['device']}: one update,"
        f" median of {report['repeats']} interleaved runs;",
        "expected: time as the matrix products, memory as gradients and what the backward pass reads",
    ]
    for axis, found in report["axes"].items():
        lines += ["", table([(axis, axis, 1, "g"), *FIGURES], found["rows"]), *fit_lines(found)]
    return "\n".join(lines)


def fit_lines(found: dict[str, Any]) -> list[str]:
    """Exponents and straight lines of one axis as text."""
    slopes = (f"{name.replace('_', ' ')} {value:.2f}" for name, value in found["slopes"].items() if value is not None)
    lines = [f"exponents: {', '.join(slopes)}"]
    for name, of in found["lines"].items():
        if of and name.startswith("seconds"):
            lines.append(f"{name}: {of['constant']:.2f} s + 1 s / {1e-9 / of['per_unit']:.0f} GFLOP")
        elif of:
            megabytes = f"{of['constant'] / 1e6:.0f} MB + {of['per_unit'] / 1e3:.1f} kB"
            lines.append(f"{name.replace('_', ' ')}: {megabytes}")
    return lines
