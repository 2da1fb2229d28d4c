"""Attention inside groups by several programs, at the shapes of each stage of a configuration.

Each program maps the output of the qkv projection to the input of the next one, token by token: [b, n, 3 k d] ->
[b, n, k d]. The times include gathering tokens into groups and back, which our own kernel does inside. On a GPU the
suite says which program to take: the fastest over all blocks of an update, in bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from benchmarks.measure import TIMING, Timed, interleaved_medians, machine
from benchmarks.programs import ONE_DEVICE, check_pretraining, memory_of, random_batch, sized
from benchmarks.tables import Column, table
from greenjax.backbones.geometry import stage_channels, stage_specs, token_grid
from greenjax.errors import InputError
from greenjax.ops.group_attention import device_kind, enter_groups, group_attention, leave_groups
from greenjax.planning import Grouping, dense_plan

FLAGS = TIMING
# The logit of hidden pairs: its weight is 0, and float16 holds it. A comment in JAX says that cuDNN errs with much
# larger numbers.
HIDDEN = -(2.0**15)

QKV = Float[Array, "b n qkv"]
Bias = Float[Array, "g k s s"] | None
Candidate = Callable[[QKV, Bias, Grouping, int], Float[Array, "b n c"]]  # the number is that of heads


class Case(NamedTuple):
    """The attention of a stage's regular or shifted blocks."""

    stage: int
    shifted: bool
    blocks: int
    heads: int
    inputs: tuple[QKV, Bias]
    grouping: Grouping
    dy: Float[Array, "b n c"]


def by_jax(
    implementation: Literal["xla", "cudnn"], qkv: QKV, bias: Bias, grouping: Grouping, heads: int
) -> Float[Array, "b n c"]:
    """jax.nn.dot_product_attention with groups as heads, so that all images share one copy of the bias."""
    window = jnp.asarray(grouping.window)
    g = window.shape[0]
    grouped = enter_groups(qkv, grouping)
    q, k, v = rearrange(grouped, "b g s (three k d) -> three b s (g k) d", three=3, k=heads)
    same = (window[:, :, None] == window[:, None, :])[:, None]
    hidden = jnp.where(same, 0.0, HIDDEN)
    hidden = jnp.broadcast_to(hidden, (g, heads, *hidden.shape[2:]))
    allowed = hidden if bias is None else jnp.where(same, bias, hidden)
    whole = rearrange(allowed, "g k s t -> 1 (g k) s t").astype(qkv.dtype)
    y = jax.nn.dot_product_attention(q, k, v, whole, implementation=implementation)
    return leave_groups(rearrange(y, "b s (g k) d -> b g s (k d)", g=g), grouping)


CANDIDATES: dict[str, Candidate] = {
    "greenjax": partial(group_attention, "xla"),
    "pallas": partial(group_attention, "pallas"),
    "xla": partial(by_jax, "xla"),
    "cudnn": partial(by_jax, "cudnn"),
}


def run(config: ConfigDict, batch: int, repeats: int) -> dict[str, Any]:
    """Forward + backward of every candidate that can run here, for every stage, and for all blocks of an update."""
    check_pretraining(config)
    config = sized(config, batch, **ONE_DEVICE)
    left_out = {name: why for name in CANDIDATES if (why := why_not(name, config.model.dtype))}
    report = {**machine(), "model": config.model.name, "method": config.method}
    report |= {"dtype": config.model.dtype, "batch": batch, "repeats": repeats, "left_out": left_out, "rows": []}
    for case in cases(config):
        rows = measured(case, [name for name in CANDIDATES if name not in left_out], repeats)
        report["rows"] += rows
        told = (f"{row['candidate']} {row['ms']:.2f} ms" for row in rows if "ms" in row)
        print(f"measured stage {case.stage + 1}{', shifted' if case.shifted else ''}: {', '.join(told)}", flush=True)
    report["update_ms"] = {
        name: sum(row["ms"] * row["blocks"] for row in report["rows"] if row["candidate"] == name)
        for name in dict.fromkeys(row["candidate"] for row in report["rows"])
        if all("ms" in row for row in report["rows"] if row["candidate"] == name)
    }
    print(text(report))
    return report


def why_not(name: str, dtype: str) -> str | None:
    """The reason why a candidate cannot run here; None: it can."""
    if name == "pallas" and "NVIDIA" not in (found := device_kind()):
        return f"it needs an NVIDIA GPU, found {found}"
    if name != "cudnn":
        return None
    if jax.default_backend() != "gpu":
        return f"it needs a GPU, found {jax.default_backend()}"
    return None if dtype in ("bfloat16", "float16") else f"it takes bfloat16 and float16, found {dtype}"


