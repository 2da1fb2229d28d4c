"""Memory and communication of each device in an update of pre-training, compiled for simulated devices.

    python -m benchmarks scaling --config configs/swin_b.py [--devices 8] [--fsdp 1 8] [--json FILE]

The update is compiled for simulated CPU devices, once for each degree of fsdp. The program states the bytes that each
device holds, and its collectives. From their bytes and the FLOPs follows the time of an update on 8, 64 and 512 GPUs
at given speeds. docs/exchange.md explains the figures.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from benchmarks.hlo import read_instructions
from benchmarks.programs import check_pretraining, compile_part
from benchmarks.tables import Column, table
from greenjax.config import flatten, resolve
from greenjax.config.flags import positive
from greenjax.errors import InputError
from greenjax.training.sharding import make_mesh
from greenjax.training.state import abstract_state

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# The plan on paper: an H100's dense bfloat16 rate and a share of it; bytes a second that a GPU sends to others.
RATE, SHARE = 989e12, 0.25
LINKS = {"NVLink, 450 GB/s": 450e9, "400 Gb/s a GPU": 50e9, "100 Gb/s a GPU": 12.5e9, "25 Gb/s a GPU": 3.125e9}
FLEETS = (8, 64, 512)

FLAGS = {
    "--devices": dict(type=positive, default=8, help="how many are simulated"),
    "--fsdp": dict(type=int, nargs="+", help="degrees to compare; default: 1 and all devices"),
}
HELD: list[Column] = [("fsdp", "fsdp", 1, "d")]
HELD += [(f"{name}, MB", name, 1e6, ",.1f") for name in ("state", "batch", "temporary", "sum")]
EXCHANGED: list[Column] = [("fsdp", "fsdp", 1, "d"), ("collective", "kind", 1, ""), ("of", "what", 1, "")]
EXCHANGED += [("number", "times", 1, "d"), ("MB an update", "bytes", 1e6, ",.3f")]


class Collective(NamedTuple):
    """Arrays of one shape that the devices exchange in an update."""

    kind: str
    what: str  # "parameters" (or their gradients), "numbers" (losses, norms, counts), "activations"
    shape: str  # of the result on one device
    times: int
    bytes: int  # of all results on one device


class Part(NamedTuple):
    """One device's part of an update. Bytes."""

    fsdp: int
    state: int  # parameters, optimizer, averages
    batch: int
    temporary: int
    flops: int  # matrix products of an update on all devices
    collectives: list[Collective]


def run(config: ConfigDict, devices: int, fsdp: Sequence[int] | None) -> dict[str, Any]:
    """Prints the tables of a resolved pre-training configuration and returns their figures."""
    degrees = fsdp or [1, devices]
    for degree in degrees:
        if degree < 1 or devices % degree:
            raise InputError(f"--fsdp is {degree}: expected a divisor of the {devices} devices")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    parts = [compile_for(config, degree) for degree in degrees]
    print(text(config, parts, devices))
    figures = [each._asdict() | {"collectives": [c._asdict() for c in each.collectives]} for each in parts]
    return {"devices": devices, "programs": figures}


def compile_for(config: ConfigDict, fsdp: int) -> Part:
    """Compiles the update of pre-training for all devices, with parameters split over `fsdp` of them."""
    check_pretraining(config)
    config = resolve(flatten(config) | {"mesh.fsdp": fsdp, "mesh.data": jax.device_count() // fsdp})
    update = compile_part(config, "update")
    state = abstract_state(config, make_mesh(config))
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    return Part(
        fsdp,
        state=held,
        batch=update.compiled.memory_analysis().argument_size_in_bytes - held,
        temporary=update.temporary,
        flops=update.flops,
        collectives=list(collectives(update.compiled.as_text(), set(shapes_in_programs(state.params)))),
    )


def shapes_in_programs(params: Any) -> Iterator[tuple[int, ...]]:
    """Sorted shapes, as `long_sides` gives them, of parameters and their gradients in a program."""
    for leaf in jax.tree.leaves(params):
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
            yield long_sides(shape)
            yield long_sides((math.prod(shape[:-1]), *shape[-1:]))  # a convolution as a matrix product


def long_sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sides above 1, sorted: XLA transposes arrays, and adds and drops axes of length 1."""
    return tuple(sorted(side for side in shape if side != 1))


def collectives(program: str, parameters: set[tuple[int, ...]]) -> Iterator[Collective]:
    """The collectives of an XLA program in text form, by kind and shape; `parameters`: shapes by `long_sides`.

    A loop counts as often as it runs. Raises InputError where the program does not state that number.
    """
    counted: Counter[tuple[str, str, str, int]] = Counter()
    for instruction, runs in read_instructions(program):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if runs is None:
            raise InputError(f"a loop of unknown length holds collectives: {kind}")
        for dtype, bits, sides in instruction.shapes:
            long = long_sides(sides)
            what = "numbers" if not long else "parameters" if long in parameters else "activations"
            size = bits * math.prod(sides) // 8
            counted[kind, what, f"{dtype}[{','.join(map(str, sides))}]", size] += runs
    for (kind, what, shape, size), times in sorted(counted.items()):
        yield Collective(kind, what, shape, times, times * size)


def sent(each: Collective, devices: int) -> float:
    """Bytes that a device sends for a collective around a ring of so many devices."""
    passes = {"all-reduce": 2.0, "reduce-scatter": float(devices)}.get(each.kind, 1.0)
    return passes * (devices - 1) / devices * each.bytes


def text(config: ConfigDict, parts: Sequence[Part], devices: int) -> str:
    """The report as text."""
    held = [part._asdict() | {"sum": part.state + part.batch + part.temporary} for part in parts]
    exchanged = []
    for part in parts:
        for kind, what in dict.fromkeys((c.kind, c.what) for c in part.collectives):
            these = [c for c in part.collectives if (c.kind, c.what) == (kind, what)]
            row = {"fsdp": part.fsdp, "kind": kind, "what": what, "times": sum(c.times for c in these)}
            exchanged.append(row | {"bytes": sum(c.bytes for c in these)})
    first = parts[0]
    work = first.flops / devices / (RATE * SHARE)
    times = [{"fleet": fleet} | {link: exchange(first, fleet, link, work) for link in LINKS} for fleet in FLEETS]
    return "\n".join(
        [
            f"{config.model.name}, batch {config.data.batch_size}, {devices} devices; of each device",
            table(HELD, held),
            "",
            table(EXCHANGED, exchanged),
            "",
            f"An update is {first.flops / 1e12:,.2f} TFLOP of matrix products, {work * 1e3:,.1f} ms a GPU at"
            f" {SHARE:.0%} of {RATE / 1e12:g} TFLOP/s.",
            "More GPUs, as many images each: time of the exchange, and its share of the step, none of it hidden:",
            table([("GPUs", "fleet", 1, "d"), *((link, link, 1, "") for link in LINKS)], times),
        ]
    )


def exchange(part: Part, fleet: int, link: str, work: float) -> str:
    """Time of an exchange among `fleet` GPUs over a link, and its share of a step with `work` seconds of products."""
    seconds = sum(sent(each, fleet) for each in part.collectives) / LINKS[link]
    return f"{seconds * 1e3:,.1f} ms, {seconds / (seconds + work):.1%}"
