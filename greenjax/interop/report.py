"""The lines that tell a user which weights a model took over, and which misfits refuse a file."""

import re
from dataclasses import dataclass, field
from itertools import takewhile

SHOWN = 10  # misfits


@dataclass
class Report:
    """The arrays of a model and the tensors of a file that were not simply taken over."""

    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # not behind the prefix of the weights
    prefix: str = ""
    resized: dict[str, list[str]] = field(default_factory=dict)  # by the line of their `Resizing`
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [f"new, as initialised: {_by_part(self.new)}"] if self.new else []
        lines += [f"dropped: {_by_part(self.dropped)}"] if self.dropped else []
        behind = f", not behind {self.prefix!r}" if self.prefix else ""
        lines += [f"left out{behind}: {_by_part(self.left_out, self.prefix)}"] if self.left_out else []
        for line, names in self.resized.items():
            stages = sorted({int(found[1]) + 1 for name in names if (found := re.search(r"stages/(\d+)", name))})
            lines.append(f"{line}: stage {', '.join(map(str, stages))}")
        return lines + self.notes


def misfits_text(first: str, misfits: list[str], hint: str = "") -> str:
    """An error of several lines: the first ten misfits, and how many more there are."""
    count = f"{len(misfits)} misfit{'' if len(misfits) == 1 else 's'}"
    lines = misfits if len(misfits) <= SHOWN + 1 else [*misfits[:SHOWN], f"and {len(misfits) - SHOWN} more"]
    return "\n".join([f"{first}, {count}{hint}:", *(f"  {line}" for line in lines)])


def _by_part(names: list[str], beside: str = "") -> str:
    """`decoder (20 tensors)`. A part's name goes down to where it leaves the prefix `beside`."""
    parts: dict[str, int] = {}
    for name in names:
        words, before = re.split(r"[/.]", name), beside.split(".")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, before)))
        part = ".".join(words[: shared + 1])
        parts[part] = parts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in parts.items())
