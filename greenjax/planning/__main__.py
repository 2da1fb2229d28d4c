"""What the planner makes of a configuration: layouts, their cost against Algorithm 1, and the redraw rate.

python -m greenjax.planning --config configs/swin_b.py [--config.mask.ratio=0.6] [--masks N] [--plot FILE.png]
"""

import sys
from collections.abc import Sequence

from absl import app
from absl import flags as absl_flags

from greenjax import flags
from greenjax.config import resolve
from greenjax.errors import InputError
from greenjax.planning.report import report

CONFIG = flags.define_config()
MASKS = absl_flags.DEFINE_integer("masks", 10_000, "How many masks to simulate.", lower_bound=1)
PLOT = absl_flags.DEFINE_string("plot", None, "File to draw the paper's figure 4 into, such as FILE.png.")


def main(_: Sequence[str]) -> None:
    try:
        report(resolve(CONFIG.value), MASKS.value, PLOT.value)
    except (InputError, OSError) as error:
        sys.exit(f"greenjax.planning: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=flags.parse)
