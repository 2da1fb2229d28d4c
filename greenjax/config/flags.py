"""The command line of every command: `--config FILE`, overrides `--config.a.b=VALUE`, and flags of its own.

    parser = Parser("python -m benchmarks study", __doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments, config = parse_command(parser, sys.argv)

A flag given twice counts as its last. An unknown key or a wrong value ends the program with one line.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from greenjax.config import values
from greenjax.config.file import load_config
from greenjax.config.listing import described
from greenjax.config.names import WORKDIR, nearest
from greenjax.config.places import shipped
from greenjax.config.resolve import check_key
from greenjax.config.settings import KEYS
from greenjax.errors import InputError
from greenjax.runtime import console
from greenjax.runtime.files import expanded

SETTINGS = """settings:
  --config NAME            a config that comes with greenjax, such as swin_b, or
  --config FILE            a Python file with get_config(), JSON (config.json of a run) or YAML
  --set KEY=VALUE          changes a setting, such as optim.base_lr=1e-3; tuples as 2,2,6,2 or
                           "(2, 2, 6, 2)"; 0 or None unsets where that is allowed; may be repeated
  --config.KEY=VALUE       the same; --config.KEY and --noconfig.KEY: True and False
  --helpfull               lists every key, as `greenjax settings [WORD]` does
"""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # in XLA_FLAGS, which XLA reads when JAX starts

_SETTING = re.compile(r"--?(?P<no>no)?config(?:\.(?P<key>[^=]*))?(?P<given>=(?P<text>.*))?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """The flags of one command; a wrong flag ends the program with one line. `prog` is what starts it."""

    def __init__(self, prog: str, description: str | None = None):
        raw, settings = argparse.RawDescriptionHelpFormatter, SETTINGS if description else None  # None: of a subcommand
        super().__init__(prog, description=description, epilog=settings, formatter_class=raw, allow_abbrev=False)
        self.add_argument("--helpfull", action=_HelpFull, help=argparse.SUPPRESS)

    @property
    def name(self) -> str:
        """The command, as its errors begin."""
        return self.prog.removeprefix("python -m ").removesuffix(".main")

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{self.name}: {message}")


class _HelpFull(argparse.Action):
    """Prints the help and the table of all keys."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.print_help()
        print("\nkeys:", *described(KEYS), sep="\n")
        parser.exit()


class Settings(NamedTuple):
    """A command line: the config file, the overrides of its settings, and all other arguments."""

    path: str | None
    overrides: dict[str, Any]
    rest: list[str]


def split(arguments: Sequence[str]) -> Settings:
    """Takes the settings out of a command line. Raises InputError for an unknown key or a missing value."""
    path, overrides, rest = None, {}, []
    words = iter(arguments)
    for word in words:
        match = _SETTING.fullmatch(word)
        if word == "--set" or word.startswith("--set="):
            key, value = _set(word[6:] or _next(words, "--set", "KEY=VALUE"))
            overrides[key] = value
        elif match is None:
            rest.append(word)
        elif match["key"] is None and not match["no"]:
            path = match["text"] if match["given"] else _next(words, "--config", "FILE")
        else:
            key = match["key"] or ""
            check_key(key)
            overrides[key] = _value(key, match, words)
    return Settings(path, overrides, rest)


