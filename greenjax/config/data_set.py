"""Where the images of a config are, in a person's words."""

from ml_collections import ConfigDict

from greenjax.data.sources import SOURCES
from greenjax.data.sources.base import paths_of


def data_set(data: ConfigDict) -> tuple[str, ...]:
    """Of `config.data`: its paths, else its name, as far as the source reads them; else the source."""
    named = "data.name" in SOURCES[data.source].place and data.name
    return paths_of(data.path) or (named or data.source,)
