"""Reads an optimized XLA program: FLOPs, bytes and origin of every kernel.

The program is the text of `compiled.as_text()` (https://openxla.org/xla/operation_semantics). Instructions of all
reached computations count, bodies of loops included. Instructions inside a fusion count for the fusion.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

# FREE instructions have no kernel; the kernels of CONTROL instructions are in the computations that they call.
FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "opt-barrier", "partition-id"}
CONTROL = {"call", "while", "conditional", "async-start", "async-update", "async-done"}
SLICES = {"slice", "dynamic-slice", "gather"}  # read as much of their first operand as they return

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"(([a-z]+)(\d*)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


class Shape(NamedTuple):
    """Of an array."""

    dtype: str  # XLA's name of the type, such as f32
    bits: int  # of an element
    sides: tuple[int, ...]


class Kernel(NamedTuple):
    """An instruction that runs as a kernel."""

    opcode: str
    flops: int  # of matrix products and convolutions
    bytes: int  # operands, each once, and results
    op_name: str  # JAX's name of the operation, of a fusion's last one
    stack: tuple[str, ...]  # "file:function" of the Python calls that it was traced in, innermost first
    calls: tuple[str, ...]  # instructions of the computations that it calls
    runs: int | None  # in one run of the program; None: in a loop of unknown length


@dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    shapes: tuple[Shape, ...]  # of the result; several of a tuple
    opcode: str
    inputs: str  # the text in parentheses, mostly names of other instructions
    rest: str  # attributes

    @cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.\-]+)", self.inputs))

    @cached_property
    def size(self) -> int:
        return sum(shape.bits * math.prod(shape.sides) for shape in self.shapes) // 8


Computation = dict[str, Instruction]


def read_kernels(text: str) -> dict[str, Kernel]:
    """The kernels of a program by name of the instruction, which is also their name in profiles."""
    computations, stack_of = _computations(text), _stacks(text)
    kernels = {}
    for name, runs in _reached(computations, text).items():
        computation = computations[name]
        origins = _origins(computation, computations)
        for instruction_name, instruction in computation.items():
            if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
                continue
            control = instruction.opcode in CONTROL
            called = _called(instruction) if control else ()
            op_name, frame = origins[instruction_name]
            kernels[instruction_name] = Kernel(
                instruction.opcode,
                0 if control else _flops(instruction, computation, computations),
                0 if control else _bytes(instruction, computation, computations),
                op_name,
                stack_of(frame),
                tuple(inner for each in called for inner in computations.get(each, ())),
                runs,
            )
    return kernels


def read_instructions(text: str) -> Iterator[tuple[Instruction, int | None]]:
    """Every instruction that control comes to, with how often it runs; None: in a loop of unknown length."""
    computations = _computations(text)
    for name, runs in _reached(computations, text).items():
        yield from ((instruction, runs) for instruction in computations[name].values())


def _origins(computation: Computation, computations: dict[str, Computation]) -> dict[str, tuple[str, int]]:
    """JAX's name and the stack frame (0: none) of every instruction.

    Instructions that XLA added have neither. They inherit from instructions inside, before or after them.
    """

    def own(instruction: Instruction) -> tuple[str, int]:
        op_name, frame = (re.search(p, instruction.rest) for p in (r'op_name="([^"]*)"', r"stack_frame_id=(\d+)"))
        return op_name[1] if op_name else "", int(frame[1]) if frame else 0

    def inherit(name: str, donors: Iterable[tuple[str, int]]) -> None:
        op_name, frame = origins[name]
        donor = next((donor for donor in donors if donor[1]), None)
        if not frame and donor is not None and computation[name].opcode not in ("parameter", "constant"):
            path = donor[0].split(";")[0].rpartition("/")[0]
            origins[name] = op_name or f"{path}/{computation[name].opcode}", donor[1]

    origins = {name: own(instruction) for name, instruction in computation.items()}
    users: dict[str, list[str]] = {}
    for name, instruction in computation.items():
        if instruction.opcode == "fusion":
            inner = (i for called in _called(instruction) for i in computations.get(called, {}).values())
            inherit(name, map(own, inner))
        inherit(name, (origins[operand] for operand in instruction.operands if operand in origins))
        for operand in instruction.operands:
            users.setdefault(operand, []).append(name)
    for name in reversed(computation):
        inherit(name, (origins[user] for user in users.get(name, ())))
    return origins


def _reached(computations: dict[str, Computation], text: str) -> dict[str, int | None]:
    """The computations that run, and how often; None: not known."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    runs: dict[str, int | None] = {}
    waiting: list[tuple[str, int | None]] = [(entry[1], 1)] if entry else []
    while waiting:
        name, times = waiting.pop()
        if name not in computations:
            continue
        # A computation called from several places runs as often as all of them.
        before = runs.get(name, 0)
        runs[name] = None if times is None or before is None else before + times
        for instruction in computations[name].values():
            if instruction.opcode in CONTROL:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
                loops = 1 if instruction.opcode != "while" else int(trips[1]) if trips else None
                inner = None if loops is None or times is None else times * loops
                waiting += [(called, inner) for called in _called(instruction)]
    return runs


