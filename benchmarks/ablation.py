"""What each operation with a gradient or rule of its own saves: an update with it, and with plain JAX in its place.

Reports ratios, without over with: of time, of temporary memory, and of the bytes that XLA counts, in float32 and
bfloat16. With --gpu the updates are compiled for that card and not run. docs/performance.md has the figures.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from benchmarks.ahead import CARDS, at_best, described
from benchmarks.hlo import read_kernels
from benchmarks.measure import TIMING, Timed, interleaved_seconds, machine, ratio_quartiles
from benchmarks.programs import ONE_DEVICE, check_pretraining, compile_part, first_state, runnable, sized
from benchmarks.roofline import total
from benchmarks.tables import Column, markdown
from greenjax.ops import group_attention, primitives
from greenjax.training import optim

DTYPES = ("float32", "bfloat16")
OWN = "own"  # the update in which nothing is replaced


def matmul(x, kernel, bias=None):
    return x @ kernel if bias is None else x @ kernel + bias.astype(x.dtype)


def layer_norm(x, scale, bias, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = wide.mean(axis=-1, keepdims=True), wide.var(axis=-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def gelu_matmul(x, kernel, bias=None):
    return primitives.matmul(gelu(x), kernel, bias)


def attend(q, k, v, bias, window):
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bgksd,bgktd->bgkst", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias[None].astype(wide)
    if window is not None:
        same = (window[:, :, None] == window[:, None, :]) | (window[:, :, None] < 0)
        logits = jnp.where(same[None, :, None], logits, -jnp.inf)
    return jnp.einsum("bgkst,bgktd->bgksd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def slots_product(x, pairs):
    return jnp.einsum("bgksd,bgkst->bgktd", x, pairs)


def product(spec, x, y, bias=None):
    return jnp.einsum(spec, x, y) if bias is None else jnp.einsum(spec, x, y) + bias.astype(x.dtype)


def row_sums(a, b):
    return a.sum(axis=-1, keepdims=True), b.sum(axis=-1, keepdims=True)


def token_sums(x):
    return x.sum(axis=1, keepdims=True)


def scale_by_adam(b1, b2, eps):
    return optim.kept_if_not_finite(optax.scale_by_adam(b1, b2, eps))


def as_given(x, *_):
    return x


# By name: the piece, and what stands in its place. A function with a gradient of its own has its definition as `fun`.
PIECES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "scale_by_adam": (optim.scale_by_adam, scale_by_adam),
    "clip_by_global_norm": (optim.clip_by_global_norm, optax.clip_by_global_norm),
    "global_norm": (optim.global_norm, optax.tree.norm),
    "layer_norm": (primitives.layer_norm, layer_norm),
    "gelu": (primitives.gelu, gelu),
    "gelu_matmul": (primitives.gelu_matmul, gelu_matmul),
    "matmul": (primitives.matmul, matmul),
    "permute": (primitives.permute, primitives.permute.fun),
    "product": (primitives.product, product),
    "stored": (primitives.stored, as_given),
    "hold": (primitives.hold, as_given),
    "after": (primitives.after, as_given),
    "row_sums": (primitives.row_sums, row_sums),
    "token_sums": (primitives.token_sums, token_sums),
    "attend": (group_attention.attend, attend),
    "slots_product": (group_attention.slots_product, slots_product),
    "relative_position_bias": (
        group_attention.relative_position_bias,
        group_attention.relative_position_bias.fun,
    ),
    "parts_by_head": (group_attention.parts_by_head, group_attention.parts_by_head.fun),
}

FLAGS = TIMING | {
    "--pieces": dict(nargs="+", choices=PIECES, default=list(PIECES), help="those to replace, one at a time"),
    "--gpu": dict(choices=CARDS, help="compile for this card, and run nothing"),
}


def run(
    config: ConfigDict, batch: int, repeats: int, pieces: Sequence[str] = tuple(PIECES), gpu: str | None = None
) -> dict[str, Any]:
    """Prints the table of a resolved pre-training configuration and returns its figures.

    Raises InputError with `gpu` and without JAX's CUDA plugin.
    """
    check_pretraining(config)
    report: dict[str, Any] = {"model": config.model.name, "depths": config.model.depths, "batch": batch}
    if gpu:
        device = described(CARDS[gpu])
        costs = {dtype: of_card(config, batch, dtype, pieces, device) for dtype in DTYPES}
        report |= {"device": CARDS[gpu].name, "jax": jax.__version__}
    else:
        costs = {dtype: of_this_machine(config, batch, dtype, pieces, repeats) for dtype in DTYPES}
        report |= machine() | {"repeats": repeats}
    report["rows"] = [
        {"piece": name}
        | {f"{what}_{dtype}": found[name][what] for dtype, found in costs.items() for what in found[name]}
        for name in pieces
    ]
    print(text(report))
    return report


@contextmanager
def replaced(*names: str) -> Iterator[None]:
    """These PIECES are plain in every module of greenjax while the block runs."""
    modules = [module for key, module in list(sys.modules.items()) if key.startswith("greenjax.")]
    plain = {id(own): (own, other) for own, other in map(PIECES.__getitem__, names)}
    found = [
        (module, key, *plain[id(value)])
        for module in modules
        for key, value in vars(module).items()
        if id(value) in plain
    ]
    jax.clear_caches()  # of functions traced with the others
    try:
        for module, key, _, other in found:
            setattr(module, key, other)
        yield
    finally:
        for module, key, own, _ in found:
            setattr(module, key, own)
        jax.clear_caches()


def of_this_machine(
    config: ConfigDict, batch: int, dtype: str, pieces: Sequence[str], repeats: int
) -> dict[str, dict[str, float]]:
    """For each piece the ratios of memory, bytes, and time with its quartiles."""
    of = sized(config, batch, model__dtype=dtype, **ONE_DEVICE)
    held = [first_state(of)]
    programs, runs = {}, dict[str, Timed]()
    for name in (OWN, *pieces):
        with replaced(*{name} - {OWN}):
            programs[name] = compile_part(of, "update")
        runs[name] = runnable(of, {"update": programs[name]}, held=held)["update"], ()
    seconds = interleaved_seconds(runs, repeats)
    own, found = programs[OWN], {}
    for name in pieces:
        low, median, high = ratio_quartiles(seconds[name], seconds[OWN])
        found[name] = {
            "memory": programs[name].temporary / own.temporary,
            "bytes": programs[name].bytes_accessed / own.bytes_accessed,
            "time": median,
            "time_quartiles": [low, high],
        }
    return found


def of_card(
    config: ConfigDict, batch: int, dtype: str, pieces: Sequence[str], device: Any
) -> dict[str, dict[str, float]]:
    """For each piece the ratios of memory and of bytes moved, by programs for a device that is not here."""
    of = sized(config, batch, model__dtype=dtype, **ONE_DEVICE)
    costs = {}
    for name in (OWN, *pieces):
        with replaced(*{name} - {OWN}):
            program = compile_part(of, "update", devices=[device])
        moved = total(at_best(read_kernels(program.compiled.as_text()), (1.0, 1.0)).values()).bytes
        costs[name] = {"memory": program.temporary, "bytes": moved}
    return {name: {what: costs[name][what] / costs[OWN][what] for what in costs[name]} for name in pieces}


COLUMNS: list[Column] = [
    ("replaced", "piece", 1, ""),
    *[(f"{what}, {dtype}", f"{what}_{dtype}", 1, ".2f") for dtype in DTYPES for what in ("time", "memory", "bytes")],
]


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    timed = f"median of {report['repeats']} interleaved runs" if "repeats" in report else "compiled, not run"
    model = f"{report['model']}, depths {report['depths']}"
    lines = [
        f"{model}, one update, batch {report['batch']}, {report['device']}: {timed}; without / with",
        *markdown([each for each in COLUMNS if any(each[1] in row for row in report["rows"])], report["rows"]),
    ]
    return "\n".join(lines)
