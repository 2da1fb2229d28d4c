"""`python -m greenjax.sweep ...` runs `python -m benchmarks sweep ...` from a checkout."""

import sys
from functools import partial

from greenjax import benchmark

main = partial(benchmark.main, command="greenjax.sweep", suite="sweep")

if __name__ == "__main__":
    main(sys.argv)
