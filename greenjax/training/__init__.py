"""Training: the runs themselves. `pretrain` tells the story from a configuration to trained weights.

Read in this order: pretrain, step, state, optim, sharding; checkpoint and metrics keep what a run leaves behind.
"""

from greenjax.training.pretrain import DivergedError, pretrain

__all__ = ["DivergedError", "pretrain"]