def _computations(text: str) -> dict[str, Computation]:
    computations: dict[str, Computation] = {}
    current: Computation = {}
    for line in text.splitlines():
        if line.startswith(" "):
            if found := _INSTRUCTION.match(line):
                name, shape, opcode, rest = found.groups()
                current[name] = Instruction(_shapes(shape), opcode, *_split(rest))
        elif found := _COMPUTATION.match(line):
            current = computations[found[1]] = {}
    return computations


def _split(rest: str) -> tuple[str, str]:
    """Operands and attributes: the texts before and after the closing parenthesis of the operands."""
    depth = 1
    for found in re.finditer(r"[()]", rest):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return rest[: found.start()], rest[found.end() :]
    return rest, ""


def _shapes(text: str) -> tuple[Shape, ...]:
    """f32[8,128]{1,0}, or several in parentheses."""
    found = _SHAPE.findall(text)
    bits = {"pred": 8, "token": 0, "opaque": 0}
    return tuple(
        Shape(dtype, int(size or bits.get(kind, 8)), tuple(map(int, filter(None, sides.split(",")))))
        for dtype, kind, size, sides in found
    )


def _called(instruction: Instruction) -> tuple[str, ...]:
    return tuple(name for found in _CALLED.findall(instruction.rest) for name in re.findall(r"[\w.\-]+", found))


def _flops(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    if instruction.opcode == "fusion":
        inner = [computations[name] for name in _called(instruction) if name in computations]
        return sum(_flops(i, each, computations) for each in inner for i in each.values())
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    elif instruction.opcode == "custom-call":  # a product by cuBLAS or another library, or something else
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
    elif instruction.opcode == "convolution":
        return _convolution(instruction, computation)
    else:
        contracted = None
    left = computation.get(instruction.operands[0]) if instruction.operands else None
    if contracted is None or left is None:
        return 0
    summed = math.prod(left.shapes[0].sides[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
    return 2 * math.prod(instruction.shapes[0].sides) * summed


def _convolution(instruction: Instruction, computation: Computation) -> int:
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
    kernel = computation.get(instruction.operands[1])
    if labels is None or kernel is None:
        return 0
    taps = math.prod(side for label, side in zip(labels[1], kernel.shapes[0].sides) if label != "o")
    return 2 * math.prod(instruction.shapes[0].sides) * taps


def _bytes(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    written = instruction.size
    if instruction.opcode == "custom-call" and len(instruction.shapes) > 1:
        # The last results are scratch space of the library, rows of bytes.
        scratch = [math.prod(s.sides) for s in instruction.shapes[1:] if s.bits == 8 and len(s.sides) == 1]
        written -= sum(scratch)
    if instruction.opcode in SLICES:
        rest = [computation[name].size for name in set(instruction.operands[1:]) if name in computation]
        return 2 * written + sum(rest)
    read = {name: computation[name].size for name in instruction.operands if name in computation}
    if '"__gpu$xla.gpu.triton"' in instruction.rest:
        # Our kernel completes an operand in place; the kernel that wrote the rest counts for the other part.
        for index in re.findall(r"\{[\d, ]*\}: \((\d+), \{", instruction.rest):
            written -= read.pop(instruction.operands[int(index)], 0)
    if instruction.opcode == "fusion":
        body = next((computations[name] for name in _called(instruction) if name in computations), {})
        for index, name in enumerate(instruction.operands):
            if name in read:
                read[name] = min(read[name], _sliced(body, index, read[name]))
    return written + sum(read.values())


def _sliced(body: Computation, index: int, whole: int) -> int:
    """Bytes that a fusion reads of its parameter: less than the whole where it only takes slices."""
    parameter = next((n for n, i in body.items() if i.opcode == "parameter" and i.inputs == str(index)), None)
    return whole if parameter is None else _taken(body, parameter, whole)


def _taken(body: Computation, name: str, whole: int) -> int:
    total = 0
    for user_name, user in body.items():
        if name not in user.operands:
            continue
        if user.opcode in SLICES and user.operands[0] == name and name not in user.operands[1:]:
            total += user.size
        elif user.opcode == "bitcast":
            total += _taken(body, user_name, whole)
        else:
            return whole
    return total


def _stacks(text: str) -> Callable[[int], tuple[str, ...]]:
    """A function from frame number to stack, by the tables at the start of the text; () without tables."""

    def table(title: str) -> dict[int, str]:
        found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        rows = (line.partition(" ") for line in found[1].splitlines()) if found else ()
        return {int(number): row for number, _, row in rows}

    def numbers(row: str, *names: str) -> list[int]:
        return [int(found[1]) if (found := re.search(rf"{name}=(\d+)", row)) else 0 for name in names]

    files, functions, places, frames = map(table, ("FileNames", "FunctionNames", "FileLocations", "StackFrames"))
    located = {n: numbers(row, "file_name_id", "function_name_id") for n, row in places.items()}
    links = {n: numbers(row, "file_location_id", "parent_frame_id") for n, row in frames.items()}
    # Some versions print parents one too high: the first frame, which has no parent, seems to be its own.
    surplus = int(any(parent == n for n, (_, parent) in links.items()))

    def stack(frame: int) -> tuple[str, ...]:
        calls = []
        while frame in links and len(calls) < len(links):
            place, parent = links[frame]
            file, function = located.get(place, (0, 0))
            calls.append(f"{files.get(file, '')}:{functions.get(function, '')}".replace('"', ""))
            frame = parent - surplus
        return tuple(calls)

    return cache(stack)
