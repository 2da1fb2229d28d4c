"""Settings: the one table of keys, how a config file, the command line and `init` fill it in, and what is checked.

Read in this order: settings (the table), file, inherit, checks, names, flags (the command line).
"""

from greenjax.config.file import flatten
from greenjax.config.settings import KEYS, default_config, load_config, read_recorded, resolve

__all__ = ["KEYS", "default_config", "flatten", "load_config", "read_recorded", "resolve"]
