"""What the tasks share: how a model is trained.

Read in this order: loop, step, state, start, guard, interrupt, together, optim, sharding; metrics keeps what a run
leaves behind.
"""
