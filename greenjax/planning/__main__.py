"""What the planner makes of a configuration: layouts, their cost against Algorithm 1, and the redraw rate.

python -m greenjax.planning --config configs/swin_b.py [--config.mask.ratio=0.6] [--masks N] [--plot FILE.png]
"""

import sys
from collections.abc import Sequence

from greenjax.config import flags
from greenjax.errors import InputError
from greenjax.planning.report import report


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser("python -m greenjax.planning", __doc__)
    parser.add_argument("--masks", type=flags.positive, default=10_000, help="how many masks to simulate")
    parser.add_argument("--plot", help="file to draw the paper's figure 4 into, such as FILE.png")
    arguments, config = flags.parse_beside(parser, argv)
    try:
        report(config, arguments.masks, arguments.plot)
    except (InputError, OSError) as error:
        sys.exit(f"greenjax.planning: {error}")


if __name__ == "__main__":
    main(sys.argv)
