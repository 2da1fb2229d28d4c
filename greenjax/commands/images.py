"""What the commands share that apply a model to images: their flags, and how they start and end."""

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from greenjax.config import flags
from greenjax.config.inherit import recorded
from greenjax.config.settings import READING
from greenjax.errors import InputError, RunError
from greenjax.runtime.cache import keep_compiled
from greenjax.runtime.console import set_up

AGAIN = "stopped; the same command goes on from here"
IMAGES = ("data.source", "data.path", "data.name", "data.split")


def add_images(parser: flags.Parser, out: str, least: str = "*") -> None:
    """The flags that all of them have; `least` is "+" where images have to be named."""
    parser.add_argument("images", nargs=least, metavar="IMAGES", help="files, folders, or lists of files")
    parser.add_argument("--model", required=True, metavar="RUN", help="a run's workdir, or a file or folder of weights")
    parser.add_argument("--out", "--output", required=True, help=out)
    parser.add_argument("--step", type=int, help="a checkpoint's step; default: the latest")
    parser.add_argument("--image-size", metavar="N|H,W", help="pixels; default: the model's")
    parser.add_argument("--overwrite", action="store_true", help="replaces files that are there")


def parse(parser: flags.Parser, argv: list[str], task: str) -> tuple[Namespace, ConfigDict]:
    """The command line: its flags, and the config of `task`, whose model and images are those of --model."""

    def meant(arguments: Namespace, given: dict[str, Any]) -> dict[str, Any]:
        there = recorded(arguments.model)
        settings = {key: there[key] for key in READING if key in there} | {"init": arguments.model}
        if arguments.image_size:
            settings["image_size"] = flags.image_size(arguments.image_size)
        named = [key for key in IMAGES if key in given]
        if arguments.images and named:
            raise InputError(f"{named[0]} is {given[named[0]]!r}: expected none beside images on the command line")
        if not arguments.images and not named and "data.source" not in there:
            raise InputError(
                "no images given: expected files, folders or lists, or --set data.source=folder --set data.path=DIR"
            )
        return settings | ({"data.source": "python"} if arguments.images else {}) | given

    return flags.parse_command(parser, argv, task=task, meant=meant)


def run(parser: flags.Parser, action: Callable[[], None], stopped: str = AGAIN) -> None:
    """Starts JAX and does the action. Every way in which the command ends has its line here; `stopped` is Ctrl-C's."""
    set_up()
    try:
        keep_compiled()
        action()
    except (InputError, RunError) as error:
        sys.exit(f"{parser.name}: {error}")
    except OSError as error:  # the disk may be full
        sys.exit(f"{parser.name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.name}: {stopped}")
