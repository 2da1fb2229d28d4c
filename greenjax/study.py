"""`python -m greenjax.study ...` runs `python -m benchmarks study ...` from a checkout."""

import sys
from functools import partial

from greenjax import benchmark

main = partial(benchmark.main, command="greenjax.study", suite="study")

if __name__ == "__main__":
    main(sys.argv)
