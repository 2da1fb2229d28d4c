"""Settings: the one table of keys, how a config file, the command line and `init` fill it in, and what is checked.

Read in this order: settings (the table), resolve, checks, names, file, inherit, flags (the command line).
"""

from greenjax.config.file import load_config
from greenjax.config.resolve import default_config, flatten, read_recorded, resolve
from greenjax.config.settings import KEYS

__all__ = ["KEYS", "default_config", "flatten", "load_config", "read_recorded", "resolve"]
