"""The backends of the sparse convolution on layers of Twins-L and ConvNeXt V2 base, and on others.

docs/sparse_conv.md explains the figures.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import TIMING, interleaved_medians, machine
from benchmarks.tables import Column, table
from greenjax.errors import InputError
from greenjax.ops import sparse_native
from greenjax.ops.sparse_conv import block_conv, check_backend, strided_conv, submanifold_conv
from greenjax.planning import TokenGrid
from greenjax.planning.sites import ConvIndex, strided_index, submanifold_index

FLAGS = TIMING


class Layer(NamedTuple):
    """A convolution of the visible tokens of `stage`, 12 of 49 units of a 224 px image, patch 4."""

    name: str
    stage: int
    kernel: int
    stride: int  # 1: submanifold
    channels: tuple[int, int]
    groups: int = 1


# Channels of Twins-L (arXiv 2104.13840) and ConvNeXt V2 base (arXiv 2301.00808): 128, 256, 512, 1024.
LAYERS = (
    Layer("positional encoding, depth-wise 3x3, stage 1", 0, 3, 1, (128, 128), 128),
    Layer("positional encoding, depth-wise 3x3, stage 3", 2, 3, 1, (512, 512), 512),
    Layer("depth-wise 7x7, stage 1", 0, 7, 1, (128, 128), 128),
    Layer("depth-wise 7x7, stage 2", 1, 7, 1, (256, 256), 256),
    Layer("depth-wise 7x7, stage 3", 2, 7, 1, (512, 512), 512),
    Layer("depth-wise 7x7, stage 4", 3, 7, 1, (1024, 1024), 1024),
    Layer("patch embedding 2/2, stage 1 to 2", 0, 2, 2, (128, 256)),
    Layer("sub-sampling 8/8, stage 1", 0, 8, 8, (128, 128)),
    Layer("sub-sampling 4/4, stage 2", 1, 4, 4, (256, 256)),
    Layer("submanifold 3x3, stage 1", 0, 3, 1, (128, 128)),
    Layer("submanifold 7x7, stage 1", 0, 7, 1, (128, 128)),
    Layer("overlapping 3/2, stage 1 to 2", 0, 3, 2, (128, 256)),
)
BACKENDS = {  # by name in the table
    "native": dict(backend="native"),
    "masked": dict(backend="masked"),
    "spconv pure": dict(backend="spconv", callback="pure"),
    "spconv buffer": dict(backend="spconv", callback="buffer"),
}
GRID = TokenGrid(224, 224, patch=4, stages=4)
COLUMNS: list[Column] = [("layer", "layer", 1, ""), ("by", "backend", 1, "")]
for figure, quantity, unit in (("ms", "ms", 1), ("GFLOP", "flops", 1e9), ("MB", "bytes", 1e6)):
    COLUMNS += [(f"{figure} forward", f"forward_{quantity}", unit, ".2f"), ("+ back", f"both_{quantity}", unit, ".2f")]
COLUMNS += [("difference", "difference", 1, ".0e")]
VISIBLE = 12  # units: the paper's ratio of 0.75


def run(batch: int, repeats: int) -> dict[str, Any]:
    """Times every layer by every backend that can run, forward and forward + backward, in float32."""
    backends, left_out = {}, {}
    for name, how in BACKENDS.items():
        try:
            check_backend(**how)
            backends[name] = how
        except InputError as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}")
    report = {**machine(), "batch": batch, "repeats": repeats, "left_out": left_out, "rows": []}
    for layer in LAYERS:
        # spconv has no groups, and its backend leaves such layers to native.
        able = {name: how for name, how in backends.items() if layer.groups == 1 or how["backend"] != "spconv"}
        rows = layer_rows(layer, able, batch, repeats)
        report["rows"] += rows
        told = (f"{row['backend']} {row['forward_ms']:.2f}, + back {row['both_ms']:.2f} ms" for row in rows)
        print(f"measured {layer.name}: {'; '.join(told)}", flush=True)
    print(f"{report['device']}, {report['cores']} cores, batch {batch}, median of {repeats} interleaved runs")
    print(table(COLUMNS, report["rows"]))
    return report


def layer_rows(layer: Layer, backends: dict[str, dict], batch: int, repeats: int) -> list[dict[str, Any]]:
    programs, values, counts = {}, {}, {}
    for name, how in backends.items():
        for part, compiled in compile_layer(layer, how, batch).items():
            programs[name, part] = compiled
        program, inputs = programs[name, "both"]
        values[name] = jax.tree.leaves(program(*inputs))
        if how["backend"] != "spconv":  # XLA does not see the work of callbacks
            with written_out_loops():
                for part, (program, _) in compile_layer(layer, how, batch).items():
                    counts[name, part] = program.cost_analysis()
    seconds = interleaved_medians(programs, repeats)
    rows = []
    for name in backends:
        row = {"layer": layer.name, "backend": name, "difference": largest_difference(values[name], values["native"])}
        for part in ("forward", "both"):
            count, analysis = counts.get((name, part), {}), programs[name, part][0].memory_analysis()
            row[f"{part}_ms"] = 1e3 * seconds[name, part]
            row[f"{part}_flops"], row[f"{part}_bytes"] = count.get("flops"), count.get("bytes accessed")
            row[f"{part}_temporary_bytes"] = analysis.temp_size_in_bytes if count else None
        rows.append(row)
    return rows


def compile_layer(layer: Layer, how: dict[str, Any], batch: int) -> dict[str, tuple[Any, tuple]]:
    """The programs of a layer, forward and both ways, with their arguments."""
    index, args, dy = inputs(layer, batch)
    f = convolution(layer, how)
    forward = jax.jit(f).lower(index, *args).compile(), (index, *args)
    return {
        "forward": forward,
        "both": (jax.jit(with_gradients(f)).lower(index, dy, *args).compile(), (index, dy, *args)),
    }


@contextmanager
def written_out_loops() -> Iterator[None]:
    """For programs that are counted and not run: XLA's analysis counts the body of a loop once."""
    jax.clear_caches()
    sparse_native.UNROLL = True
    try:
        yield
    finally:
        sparse_native.UNROLL = 1
        jax.clear_caches()


