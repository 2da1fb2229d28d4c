"""Measurements of greenjax on this machine; README.md lists the suites.

A suite is a module with FLAGS, its flags as argparse takes them, and `run`, which takes their values by name, after the
resolved config where the suite has one, prints its tables and returns the figures that --json writes.
"""
