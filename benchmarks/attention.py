"""Attention inside groups by several programs, at the shapes of each stage of a configuration.

All take what the projection gives and return what the next one takes, token by token: [b, n, 3 k d] -> [b, n, k d]. So
what it costs to put tokens into groups and out again counts, which a kernel of our own does on the way. On a GPU this
suite decides which of them ops/group_attention.py keeps: the fastest over all blocks of an update, in bfloat16, on the
card that runs are made on. On a CPU there is no fused one to choose.
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
from benchmarks.programs import memory_of, random_batch, sized
from greenjax.backbones.geometry import stage_channels, stage_specs, token_grid
from greenjax.errors import InputError
from greenjax.ops.group_attention import device_kind, enter_groups, group_attention, leave_groups
from greenjax.planning import Grouping, dense_plan

FLAGS = TIMING
# Large enough that nothing is left of what is hidden, small enough for float16. By a comment in JAX's own masks, cuDNN
# errs where much larger numbers are subtracted.
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
    """jax.nn.dot_product_attention, to which groups are heads: so all images share one bias, none has its own copy."""
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
    if config.task != "pretrain":
        raise InputError(f"task is {config.task!r}: expected 'pretrain'")
    config = sized(config, batch, mesh__data=1, mesh__fsdp=1, mask__groups=1)
    left_out = {name: why for name in CANDIDATES if (why := why_not(name, config.model.dtype))}
    report = {**machine(), "model": config.model.name, "method": config.method}
    report |= {"dtype": config.model.dtype, "batch": batch, "repeats": repeats, "left_out": left_out, "rows": []}
    print(f"{config.model.name}, {config.method}, {config.model.dtype}, batch {batch}, on {report['device']}:")
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    print(f"{'stage, rows x slots, heads x channels':50}{'ms':>10}{'MB':>10}{'difference':>12}")
    for case in cases(config):
        for row in measured(case, [name for name in CANDIDATES if name not in left_out], repeats):
            report["rows"].append(row)
            print(line(row))
    report["update_ms"] = {
        name: sum(row["ms"] * row["blocks"] for row in report["rows"] if row["candidate"] == name)
        for name in dict.fromkeys(row["candidate"] for row in report["rows"])
        if all("ms" in row for row in report["rows"] if row["candidate"] == name)
    }
    for name, ms in report["update_ms"].items():
        print(f"all blocks, {name}: {ms:.2f} ms")
    return report


def why_not(name: str, dtype: str) -> str | None:
    """Why a candidate cannot run here; None: it can."""
    if name == "pallas" and "NVIDIA" not in (found := device_kind()):
        return f"it needs an NVIDIA GPU, found {found}"
    if name != "cudnn":
        return None
    if jax.default_backend() != "gpu":
        return f"it needs a GPU, found {jax.default_backend()}"
    return None if dtype in ("bfloat16", "float16") else f"it takes bfloat16 and float16, found {dtype}"


def cases(config: ConfigDict) -> list[Case]:
    """The groupings of one mask, on noise. Raises InputError for a backbone without windows."""
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
    if not found:
        raise InputError(f"model.name is {config.model.name!r}: expected a model with windows")
    return found


def case(
    config: ConfigDict,
    names: tuple[int, bool, int, int],
    grouping: Grouping,
    channels: int,
    biased: bool,
    rng: np.random.Generator,
) -> Case:
    """One grouping's. `names`: the first fields of a Case."""
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
    """A row for every candidate; `difference` is that from greenjax's own in float32, as a share of the largest."""
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
        except (NotImplementedError, ValueError, RuntimeError) as error:  # shapes that a library does not take
            rows[name]["error"] = str(error).strip().splitlines()[0]
            continue
        runs[name] = program, arguments
        rows[name]["difference"] = difference(program(*arguments), reference)
        rows[name]["temporary"] = memory_of(program)[0]
    for name, seconds in interleaved_medians(runs, repeats).items():
        rows[name]["ms"] = 1e3 * seconds
    return list(rows.values())


def difference(values: Any, reference: Any) -> float:
    """The largest of all arrays."""

    def share(a: Array, b: Array) -> float:
        return float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())

    return max(share(a, b) for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(reference), strict=True))


def line(row: dict[str, Any]) -> str:
    shifted = ", shifted" if row["shifted"] else ""
    shape = f"{row['groups']} x {row['slots']}, {row['heads']} x {row['head_dim']}"
    name = f"{row['stage'] + 1}{shifted}, {shape}: {row['candidate']}"
    if "error" in row:
        return f"{name:50}  {row['error']}"
    return f"{name:50}{row['ms']:10.2f}{row['temporary'] / 1e6:10.1f}{row['difference']:12.0e}"