def inputs(layer: Layer, batch: int) -> tuple[ConvIndex, tuple[jax.Array, ...], jax.Array]:
    """The index, (x, kernel, bias), and the gradient that comes in."""
    rng = np.random.default_rng(0)
    units = np.sort(rng.permutation(GRID.units[0] * GRID.units[1])[:VISIBLE])
    fine = GRID.coordinates(layer.stage)[units].reshape(-1, 2)
    if layer.stride == 1:
        index = submanifold_index(fine, GRID.shape(layer.stage), layer.kernel)
    else:
        coarse = GRID.coordinates(layer.stage + layer.stride.bit_length() - 1)[units].reshape(-1, 2)
        padding = (layer.kernel - layer.stride + 1) // 2
        index = strided_index(fine, coarse, layer.kernel, layer.stride, padding)
    n_in, n_out, (i, o) = len(index.inputs), len(index.outputs), layer.channels
    shapes = (batch, n_in, i), (layer.kernel, layer.kernel, i // layer.groups, o), (o,), (batch, n_out, o)
    *args, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return jax.tree.map(jnp.asarray, index), tuple(args), dy


def convolution(layer: Layer, how: dict[str, Any]) -> Callable[..., jax.Array]:
    """f(index, x, kernel, bias); the index is an argument, because every step of training has another."""
    shape = GRID.shape(layer.stage)
    if layer.kernel == layer.stride:
        return lambda index, x, kernel, bias: block_conv(x, kernel, bias, index.inputs, shape=shape, **how)
    if layer.stride == 1:
        groups = layer.groups
        return lambda index, x, kernel, bias: submanifold_conv(
            x, kernel, bias, index, groups=groups, shape=shape, **how
        )
    padding = (layer.kernel - layer.stride + 1) // 2
    return lambda index, x, kernel, bias: strided_conv(
        x, kernel, bias, index, stride=layer.stride, padding=padding, shape=shape, **how
    )


def with_gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    def both(index: ConvIndex, dy: jax.Array, *args: jax.Array) -> Any:
        y, pull = jax.vjp(lambda *a: f(index, *a), *args)
        return y, pull(dy)

    return both


def largest_difference(values: list[jax.Array], reference: list[jax.Array]) -> float:
    """The largest difference of values and gradients, as a share of the largest number of the array."""
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(values, reference))
