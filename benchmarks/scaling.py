"""What many devices cost, before there are any: memory per device and what they exchange, by the compiled step.

    python -m benchmarks scaling --config configs/swin_b.py [--devices 8] [--fsdp 1 8] [--json FILE]

The step of pre-training is compiled for so many simulated CPU devices, once for each degree of fsdp. The program says
what every device holds and which collectives there are, with their bytes. From these and from the FLOPs follows the
time of an update on 8, 64 and 512 GPUs at given speeds. docs/exchange.md explains it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from greenjax.backbones.geometry import make_planner
from greenjax.config import flatten, resolve
from greenjax.config.flags import positive
from greenjax.data.loader import blank_batch
from greenjax.errors import InputError
from greenjax.runtime.cost import matmul_flops
from greenjax.training.optim import learning_rate, make_optimizer
from greenjax.training.sharding import batch_shapes, make_mesh
from greenjax.training.state import abstract_state, model_graph
from greenjax.training.step import make_train_step

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

# The plan on paper: an H100's dense bfloat16 rate and a share of it; bytes a second that a GPU sends to others.
RATE, SHARE = 989e12, 0.25
LINKS = {"NVLink, 450 GB/s": 450e9, "400 Gb/s a GPU": 50e9, "100 Gb/s a GPU": 12.5e9, "25 Gb/s a GPU": 3.125e9}
FLEETS = (8, 64, 512)

FLAGS = {
    "--devices": dict(type=positive, default=8, help="how many are simulated"),
    "--fsdp": dict(type=int, nargs="+", help="degrees to compare; default: 1 and all devices"),
}


class Collective(NamedTuple):
    """Arrays of one shape that the devices of a step exchange."""

    kind: str
    what: str  # "parameters" (or their gradients), "numbers" (losses, norms, counts), "activations"
    shape: str  # of the result on one device
    times: int  # an update
    bytes: int  # of the result on one device, an update


class Program(NamedTuple):
    """What the compiled step says of one device. Bytes."""

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
        check_degree(degree, devices)  # before the first takes its time
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    programs = [compiled(config, degree) for degree in degrees]
    print(text(config, programs, devices))
    figures = [each._asdict() | {"collectives": [c._asdict() for c in each.collectives]} for each in programs]
    return {"devices": devices, "programs": figures}


def check_degree(fsdp: int, devices: int) -> None:
    """Raises InputError for a degree that the devices cannot have."""
    if fsdp < 1 or devices % fsdp:
        raise InputError(f"fsdp is {fsdp}: expected a divisor of the {devices} devices")


def compiled(config: ConfigDict, fsdp: int) -> Program:
    """Compiles the step of pre-training for all devices, parameters split over `fsdp` of them."""
    if config.task != "pretrain":
        raise InputError(f"task is {config.task!r}: expected 'pretrain'")
    check_degree(fsdp, jax.device_count())
    config = resolve(flatten(config) | {"mesh.fsdp": fsdp, "mesh.data": jax.device_count() // fsdp})
    mesh, tx = make_mesh(config), make_optimizer(config)
    update = make_train_step(model_graph(config), tx, learning_rate(config, total=2, warmup=1), config, mesh)
    state = abstract_state(config, mesh)
    plan = make_planner(config).example(config.mask.groups)
    traced = update.trace(state, batch_shapes(blank_batch(config, plan), mesh))
    program = traced.lower().compile()
    memory, text, here = program.memory_analysis(), program.as_text(), sum(map(_bytes_here, jax.tree.leaves(state)))
    assert memory is not None and text is not None  # XLA's CPU compiler tells both
    return Program(
        fsdp,
        state=here,
        batch=memory.argument_size_in_bytes - here,
        temporary=memory.temp_size_in_bytes,
        flops=matmul_flops(traced.jaxpr),
        collectives=list(collectives(text, set(parameter_shapes(state.params)))),
    )


def parameter_shapes(params: Any) -> Iterator[tuple[int, ...]]:
    """Shapes, as `_dims` gives them, that parameters and their gradients have in a program."""
    for leaf in jax.tree.leaves(params):
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
            yield _dims(shape)
            yield _dims((math.prod(shape[:-1]), *shape[-1:]))  # a convolution as a matrix product


def collectives(program: str, parameters: set[tuple[int, ...]]) -> Iterator[Collective]:
    """Those of an XLA program in text form; `parameters`: shapes as `_dims` gives them.

    A loop counts as often as it runs; one whose length the program does not tell raises InputError.
    """
    counted: dict[tuple[str, str, str], int] = {}
    for times, line in _lines(program):
        found = re.search(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
        if not found:
            continue
        for dtype, dims in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", found[1]):
            shape = _dims(map(int, filter(None, dims.split(","))))
            what = "numbers" if not shape else "parameters" if shape in parameters else "activations"
            key = (found[2], what, f"{dtype}[{dims}]")
            counted[key] = counted.get(key, 0) + times
    for (kind, what, shape), times in sorted(counted.items()):
        dtype, dims = re.fullmatch(r"(\w+)\[([\d,]*)\]", shape).groups()  # type: ignore[union-attr]
        size = BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
        yield Collective(kind, what, shape, times, times * size)


def _lines(program: str) -> Iterator[tuple[int, str]]:
    """Every line with how often it runs an update."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)

    def walk(name: str, times: int) -> Iterator[tuple[int, str]]:
        for line in bodies[name]:
            yield times, line
            if loop := re.search(r" while\(.*\bbody=%?([\w.-]+)", line):
                length = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                inside = list(walk(loop[1], times * int(length[1]) if length else 0))
                if not length and any(kind in text for _, text in inside for kind in KINDS):
                    raise InputError(f"a loop of unknown length holds collectives: {line.strip()[:100]}")
                yield from inside
            elif called := re.search(r" call\(.*\bto_apply=%?([\w.-]+)", line):
                yield from walk(called[1], times)

    yield from walk(entry, 1)


