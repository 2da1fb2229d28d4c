"""The line that says which layouts take a model's weights as they are, and the sizes that the pages recommend."""

import re
from pathlib import Path

import pytest

import greenjax
from greenjax.backbones.registry import family_of
from greenjax.interop.layouts import check_geometry, export_line, find_layout


def at(size, window, name="swin_b"):
    return greenjax.load_config(f"configs/{name}.py", {"image_size": size, "model.window": window})


def layouts_of(config):
    return list(family_of(config.model.name).layouts)


def rows_of_the_table():
    """Sizes and windows that docs/parity.md recommends."""
    page = Path("docs/parity.md").read_text()
    rows = re.findall(r"^\| `image_size=([\d,]+)` \| (\d+) \|", page, re.MULTILINE)
    assert len(rows) > 5
    return [(tuple(map(int, size.split(","))), int(window)) for size, window in rows]


@pytest.mark.parametrize(("size", "window"), rows_of_the_table())
def test_sizes_of_the_table_are_taken_by_every_layout(size, window):
    config = at(size if len(size) > 1 else size[0], window)
    for name in layouts_of(config):
        assert not [note for note in check_geometry(name, find_layout(name, config), config) if "padding" in note]
    line = export_line(config)
    assert "not:" not in line
    assert [name.split()[0] for name in line.removeprefix("weights as they are: ").split(", ")] == layouts_of(config)


def test_a_size_that_no_layout_takes_says_why():
    assert export_line(at((192, 320), 7)) == (
        "weights as they are: none; not: swin, greenmim, simmim (stage 1 has a grid of 48 x 80 tokens, no multiple of"
        " the window of 7); timm (stage 4 has a grid of 6 x 10 tokens with a window of 7); hf, mmdet, torchvision"
        " (stage 4 has a grid of 6 x 10 tokens, smaller than the window of 7)"
    )


def test_padding_that_attends_is_not_as_they_are():
    """At 96 px timm runs, with other logits."""
    assert "weights as they are: none; not: swin, timm, greenmim, simmim (stage 1" in export_line(at(96, 7))
    assert "hf, mmdet, torchvision (stage 3 has a grid of 6 x 6 tokens, smaller" in export_line(at(96, 7))


def test_the_line_and_the_exports_agree():
    """A layout that the line names is neither refused nor noted for its geometry; any other is."""
    for config in (at(224, 14), at(256, 7), at((256, 512), 8), at(256, 7, "twins_l"), at((224, 256), 7, "twins_l")):
        taken = export_line(config).partition("; not:")[0].removeprefix("weights as they are: ")
        for name in layouts_of(config):
            try:
                notes = check_geometry(name, find_layout(name, config), config)
                as_here = not any("padding attends" in note for note in notes)
            except ValueError:
                as_here = False
            assert (name in taken.replace(" (on larger images)", "").split(", ")) == as_here, name


def test_mmpretrains_twins_hide_padding_on_both_axes_and_not_on_one():
    both, one = (export_line(at(size, 7, "twins_l")) for size in (256, (224, 256)))
    assert both.startswith("weights as they are: mmdet; not: twins, timm, greenmim (stage 1 has a grid of 64 x 64")
    assert one.startswith("weights as they are: none; not: twins, timm, mmdet, greenmim (stage 1 has a grid of 56 x 64")


def test_channels_and_window_shifts_are_told():
    line = export_line(greenjax.load_config("configs/digits.py"))
    assert "mmdet (on larger images)" in line
    assert "not: torchvision (model.in_channels is 1)" in line
    twins = greenjax.load_config("configs/twins_l.py")
    assert export_line(twins) == "weights as they are: twins, timm, mmdet, greenmim"
