"""Vectors of images by the encoder of a run or of a file of weights.

    greenjax embed IMAGES ... --model RUN --out vectors.npy
    greenjax embed photos/ --model runs/mine --out photos.parquet --dtype float16
    greenjax embed a.jpg b.jpg --model mine.safetensors --out maps.safetensors --stage 2
    greenjax embed --model runs/mine --out val.npy --set data.split=val

IMAGES are files, folders, or lists of files (*.txt, *.csv, *.tsv, *.parquet); without them the images are those of the
settings data.source, data.path and data.split, by default the run's own. The command may be stopped or killed: the same
line goes on. docs/embed.md has files, formats and neighbours.
"""

import sys

from greenjax.commands.images import add_images, parse, run
from greenjax.config import flags


def main(argv: list[str]) -> None:
    parser = flags.Parser(flags.program(argv, "greenjax.commands.embed"), __doc__)
    add_images(parser, "*.npy or *.safetensors (names beside it, in *.names.txt), or *.parquet")
    parser.add_argument("--stage", type=int, help="the map [h, w, c] of this stage, from 0; default: pooled features")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the numbers")
    arguments, config = parse(parser, argv, "knn")

    def embed() -> None:
        from greenjax.tasks.inference.embed import embed_files
        from greenjax.tasks.inference.formats import VECTOR_FORMATS, check_out
        from greenjax.tasks.inference.images import images_of

        files = check_out(arguments.out, VECTOR_FORMATS, arguments.overwrite)
        how = dict(stage=arguments.stage, dtype=arguments.dtype, step=arguments.step, overwrite=arguments.overwrite)
        embed_files(config, images_of(config, arguments.images), files, **how)

    run(parser, embed)


if __name__ == "__main__":
    main(sys.argv)
