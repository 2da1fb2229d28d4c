"""Where images come from: one file a kind of data set, with its labels, and the table of all kinds.

A new kind is a file here with a subclass of `Source` (base.py says what it provides), and its line in `SOURCES`.
"""

from greenjax.data.sources.base import Source
from greenjax.data.sources.coco import CocoSource
from greenjax.data.sources.digits import DigitsSource
from greenjax.data.sources.folder import FolderSource
from greenjax.data.sources.folders import FoldersSource
from greenjax.data.sources.huggingface import HuggingFaceSource
from greenjax.data.sources.list import ListSource
from greenjax.data.sources.mnist5k import Mnist5kSource
from greenjax.data.sources.python import PythonSource
from greenjax.data.sources.records import RecordsSource
from greenjax.data.sources.scenes import ScenesSource
from greenjax.data.sources.tar import TarSource
from greenjax.data.sources.tfds import TfdsSource

SOURCES: dict[str, type[Source]] = {  # by data.source
    "coco": CocoSource,
    "digits": DigitsSource,
    "folder": FolderSource,
    "huggingface": HuggingFaceSource,
    "list": ListSource,
    "mnist5k": Mnist5kSource,
    "python": PythonSource,
    "records": RecordsSource,
    "scenes": ScenesSource,
    "tar": TarSource,
    "tfds": TfdsSource,
}

SEVERAL: dict[str, type[Source]] = {  # by data.source, where data.path names several places
    "folder": FoldersSource,
}

COLUMNS = ("data.image_column", "data.label_column")  # settings, for sources in whose `place` they are


def unread(source: str) -> dict[str, str]:
    """The settings by which other kinds of data sets are found, empty: a source refuses some of them."""
    return {key: "" for key in ("data.path", *COLUMNS) if key not in SOURCES[source].place}
