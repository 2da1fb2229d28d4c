"""The command `greenjax`: the table of its commands, its help, and the call of one of them.

A command is a module with `main(argv)`, whose argv[0] is the program's name for usage lines and errors, such as
"greenjax convert". It is imported when it is called: help and a misspelt command take no time. The same modules run as
`python -m greenjax.convert`.
"""

import difflib
import importlib
import sys
from typing import NamedTuple, NoReturn

from greenjax import __version__
from greenjax.runtime.console import complain, say

TASKS = "greenjax.main"  # trains and evaluates; main(argv, task, about)


class Command(NamedTuple):
    """A row of the table: the module, what the command does, and a command line of it."""

    module: str
    meaning: str
    example: str = ""


COMMANDS = {
    "pretrain": Command(
        TASKS,
        "learns from images without labels",
        "greenjax pretrain --config small_data --set data.path=DIR",
    ),
    "finetune": Command(
        TASKS,
        "trains a classifier from pre-trained weights",
        "greenjax finetune --config finetune_swin_t --set init=runs/swin_t",
    ),
    "linear": Command(
        TASKS,
        "trains a linear classifier on frozen features",
        "greenjax linear --config linear_swin_b --set init=runs/swin_b",
    ),
    "knn": Command(
        TASKS,
        "classifies frozen features by their neighbours",
        "greenjax knn --set init=runs/swin_b --workdir runs/knn",
    ),
    "eval": Command(
        TASKS, "measures a classifier or detector", "greenjax eval --set init=runs/finetune --workdir runs/eval"
    ),
    "detect": Command(TASKS, "trains a detector", "greenjax detect --config detect_swin_b --set init=runs/swin_b"),
    "embed": Command(
        "greenjax.commands.embed",
        "writes vectors of images",
        "greenjax embed photos/ --model runs/swin_b --out vectors.npy",
    ),
    "predict": Command(
        "greenjax.commands.predict",
        "writes the classes of images without labels",
        "greenjax predict photos/ --model runs/finetune --out classes.csv",
    ),
    "reconstruct": Command(
        "greenjax.commands.reconstruct",
        "draws what a pre-trained model makes of hidden parts",
        "greenjax reconstruct a.jpg --model runs/swin_b --out pictures",
    ),
    "convert": Command("greenjax.convert", "takes weights to PyTorch and back, and to ONNX"),
    "plan": Command(
        "greenjax.planning.__main__",
        "shows how masks are packed, and what that costs",
        "greenjax plan --config swin_b --set mask.ratio=0.6",
    ),
    "settings": Command(
        "greenjax.commands.settings", "lists settings, their defaults and meanings", "greenjax settings mask"
    ),
    "compare": Command("greenjax.commands.compare", "shows runs side by side", "greenjax compare runs/a runs/b"),
    "data prepare": Command("greenjax.data.prepare.__main__", "shrinks images once, into files that are read fast"),
    "data statistics": Command("greenjax.data.statistics.__main__", "measures mean and deviation of the pixels"),
    "data detection": Command("greenjax.data.detection.__main__", "writes COCO's JSON for masks of objects"),
}
EXAMPLES = ("pretrain", "finetune", "settings")  # of the first help


def main(argv: list[str] | None = None) -> None:
    """Calls the command that the command line names."""
    words = sys.argv[1:] if argv is None else argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        say(overview())
    elif words[0] in ("--version", "-V", "version"):
        say(f"greenjax {__version__}")
    elif (name := " ".join(words[:2])) in COMMANDS:
        call(name, words[2:])
    elif words[0] in COMMANDS:
        call(words[0], words[1:])
    else:
        choose(words)


def call(name: str, words: list[str]) -> None:
    """Imports a command and gives it its arguments."""
    command = COMMANDS[name]
    about = {"task": name, "about": f"{command.meaning}\n\n    {command.example}"} if command.module == TASKS else {}
    try:
        importlib.import_module(command.module).main([f"greenjax {name}", *words], **about)
    except KeyboardInterrupt:  # of a command that has no line of its own for it
        sys.exit(f"greenjax {name}: stopped")


def overview() -> str:
    """The help: every command in a line, and three examples; at most 24 lines of 80 columns."""
    lines = ["usage: greenjax COMMAND [ARGUMENTS]      greenjax COMMAND --help says more", ""]
    groups: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, _, second = name.partition(" ")
        groups.setdefault(first, []).append(second)
    for first, seconds in groups.items():
        lines.append(f"  {first:<12}  {COMMANDS[first].meaning if first in COMMANDS else ', '.join(seconds)}")
    return "\n".join([*lines, "", "examples:", *(f"  {COMMANDS[name].example}" for name in EXAMPLES)])


def choose(words: list[str]) -> NoReturn:
    """Ends with one line about a name that is no command, or with the commands of a group such as `data`."""
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        say(*(f"greenjax {name:<16}  {COMMANDS[name].meaning}" for name in group))
        sys.exit(0 if len(words) > 1 else 2)
    given = " ".join(words[:2] if group else words[:1])
    near = difflib.get_close_matches(given, COMMANDS, 3) or group or ["--help"]
    complain(f"greenjax: no command {given!r}: nearest are {', '.join(near)}")
    sys.exit(2)
