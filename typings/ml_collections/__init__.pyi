# For the type checker: ml_collections is not annotated, and the type it infers for `config.model.window` is useless.
from ml_collections.config_dict import ConfigDict as ConfigDict
from ml_collections.config_dict import FrozenConfigDict as FrozenConfigDict
