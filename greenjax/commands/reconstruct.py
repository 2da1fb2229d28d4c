"""Pictures of what a pre-trained model makes of images of which it sees a part: a PNG for each image.

    greenjax reconstruct IMAGES ... --model RUN --out FOLDER [--ratio 0.6] [--seed 1]
    greenjax reconstruct a.jpg --model runs/mine --out pictures --visible 0,1,2,7,8,9
    greenjax reconstruct photos/ --model runs/mine --out pictures --mask mask.png

IMAGES are files, folders, or lists of files (*.txt, *.csv, *.tsv, *.parquet). All are seen under one mask: a drawn one,
or units that are counted row by row, or a file. In a file True, or light, is visible: a .npy or an image with a value
for each unit, or for each pixel.
"""

import sys
from argparse import Namespace
from typing import Any

from greenjax.commands.images import add_images, run
from greenjax.config import flags
from greenjax.runtime.files import expanded


def main(argv: list[str]) -> None:
    parser = flags.Parser(flags.program(argv, "greenjax.commands.reconstruct"), __doc__)
    parser.epilog = None  # settings are those of the run
    add_images(parser, "the folder of the pictures", least="+")
    mask = parser.add_mutually_exclusive_group()
    mask.add_argument("--mask", metavar="FILE", help="a mask: *.npy, or an image")
    mask.add_argument("--visible", metavar="UNITS", help="the units that the model sees, such as 0,3,17")
    mask.add_argument("--ratio", type=float, help="the share of hidden units; default: the run's mask.ratio")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn mask; default: 0")
    arguments = parser.parse_intermixed_args(argv[1:])
    again = "stopped; the same command draws all pictures anew with --overwrite"
    run(parser, lambda: reconstruct(arguments), again)


def reconstruct(arguments: Namespace) -> None:
    """Loads the model, makes the mask, draws."""
    from greenjax.tasks.inference.images import named_images
    from greenjax.tasks.inference.reconstruct import pretrained, reconstruct_files

    source = named_images(arguments.images)
    size = flags.image_size(arguments.image_size) if arguments.image_size else None
    model = pretrained(arguments.model, arguments.step, size)
    out = expanded(arguments.out)
    reconstruct_files(model, source, out, mask_of(arguments, model), overwrite=arguments.overwrite)


def mask_of(arguments: Namespace, model: Any) -> Any:
    """The mask [uh, uw] of the command line."""
    from greenjax.tasks.inference.reconstruct import drawn_mask, listed_mask, mask_of_file

    units = model.grid.units
    if arguments.mask:
        return mask_of_file(arguments.mask, units, (model.grid.height, model.grid.width))
    if arguments.visible:
        return listed_mask(units, arguments.visible)
    return drawn_mask(model, arguments.ratio, arguments.seed)


if __name__ == "__main__":
    main(sys.argv)
