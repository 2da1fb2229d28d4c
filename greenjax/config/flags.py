"""The command line of every command: `--config FILE`, overrides `--config.a.b=VALUE`, and flags of its own.

    parser = Parser("python -m benchmarks study", __doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments, config = parse_command(parser, sys.argv)

A flag given twice counts as its last. An unknown key or a wrong value ends the program with one line.
"""

import argparse
import ast
import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_origin

from ml_collections import ConfigDict

from greenjax.config.file import load_config
from greenjax.config.names import WORKDIR, nearest
from greenjax.config.resolve import check_key
from greenjax.config.settings import KEYS, NAMES
from greenjax.errors import InputError
from greenjax.runtime import console
from greenjax.runtime.files import expanded

SETTINGS = """settings:
  --config FILE            a Python file with get_config(), such as configs/digits.py
  --config.KEY=VALUE       overrides one of its settings, such as --config.optim.base_lr=1e-3;
                           tuples as 2,2,6,2 or "(2, 2, 6, 2)"; 0 or None unsets where that is allowed
  --config.KEY             of a setting that is True or False: True; --noconfig.KEY: False
  --helpfull               lists every key with its default and what is allowed
"""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # in XLA_FLAGS, which XLA reads when JAX starts
TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

_SETTING = re.compile(r"--?(?P<no>no)?config(?:\.(?P<key>[^=]*))?(?P<given>=(?P<text>.*))?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """The flags of one command; a wrong flag ends the program with one line. `prog` is "python -m " and a module."""

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
        print("\nkeys:")
        for key, entry in KEYS.items():
            print(f"  {key:24} {'not given' if entry.default is None else entry.default!r:28} {entry.allowed}")
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
        if match is None:
            rest.append(word)
        elif match["key"] is None and not match["no"]:
            path = match["text"] if match["given"] else _next(words, "--config", "FILE")
        else:
            key = match["key"] or ""
            check_key(key)
            overrides[key] = _value(key, match, words)
    return Settings(path, overrides, rest)


def parse_command(
    parser: argparse.ArgumentParser, argv: Sequence[str], whole: argparse.ArgumentParser | None = None
) -> tuple[argparse.Namespace, ConfigDict]:
    """Parses `argv`, which begins with the program's name, into flags of `parser` and settings.

    Returns the flags, with the path of the config file as `config`, and the resolved config. Prepares the process for
    JAX. A wrong argument ends the program with one line, which suggests flags of `whole`, by default `parser`.
    """
    try:
        path, overrides, rest = split(argv[1:])
        arguments, unknown = parser.parse_known_args(rest)
        if unknown:
            raise InputError(f"argument {unknown[0]!r} is not understood: {flag_hint(whole or parser, unknown[0])}")
        if path is None:
            raise InputError("no config given: expected --config FILE, such as configs/digits.py; --help says more")
        resolved = load_config(path, overrides, tell=console.say)
    except (InputError, OSError) as error:
        parser.error(str(error))
    arguments.config = path
    prepare_process(resolved)
    return arguments, resolved


def positive(text: str) -> int:
    """The type of a flag that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, at least 1")
    return int(text)


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
    return _read(key, match["text"] if match["given"] else _next(words, flag, "VALUE"))


def _read(key: str, text: str) -> Any:
    """The text converted to the key's type; unchanged where it cannot be, for the check of the value to name it."""
    kind, default = KEYS[key][:2]
    if text == "None" and default is None:
        return None
    if kind is str or (kind == NAMES and "," not in text):
        return text
    if kind == NAMES:
        return tuple(name.strip(" '\"") for name in text.strip("()").split(","))
    if kind is bool:
        return TRUTHS.get(text.lower(), text)
    try:
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return (value,) if get_origin(kind) is tuple and not isinstance(value, tuple | list) else value


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
