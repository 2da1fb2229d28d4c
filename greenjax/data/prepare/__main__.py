"""Shrinks the images of any source once, into ArrayRecord files that training reads several times as fast.

    greenjax data prepare --config NAME --output DIR [--size 256] [--encoding raw|jpeg] [--splits A B]
        [--workers N] [--set data.path=... and other keys]

    greenjax pretrain --config NAME --set data.source=records --set data.path=DIR ...

`python -m greenjax.data.prepare` does the same.
Every split that the config names is prepared whole, under its own name: slices such as train[:98%] are cut when it is
read. A command that was stopped or killed goes on where it was. docs/data.md has sizes and times.
"""

import os
import sys

from greenjax.config import flags
from greenjax.data.prepare import How, prepare
from greenjax.data.sources.records import ENCODINGS
from greenjax.errors import InputError, RunError
from greenjax.runtime.console import say


def main(argv: list[str]) -> None:
    parser = make_parser(flags.program(argv, "greenjax.data.prepare"))
    try:
        arguments, config = flags.parse_command(parser, argv)
        output, how = arguments.output, How(arguments.size, arguments.encoding)
        for line in prepare(config, output, how, arguments.splits, arguments.unlabelled, arguments.workers):
            say(line)
    except (InputError, RunError, OSError) as error:  # the disk may be full: finished shards stay
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.error("stopped; the same command goes on from here")


def make_parser(prog: str) -> flags.Parser:
    parser = flags.Parser(prog, __doc__)
    output, size = "directory for records, new or to go on with", "the shorter side in pixels; smaller images stay"
    parser.add_argument("--output", type=flags.folder, required=True, help=output)
    parser.add_argument("--size", type=flags.positive, default=256, help=size)
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default="raw", help="raw: fastest; jpeg: a fifth to an eighth of the space"
    )
    parser.add_argument("--splits", nargs="+", help="default: data.split and data.eval_split")
    parser.add_argument("--unlabelled", action="store_true", help="leave labels out")
    parser.add_argument("--workers", type=flags.positive, default=os.cpu_count() or 1, help="threads")
    return parser


if __name__ == "__main__":
    main(sys.argv)
