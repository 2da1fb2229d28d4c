"""Training: what the tasks share. Read in this order: loop, guard, interrupt, step, state, start, together, optim,
sharding; metrics keeps what a run leaves behind.
"""

from greenjax.training.guard import DivergedError
from greenjax.training.interrupt import EXIT_CODE, InterruptedRun

__all__ = ["EXIT_CODE", "DivergedError", "InterruptedRun"]