def parse_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    whole: argparse.ArgumentParser | None = None,
    task: str | None = None,
    meant: Callable[[argparse.Namespace, dict[str, Any]], dict[str, Any]] | None = None,
) -> tuple[argparse.Namespace, ConfigDict]:
    """Parses `argv`, which begins with the program's name, into flags of `parser` and settings.

    Returns the flags, with the path of the config file as `config`, and the resolved config. Prepares the process for
    JAX. A wrong argument ends the program with one line, which suggests flags of `whole`, by default `parser`. The
    config must have `task` or leave it open; where none is given, one that has the task's name is taken. `meant` gives
    all settings that the flags and the given settings stand for.
    """
    try:
        path, overrides, rest = split(argv[1:])
        arguments, unknown = parser.parse_known_intermixed_args(rest)  # words without a flag may stand anywhere
        if unknown:
            raise InputError(f"argument {unknown[0]!r} is not understood: {flag_hint(whole or parser, unknown[0])}")
        if path is None and task is not None and task in shipped():
            path = task
        if path is None:
            raise InputError("no config given: expected --config FILE, such as digits; --help says more")
        overrides = meant(arguments, overrides) if meant else overrides
        resolved = load_config(path, overrides, tell=console.say, task=task)
    except (InputError, OSError) as error:
        parser.error(str(error))
    arguments.config = path
    prepare_process(resolved)
    return arguments, resolved


def program(argv: Sequence[str], module: str) -> str:
    """What a command was started by: "greenjax COMMAND", as argv[0] then says, or "python -m MODULE"."""
    return argv[0] if by_script(argv) else f"python -m {module}"


def by_script(argv: Sequence[str]) -> bool:
    """Whether a command was started by `greenjax`, so that the lines that it prints may name it."""
    return argv[0].startswith("greenjax ")


def started(module: str, command: str, script: bool) -> list[str]:
    """The words that start a command by the script `greenjax`, or its module by Python."""
    return ["greenjax", command] if script else ["python", "-m", f"greenjax.{module}"]


def positive(text: str) -> int:
    """The type of a flag that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, at least 1")
    return int(text)


def image_size(text: str) -> tuple[int, ...]:
    """The value of --image-size: pixels, N or HEIGHT,WIDTH."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise InputError(f"image-size is {text!r}: expected pixels, N or HEIGHT,WIDTH") from None


def folder(text: str) -> Path:
    """The type of a flag that names a folder, which need not be there."""
    try:
        if not text:
            raise InputError("found '', expected a folder")
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def prepare_process(config: ConfigDict) -> None:
    """Sets up warnings, and XLA_FLAGS for `config.deterministic`; before JAX starts."""
    console.set_up()
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def _next(words: Iterator[str], flag: str, what: str) -> str:
    """The value of a flag that is written without `=`."""
    word = next(words, None)
    if word is None or word.startswith("--"):
        raise InputError(f"{flag} has no value: expected {flag}={what}")
    return word


def _value(key: str, match: re.Match[str], words: Iterator[str]) -> Any:
    """The value of `--config.key=text`, `--config.key text`, `--config.key` or `--noconfig.key`."""
    boolean, flag = KEYS[key].kind is bool, match[0].partition("=")[0]
    if match["no"] and (not boolean or match["given"]):
        raise InputError(f"{match[0]!r} is not understood: expected --config.{key}={KEYS[key].allowed}")
    if boolean and not match["given"]:
        return not match["no"]
    return values.read(key, match["text"] if match["given"] else _next(words, flag, "VALUE"))


def _set(change: str) -> tuple[str, Any]:
    """The key and the value of `--set key=text`, or `--set key` for True."""
    key, given, text = change.partition("=")
    check_key(key)
    if not given and KEYS[key].kind is not bool:
        raise InputError(f"--set {key} has no value: expected --set {key}=VALUE")
    return key, values.read(key, text) if given else True


def flag_hint(parser: argparse.ArgumentParser, argument: str, settings: bool = True) -> str:
    """A hint at the flag, or the setting where the command takes `settings`, that an unknown argument may mean."""
    name = argument.lstrip("-").partition("=")[0].replace("_", "-")
    own = re.findall(r"--[\w-]+", parser.format_usage())
    near = difflib.get_close_matches("--workdir" if name.replace("-", "_") in WORKDIR else f"--{name}", own, 1, 0.75)
    if settings and argument.startswith("-"):
        near += [f"--config.{key}=VALUE" for key in nearest(name, KEYS)]
    if near:
        return f"expected {near[0]}"
    return f"{'expected --config.KEY=VALUE; ' if settings else ''}--help lists the flags"