def cases(config: ConfigDict) -> list[Case]:
    """The groupings of one mask, on noise. Raises InputError for a backbone without windows."""
    if not any(spec.windows for spec in stage_specs(config)):
        raise InputError(f"model.name is {config.model.name!r}: expected a model with windows")
    if config.method == "green":
        windows = jax.tree.map(lambda leaf: leaf[0], random_batch(config).plan).windows
    else:
        windows = dense_plan(token_grid(config), stage_specs(config)).windows
    rng = np.random.default_rng(0)
    swin = config.model.name.startswith("swin")
    found = []
    stages = zip(stage_specs(config), stage_channels(config), config.model.num_heads, windows, strict=True)
    for stage, (spec, channels, heads, groupings) in enumerate(stages):
        for number, (of_blocks, grouping) in enumerate(zip(spec.windows, groupings, strict=True)):
            found.append(case(config, (stage, number == 1, of_blocks.blocks, heads), grouping, channels, swin, rng))
    return found


def case(
    config: ConfigDict,
    names: tuple[int, bool, int, int],
    grouping: Grouping,
    channels: int,
    biased: bool,
    rng: np.random.Generator,
) -> Case:
    """The case of one grouping. `names`: the first fields of a Case."""
    (g, s), heads, dtype = np.shape(grouping.window), names[3], config.model.dtype
    n = s if grouping.slot is None else len(grouping.slot)
    qkv, dy = (
        jnp.asarray(rng.normal(size=(config.data.batch_size, n, c)).astype(np.float32), dtype)
        for c in (3 * channels, channels)
    )
    bias = jnp.asarray(rng.normal(size=(g, heads, s, s)), jnp.float32) if biased else None
    return Case(*names, (qkv, bias), jax.tree.map(jnp.asarray, grouping), dy)


def both_ways(candidate: Candidate, case: Case) -> Callable[..., Any]:
    """(qkv and bias, grouping, dy) -> the values, and the gradients of qkv and bias."""

    def run(inputs: tuple[QKV, Bias], grouping: Grouping, dy: Array) -> Any:
        y, pull = jax.vjp(lambda qkv, bias: candidate(qkv, bias, grouping, case.heads), *inputs)
        return y, pull(dy)

    return run


def measured(case: Case, names: list[str], repeats: int) -> list[dict[str, Any]]:
    """A row for every candidate; `difference` from greenjax's own in float32, as a share of the largest number."""
    g, s = case.grouping.window.shape
    shape = {"stage": case.stage, "shifted": case.shifted, "blocks": case.blocks, "groups": g, "slots": s}
    shape |= {"heads": case.heads, "head_dim": case.dy.shape[2] // case.heads}
    wide, dy = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (case.inputs, case.dy))
    reference = jax.jit(both_ways(CANDIDATES["greenjax"], case))(wide, case.grouping, dy)
    arguments = case.inputs, case.grouping, case.dy
    runs: dict[str, Timed] = {}
    rows = {name: shape | {"candidate": name} for name in names}
    for name in names:
        try:
            program = jax.jit(both_ways(CANDIDATES[name], case)).lower(*arguments).compile()
        except (NotImplementedError, ValueError, RuntimeError) as error:  # the library refuses the shapes
            rows[name]["error"] = str(error).strip().splitlines()[0]
            continue
        runs[name] = program, arguments
        rows[name]["difference"] = difference(program(*arguments), reference)
        rows[name]["temporary"] = memory_of(program)[0]
    for name, seconds in interleaved_medians(runs, repeats).items():
        rows[name]["ms"] = 1e3 * seconds
    return list(rows.values())


def difference(values: Any, reference: Any) -> float:
    """The largest difference of all arrays, as a share of the largest number of the array."""

    def share(a: Array, b: Array) -> float:
        return float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())

    return max(share(a, b) for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(reference), strict=True))


COLUMNS: list[Column] = [
    ("stage", "place", 1, ""),
    ("rows x slots", "grouped", 1, ""),
    ("heads x channels", "per_head", 1, ""),
    ("by", "candidate", 1, ""),
    ("ms", "ms", 1, ".2f"),
    ("MB", "temporary", 1e6, ".1f"),
    ("difference", "difference", 1, ".0e"),
]


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    rows = [
        row
        | {"place": f"{row['stage'] + 1}{', shifted' if row['shifted'] else ''}"}
        | {"grouped": f"{row['groups']} x {row['slots']}", "per_head": f"{row['heads']} x {row['head_dim']}"}
        for row in report["rows"]
    ]
    return "\n".join(
        [
            f"{report['model']}, {report['method']}, {report['dtype']}, batch {report['batch']}, on {report['device']}",
            *(f"{name} is left out: {reason}" for name, reason in report["left_out"].items()),
            table(COLUMNS, rows),
            *(f"stage {row['place']}, {row['candidate']}: {row['error']}" for row in rows if "error" in row),
            *(f"all blocks, {name}: {ms:.2f} ms" for name, ms in report["update_ms"].items()),
        ]
    )
