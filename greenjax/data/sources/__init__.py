"""Where images come from: one file a kind of data set, with its labels, and the table of all kinds.

A new kind is a file here with a subclass of `Source`, and its line in `SOURCES`. `Source` says what the class provides:

    place, check          the settings that locate the data set, and what is wrong with them
    open                  one split by its name, without a slice such as [:98%]: greenjax.data.open cuts slices
    len, encoded          the number of images, and one image by index: its file's bytes or its pixels
    name_of               the name of an image in warnings and predictions: a path, or a place in the data set
    labelled              the same images with labels and class names
    parts                 what a digest of the split is made of, to compare processes and resumed runs
    in_both               the number of images that two splits have in common
"""

from greenjax.data.sources.base import Source
from greenjax.data.sources.digits import DigitsSource
from greenjax.data.sources.folder import FolderSource
from greenjax.data.sources.records import RecordsSource
from greenjax.data.sources.tfds import TfdsSource

SOURCES: dict[str, type[Source]] = {  # by data.source
    "digits": DigitsSource,
    "folder": FolderSource,
    "records": RecordsSource,
    "tfds": TfdsSource,
}
