"""The front door: python -m greenjax.main --config configs/digits.py [--workdir DIR] [--config.key=value ...]"""

import gc
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.config import flags
from greenjax.errors import InputError
from greenjax.runtime.console import complain, say, speaks

WORKDIR = "where results go, and where an interrupted run goes on; default: runs/NAME of the config file"


def main(argv: list[str]) -> None:
    arguments, config = parse(argv)
    workdir = arguments.workdir
    if speaks():
        say(f"greenjax {__version__}: {arguments.config}, task {config.task}, workdir {workdir}")
    again = f"the same command goes on from the last checkpoint in {workdir}"

    def interrupted(*_: Any) -> NoReturn:
        complain(f"greenjax: interrupted; {again}")
        os._exit(130)  # at once: an ordinary exit would wait for XLA, which may be compiling

    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)  # an import swallows a KeyboardInterrupt that meets its callbacks
    try:
        _run(config, workdir, arguments.config, again, imported=lambda: signal.signal(signal.SIGINT, usual))
    except KeyboardInterrupt:
        interrupted()
    finally:
        signal.signal(signal.SIGINT, usual)


def parse(argv: list[str]) -> tuple[Namespace, ConfigDict]:
    """The command line: `workdir`, and the resolved config with the path of its file as `config`."""
    parser = flags.Parser("python -m greenjax.main", __doc__)
    parser.add_argument("--workdir", type=flags.folder, metavar="DIR", help=WORKDIR)
    arguments, config = flags.parse_beside(parser, argv)
    arguments.workdir = arguments.workdir or Path("runs") / Path(arguments.config).stem
    return arguments, config


def _run(config: ConfigDict, workdir: Path, file: str, again: str, imported: Callable[[], Any]) -> None:
    if speaks():
        say("importing JAX and greenjax ...")
    gc.disable()  # imported modules live until exit: collecting during imports takes a quarter of their time
    try:
        import jax
    except ValueError as error:  # it reads its environment now
        sys.exit(f"greenjax: {error}")

    from greenjax.runtime import processes
    from greenjax.runtime.cache import keep_compiled

    try:
        processes.connect()
        keep_compiled(workdir / "compiled" if jax.process_count() > 1 else None)  # a folder that all processes see
    except InputError as error:
        processes.end(f"greenjax: {error}")

    from greenjax.data import WorkerDied
    from greenjax.runtime.checkpoint import SaveError
    from greenjax.runtime.compile import compiling
    from greenjax.tasks import run
    from greenjax.training import EXIT_CODE, DivergedError, InterruptedRun
    from greenjax.training.summary import next_lines, say_lines

    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # tracing a large model makes many objects that live
    gc.enable()
    imported()
    try:
        run(config, workdir)
        say_lines(next_lines(config, workdir, file))
    except InterruptedRun as stop:
        complain(f"greenjax: {stop}; {again}")
        sys.exit(EXIT_CODE)
    except (InputError, DivergedError, SaveError, WorkerDied) as error:
        text = f"greenjax: {error}" + (f": {again}" if isinstance(error, WorkerDied) else "")
        if compiling():  # minutes, for a large model
            complain(text)
            os._exit(1)
        processes.end(text)
    except Exception as error:
        processes.end_if_several(error)
        raise


if __name__ == "__main__":
    main(sys.argv)
