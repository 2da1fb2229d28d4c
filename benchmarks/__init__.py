"""What things cost on this machine, side by side with what they are compared to.

A suite is a function that prints its table and returns what --json writes. `python -m benchmarks` runs them.
"""
