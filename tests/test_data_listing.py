"""The digest of a source: the same wherever the images are, another where one, its label or its place is."""

import numpy as np
from small import small_config

from greenjax.data.labels import Chosen, Listed
from greenjax.data.listing import listing
from greenjax.data.open import Slice, open_labelled, open_source
from greenjax.data.sources import FolderSource, RecordsSource
from greenjax.data.sources.names import Names

NAMES = Names.of(["b/1.png", "a/2.png", "a/3.png"])


def test_the_folder_above_does_not_count():
    assert listing(FolderSource("/here", NAMES)) == listing(FolderSource("/there", NAMES))
    here, there = (RecordsSource(f"/{root}", "train", "raw", (f"/{root}/a-0.rec",), (3,)) for root in ("here", "there"))
    assert listing(here) == listing(there)


def test_every_difference_has_a_digest_of_its_own():
    folder, labels = FolderSource("/", NAMES), np.array([1, 0, 0], np.int32)
    sources = [
        folder,
        FolderSource("/", Names.of([*NAMES][::-1])),
        FolderSource("/", Names.of(["b/1.png", "a/2.png", "a/4.png"])),
        FolderSource("/", Names.of(["b/1.png", "a/2.pnga", "/3.png"])),
        Slice(folder, 0, 2),
        Slice(folder, 1, 3),
        Listed(folder, labels, ("a", "b")),
        Listed(folder, labels, ("a", "c")),
        Listed(folder, 1 - labels, ("a", "b")),
        Chosen(Listed(folder, labels, ("a", "b")), np.array([0, 2])),
        Chosen(Listed(folder, labels, ("a", "b")), range(2)),
        RecordsSource("", "", "raw", ("a",), (3,)),
        RecordsSource("", "", "raw", ("a",), (4,)),
        RecordsSource("", "", "raw", ("a", "b"), (3, 0)),
    ]
    assert len({listing(source) for source in sources}) == len(sources)


def test_a_source_opened_again_has_the_same_digest():
    data = small_config().data
    for opened in (open_source, open_labelled):
        assert listing(opened(data, "train[:90%]")) == listing(opened(data, "train[:90%]"))
        assert listing(opened(data, "train[:90%]")) != listing(opened(data, "train[:91%]"))
