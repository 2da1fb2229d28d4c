"""Trains or evaluates, as the config says.

python -m greenjax.main --config configs/digits.py [--workdir DIR] [--config.key=value ...]
"""

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.config import flags
from greenjax.errors import InputError, InterruptedRun, RunError
from greenjax.runtime.console import complain, first_speaks, say, warn

WORKDIR = "where results go, and where an interrupted run goes on; default: runs/NAME of the config file"


def main(argv: list[str], task: str | None = None, about: str | None = None) -> None:
    """Reads the command line, imports JAX, joins the other processes and runs the task.

    `greenjax finetune` gives `task`, which the config must have or leave open, and what its help says about it.
    """
    first_speaks()
    arguments, config = parse(argv, task, about)
    workdir = arguments.workdir
    say(f"greenjax {__version__}: {arguments.config}, task {config.task}, workdir {workdir}")
    again = f"the same command goes on from the last checkpoint in {workdir}"

    def interrupted(*_: Any) -> NoReturn:
        complain(f"greenjax: interrupted; {again}")
        os._exit(130)  # an ordinary exit would wait for XLA, which may be compiling

    try:
        with on_interrupt(interrupted):
            start(workdir)
        run(config, workdir, arguments.config, again, flags.by_script(argv))
    except KeyboardInterrupt:
        interrupted()


def parse(argv: list[str], task: str | None = None, about: str | None = None) -> tuple[Namespace, ConfigDict]:
    """The command line: `workdir`, and the resolved config with the path of its file as `config`."""
    parser = flags.Parser(flags.program(argv, "greenjax.main"), about or __doc__)
    parser.add_argument("--workdir", type=flags.folder, metavar="DIR", help=WORKDIR)
    arguments, config = flags.parse_command(parser, argv, task=task)
    if arguments.workdir is None and (file := Path(arguments.config)).name == "config.json":
        parser.error(f"no workdir given: expected --workdir=DIR, {str(file.parent)!r} to go on with that run")
    arguments.workdir = arguments.workdir or Path("runs") / Path(arguments.config).stem
    return arguments, config


@contextmanager
def on_interrupt(handler: Callable[..., NoReturn]) -> Iterator[None]:
    """Ctrl-C calls `handler`: a KeyboardInterrupt would be lost in the callbacks of an import."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # not where SIGINT is ignored, as in a shell's background
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def start(workdir: Path) -> None:
    """Imports JAX, joins the other processes of the run, turns the compilation cache on, imports the tasks."""
    say("importing JAX and greenjax ...")
    try:
        import jax
    except ValueError as error:  # JAX checks its environment variables on import
        sys.exit(f"greenjax: {error}")

    from greenjax.runtime import processes, processor
    from greenjax.runtime.cache import keep_compiled

    processor.allow_amx()
    try:
        processes.connect()
        keep_compiled(workdir / "compiled" if jax.process_count() > 1 else None)  # a folder that all processes see
    except InputError as error:
        processes.end(f"greenjax: {error}")

    import greenjax.tasks  # noqa: F401


def run(config: ConfigDict, workdir: Path, file: str, again: str, script: bool = False) -> None:
    """Runs the task of the config. Every way in which a run ends has its line and its exit code here."""
    from greenjax import tasks
    from greenjax.runtime import processes
    from greenjax.tasks.summary import next_lines

    warn_of_bfloat16(config.model.dtype)
    try:
        tasks.run(config, workdir)
        say(*next_lines(config, workdir, file, script))
    except InterruptedRun as stop:
        complain(f"greenjax: {stop}; {again}")
        sys.exit(stop.exit_code)
    except InputError as error:
        processes.end(f"greenjax: {error}")
    except RunError as error:
        processes.end(f"greenjax: {error}" + (f": {again}" if error.resumable else ""))
    except Exception as error:
        processes.end_if_several(error)
        raise


def warn_of_bfloat16(dtype: str) -> None:
    """Says that bfloat16 gains nothing, where that is so."""
    import jax

    from greenjax.runtime.processor import multiplies_bfloat16

    if dtype == "bfloat16" and jax.default_backend() == "cpu" and not multiplies_bfloat16():
        warn("model.dtype is bfloat16, and this processor has no instructions for it: float32 is as fast")


if __name__ == "__main__":
    main(sys.argv)
