"""`python -m greenjax.scaling ...` runs `python -m benchmarks scaling ...` from a checkout."""

import sys
from functools import partial

from greenjax import benchmark

main = partial(benchmark.main, command="greenjax.scaling", suite="scaling")

if __name__ == "__main__":
    main(sys.argv)
