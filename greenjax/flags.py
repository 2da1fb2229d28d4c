"""The flag `--config FILE` with its overrides `--config.a.b=value`, for every command of the project.

    flag = flags.define_config()
    absl.app.run(main, flags_parser=flags.parse)     # in main: config = resolve(flag.value)

ml_collections reads each override by the type of its key; an unknown key or a wrong value ends in one line.
"""

import argparse
import ast
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from greenjax import config
from greenjax.errors import InputError


class _OneOrMoreParser(flags.ArgumentParser):
    """`224`, `224,192` or `(224, 192)`: ml_collections has no parser for a key of two types."""

    def __init__(self, expected: str):
        self.expected = expected

    def parse(self, argument: Any) -> Any:
        try:
            value = ast.literal_eval(argument) if isinstance(argument, str) else argument
        except (SyntaxError, ValueError):
            value = None
        if not isinstance(value, int | float | tuple | list):
            raise InputError(f"expected {self.expected}")
        return tuple(value) if isinstance(value, list) else value

    def flag_type(self) -> str:
        return self.expected


class Parser(argparse.ArgumentParser):
    """Flags that a command has of its own; wrong ones end in one line. `prog` is "python -m " and its module."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{self.prog.removeprefix('python -m ')}: {message}")


def define_config(
    default: str | None = None, flag_values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None
) -> flags.FlagHolder:
    """Defines `--config`. `argv` is the command line that is going to be parsed, where it is not sys.argv."""
    config_flags.register_flag_parser_for_type(config.SIZE, _OneOrMoreParser("one side or height,width, in pixels"))
    config_flags.register_flag_parser_for_type(config.RATIO, _OneOrMoreParser("one number, or one a stage"))
    text = "A file of configs/; --config.key=value overrides one of its settings."
    argv = None if argv is None else list(argv)
    flag = config_flags.DEFINE_config_file("config", default, text, flag_values=flag_values, sys_argv=argv)
    flag_values.register_key_flag_for_module(sys.argv[0], flag_values["config"])  # --help lists it
    return flag


def parse(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line and checks the config; what is wrong ends the program with one line."""
    try:
        for argument in argv[1:]:
            if override := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                config.check_key(override[1])
        if path := re.search(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(argv)):
            config.read_config(path[1])  # its errors say more than those of the flag
        rest = flag_values(argv)
        if len(rest) > 1:
            raise InputError(f"argument {rest[1]!r} is not understood: expected --config.key=value")
        if flag_values["config"].value is None:
            raise InputError("no config given: expected --config configs/NAME.py")
        config.resolve(flag_values["config"].value)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        sys.exit(f"greenjax: {error}")
    return rest


def parse_beside(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """What a command has of its own, by `parser`, and the resolved config; for commands that tests call with argv."""
    arguments, rest = parser.parse_known_args(argv[1:])
    values, command = flags.FlagValues(), [argv[0], *rest]
    flag = define_config(flag_values=values, argv=command)
    parse(command, values)
    resolved = config.resolve(flag.value)
    prepare_process(resolved)
    return arguments, resolved


def prepare_process(config: ConfigDict) -> None:
    """What has to be set before JAX starts."""
    logging.set_verbosity(logging.WARNING)  # Orbax and Grain tell every file they touch
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
