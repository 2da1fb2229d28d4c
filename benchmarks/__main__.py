"""What things cost on this machine.

    python -m benchmarks --config configs/swin_b.py [--batch N] [--json FILE]
    python -m benchmarks --suite roofline --config configs/swin_b.py [--config.method=simmim] [--batch N]
    python -m benchmarks --suite ahead --gpu h100 --config configs/swin_b.py [--batch N]
    python -m benchmarks --suite attention --config configs/swin_b.py [--batch N]
    python -m benchmarks --suite grouping --config configs/swin_b.py [--batch N] [--json FILE]
    python -m benchmarks --suite growth --config configs/swin_b.py [--batch N] [--json FILE] [--plot FILE.png]
    python -m benchmarks --suite sparse [--batch N] [--json FILE]

step: an update of a configuration, green, dense and in PyTorch; docs/performance.md explains it.
roofline: an update of a configuration kernel by kernel, against what the machine can do at best.
ahead: an update compiled for a GPU that need not be here: what it moves and holds, and the least it can take.
attention: attention inside groups by greenjax, its own kernel, JAX and cuDNN, at the shapes of a configuration.
grouping: ways to group the windows of visible tokens; docs/grouping.md explains it.
growth: an update against image size, batch, mask ratio and window; docs/growth.md explains it.
input: decoding and cropping of photographs, from files and from prepared records; docs/input_speed.md explains it.
sparse: the backends of the sparse convolution on the layers of Twins-L, and on larger kernels that Twins lacks;
docs/sparse_conv.md explains it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.ahead import CARDS, ahead
from benchmarks.attention import attention
from benchmarks.grouping import grouping
from benchmarks.growth import growth
from benchmarks.inputs import inputs
from benchmarks.roofline import roofline
from benchmarks.sparse import sparse
from benchmarks.step import step
from greenjax.config.flags import Parser, parse_beside, positive
from greenjax.errors import InputError
from greenjax.planning.report import check_figure
from greenjax.runtime.console import set_up
from greenjax.runtime.files import replace_text
from greenjax.runtime.processes import find_devices

# Those that measure a configuration, and those that need none.
CONFIGURED = {
    "step": step,
    "roofline": roofline,
    "ahead": ahead,
    "attention": attention,
    "grouping": grouping,
    "growth": growth,
}
SUITES = {"input": inputs, "sparse": sparse}
OPTIONS = {"compiled": "step", "gpu": "ahead", "plot": "growth"}  # flags of one suite each


def main(argv: Sequence[str]) -> None:
    parser = Parser("python -m benchmarks", __doc__)
    parser.add_argument("--suite", choices=[*CONFIGURED, *SUITES], default="step", help="what to measure")
    parser.add_argument("--batch", type=positive, default=8, help="images at a time")
    parser.add_argument("--repeats", type=positive, default=15, help="measurements of each; the median counts")
    parser.add_argument("--compiled", action="store_true", help="step: PyTorch by torch.compile, too; on a GPU always")
    parser.add_argument("--gpu", choices=CARDS, help="the card of --suite ahead; h100 by default")
    parser.add_argument("--json", type=Path, help="file to write the figures into")
    parser.add_argument("--plot", type=Path, help="file to draw the curves of --suite growth into, such as FILE.png")
    arguments = parser.parse_known_args(argv[1:])[0]
    set_up()
    try:
        check(arguments)
        find_devices()
        options = {name: given for name in OPTIONS if (given := getattr(arguments, name))}
        if suite := CONFIGURED.get(arguments.suite):
            arguments, config = parse_beside(parser, argv)
            report = suite(config, arguments.batch, arguments.repeats, **options)
        else:
            arguments = parser.parse_args(argv[1:])
            report = SUITES[arguments.suite](arguments.batch, arguments.repeats)
        if arguments.json:
            replace_text(arguments.json, json.dumps(report, indent=1) + "\n")
    except (InputError, OSError) as error:
        sys.exit(f"benchmarks: {error}")


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for files that could not be written, before minutes are spent on what goes into them."""
    for name, suite in OPTIONS.items():
        if getattr(arguments, name) and arguments.suite != suite:
            raise InputError(f"--{name} given with --suite {arguments.suite}: expected --suite {suite}")
    if arguments.json and (arguments.json.is_dir() or any(parent.is_file() for parent in arguments.json.parents)):
        raise InputError(f"--json is {str(arguments.json)!r}: expected a file in a folder")
    if arguments.plot:
        check_figure(arguments.plot)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # times to compile are those of new programs
    main(sys.argv)
