"""Measures mean and deviation of the pixels of the training images, and writes them into a file.

    greenjax data statistics --config NAME --output FILE.json [--images 2000] [--workers N]
        [--set data.path=... and other keys]

    greenjax pretrain --config NAME --set data.statistics=FILE.json ...

`python -m greenjax.data.statistics` does the same.
The file is for the same data.dtype, data.scale, data.channels and data.no_data. Pixels are divided by data.scale first.
"""

import json
import os
import sys

from greenjax.config import flags
from greenjax.data.statistics import lines, measure
from greenjax.errors import InputError, RunError
from greenjax.runtime.console import say
from greenjax.runtime.files import replace_text

UNMEASURED = ("--config.data.mean=0", "--config.data.std=1", "--config.data.statistics=")


def main(argv: list[str]) -> None:
    parser = make_parser(flags.program(argv, "greenjax.data.statistics"))
    try:
        arguments, config = flags.parse_command(parser, [*argv, *UNMEASURED])
        found = measure(config, arguments.images, arguments.workers)
        replace_text(arguments.output, json.dumps(found, indent=1) + "\n")
        for line in lines(found):
            say(line)
        say(f"{found['images']} images of {found['split']}: --config.data.statistics={arguments.output}")
    except (InputError, RunError, OSError) as error:
        parser.error(str(error))


def make_parser(prog: str) -> flags.Parser:
    parser = flags.Parser(prog, __doc__)
    parser.add_argument("--output", type=flags.folder, required=True, help="the file to write, JSON")
    parser.add_argument("--images", type=flags.positive, default=2000, help="at most this many, evenly spaced")
    parser.add_argument("--workers", type=flags.positive, default=os.cpu_count() or 1, help="threads")
    return parser


if __name__ == "__main__":
    main(sys.argv)
