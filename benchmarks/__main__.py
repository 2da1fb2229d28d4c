"""Measures greenjax on this machine.

python -m benchmarks SUITE [--config FILE] [flags of the suite] [--json FILE]
python -m benchmarks SUITE --help
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax

from greenjax.config.flags import Parser, parse_command
from greenjax.errors import InputError, InterruptedRun, RunError
from greenjax.runtime.console import complain, set_up
from greenjax.runtime.files import replace_text
from greenjax.runtime.processes import find_devices
from greenjax.runtime.processor import allow_amx

SUITES = {  # by name: the module
    "step": "step",
    "precision": "precision",
    "roofline": "roofline",
    "ablation": "ablation",
    "attention": "attention",
    "sparse": "sparse",
    "peers": "peers",
    "whole": "whole_run",
    "grouping": "grouping",
    "growth": "growth",
    "families": "families",
    "detection": "detection",
    "input": "inputs",
    "sources": "sources",
    "formats": "formats",
    "listing": "listing",
    "ahead": "ahead",
    "batches": "batches",
    "scaling": "scaling",
    "study": "study",
    "evidence": "evidence",
    "sweep": "sweep",
}
WITHOUT_CONFIG = ("sparse", "input", "sources", "formats", "listing")
ABSENT_DEVICES = ("ahead", "scaling")  # compile for devices that are not here, as others do with --gpu
TRAINING = {"study", "sweep", "evidence"}  # compile with JAX's cache


def forwarded(argv: Sequence[str], command: str) -> None:
    """Runs `python -m greenjax.benchmark [--suite NAME]`; its errors begin with `command`."""
    words = list(argv[1:])
    if not words or words[0].startswith("-"):
        old = ArgumentParser(add_help=False, allow_abbrev=False)
        old.add_argument("--suite", default="step")
        arguments, flags = old.parse_known_args(words)
        words = [arguments.suite, *flags]
    if not TRAINING & set(words[:1]):
        compile_anew()
    main([command, *words], command)


def compile_anew() -> None:
    """Switches JAX's compilation cache off, so that a suite measures how long XLA compiles."""
    jax.config.update("jax_enable_compilation_cache", False)


def main(argv: Sequence[str], command: str | None = None) -> None:
    """Runs the suite that `argv[1]` names with the flags after it. Errors begin with `command`, by default this one."""
    chooser = Parser(f"python -m {command or 'benchmarks'}", __doc__)
    chooser.add_argument("suite", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    name = chooser.parse_args(argv[1:2]).suite
    suite = import_module(f"benchmarks.{SUITES[name]}")
    parser = Parser(f"python -m {command or f'benchmarks {name}'}", suite.__doc__)
    for flag, how in suite.FLAGS.items():
        parser.add_argument(flag, **how)
    parser.add_argument("--json", type=Path, help="file to write the figures into")
    try:
        measure(name, suite, parser, argv[2:])
    except InterruptedRun as stop:
        complain(f"{parser.name}: {stop}; the same command goes on")
        sys.exit(stop.exit_code)
    except (InputError, OSError, RunError) as error:
        parser.error(str(error))


def measure(name: str, suite: ModuleType, parser: Parser, flags: Sequence[str]) -> None:
    """Runs a suite with these flags and writes its figures."""
    if name in WITHOUT_CONFIG:
        set_up()
        values, config = vars(parser.parse_args(flags)), ()
    else:
        arguments, resolved = parse_command(parser, [name, *flags])
        values, config = vars(arguments), (resolved,)
        del values["config"]
    file = values.pop("json")
    if file and (file.is_dir() or any(parent.is_file() for parent in file.parents)):
        raise InputError(f"--json is {str(file)!r}: expected a file in a folder")
    if name not in ABSENT_DEVICES and not values.get("gpu"):
        allow_amx()
        find_devices()
    report = suite.run(*config, **values)
    if file:
        replace_text(file, json.dumps({"suite": name} | report, indent=1) + "\n")


if __name__ == "__main__":
    if not TRAINING & set(sys.argv[1:2]):
        compile_anew()
    main(sys.argv)