def _dims(shape: Any) -> tuple[int, ...]:
    """A shape whatever its order: XLA transposes, and adds and drops axes of length 1."""
    return tuple(sorted(side for side in shape if side != 1))


def _bytes_here(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def sent(each: Collective, devices: int) -> float:
    """Bytes that a device sends for it, around a ring of so many."""
    passes = {"all-reduce": 2.0, "reduce-scatter": float(devices)}.get(each.kind, 1.0)
    return passes * (devices - 1) / devices * each.bytes


def text(config: ConfigDict, programs: Sequence[Program], devices: int) -> str:
    """The tables for people."""
    mb = 1e6
    lines = [f"{config.model.name}, batch {config.data.batch_size}, {devices} devices; MB a device", ""]
    lines += ["| fsdp | state | batch | temporaries | sum |", "|---|---|---|---|---|"]
    for each in programs:
        held = (each.state, each.batch, each.temporary)
        lines.append(f"| {each.fsdp} | " + " | ".join(f"{x / mb:,.1f}" for x in (*held, sum(held))) + " |")
    lines += ["", "| fsdp | collective | of | number | MB an update |", "|---|---|---|---|---|"]
    for each in programs:
        for kind, what in dict.fromkeys((c.kind, c.what) for c in each.collectives):
            these = [c for c in each.collectives if (c.kind, c.what) == (kind, what)]
            total = sum(c.bytes for c in these) / mb
            lines.append(f"| {each.fsdp} | {kind} | {what} | {sum(c.times for c in these)} | {total:,.3f} |")
    first = programs[0]
    work = first.flops / devices / (RATE * SHARE)
    lines += ["", f"An update is {first.flops / 1e12:,.2f} TFLOP of matrix products, {work * 1e3:,.1f} ms a GPU at"]
    lines[-1] += f" {SHARE:.0%} of {RATE / 1e12:g} TFLOP/s."
    lines += ["More GPUs, as many images each: time of the exchange, and its share of the step, none of it hidden:", ""]
    lines += ["| GPUs | " + " | ".join(LINKS) + " |", "|---" * (1 + len(LINKS)) + "|"]
    for fleet in FLEETS:
        cells = []
        for speed in LINKS.values():
            exchange = sum(sent(each, fleet) for each in first.collectives) / speed
            cells.append(f"{exchange * 1e3:,.1f} ms, {exchange / (exchange + work):.1%}")
        lines.append(f"| {fleet} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
