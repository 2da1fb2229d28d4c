"""The most probable classes of images without labels, by a classifier.

    greenjax predict IMAGES ... --model RUN --out classes.csv
    greenjax predict photos/ --model runs/finetune --out classes.parquet --top 5
    greenjax predict --model runs/finetune --out val.csv --set data.split=val

IMAGES are files, folders, or lists of files (*.txt, *.csv, *.tsv, *.parquet); without them the images are those of the
settings data.source, data.path and data.split, by default the run's own. The table has a row for each image: file,
class, probability, class_2, probability_2 and so on. The command may be stopped or killed: the same line goes on.
"""

import sys

from greenjax.commands.images import add_images, parse, run
from greenjax.config import flags


def main(argv: list[str]) -> None:
    parser = flags.Parser(flags.program(argv, "greenjax.commands.predict"), __doc__)
    add_images(parser, "*.csv or *.parquet")
    parser.add_argument("--top", type=flags.positive, default=1, metavar="K", help="classes of each image; default: 1")
    arguments, config = parse(parser, argv, "eval")

    def predict() -> None:
        from greenjax.tasks.inference.formats import CLASS_FORMATS, check_out
        from greenjax.tasks.inference.images import images_of
        from greenjax.tasks.inference.predict import predict_files

        files = check_out(arguments.out, CLASS_FORMATS, arguments.overwrite)
        how = dict(top=arguments.top, step=arguments.step, overwrite=arguments.overwrite)
        predict_files(config, images_of(config, arguments.images), files, **how)

    run(parser, predict)


if __name__ == "__main__":
    main(sys.argv)
