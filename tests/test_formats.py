"""Image files of every format, depth and number of channels: pixels as another library reads them, bit for bit."""

import io
import sys
import zipfile
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from greenjax.data import encoded
from greenjax.data.augment import CentreView, RandomView
from greenjax.data.encoded import LARGE, DecodeError, Encoded, load
from greenjax.data.reading import Reading, is_there
from greenjax.data.sources.folder import FolderSource
from greenjax.data.sources.names import Names
from greenjax.errors import InputError

RNG = np.random.default_rng(0)


def array(dtype, channels, size=(24, 37)):
    whole = RNG.integers(0, 1 << 16, (*size, channels)).astype(np.uint16)
    if dtype[0] == "f":
        return (whole / 4096 - 8).astype(dtype)
    return (whole >> 8).astype(np.uint8) if dtype == "uint8" else whole.view(dtype)


def read(data, dtype="uint8", bands=None, **more):
    return Encoded(data, "image").decode(reading=Reading(dtype, bands, **more))


def numpy_file(image, zipped=False):
    file = io.BytesIO()
    np.savez_compressed(file, image=image, other=np.zeros(3)) if zipped else np.save(file, image)
    return file.getvalue()


def pillow_file(image, kind, mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(image, mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_numpy_files_keep_every_bit(dtype, channels):
    image = array(dtype, channels)
    for data in (numpy_file(image), numpy_file(image, True), numpy_file(image.astype(image.dtype.newbyteorder(">")))):
        found = read(data, dtype, channels)
        assert found.dtype == dtype and np.array_equal(found, image)
    np.testing.assert_array_equal(
        CentreView((24, 37), channels, 1.0, Reading(dtype, channels))(Encoded(data, ""), 0), image
    )


def test_numpy_files_that_are_no_images_are_refused():
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w"):
        pass
    for data, why in (
        (numpy_file(np.zeros((2, 3, 4, 5))), r"array of float64 \(2, 3, 4, 5\): expected numbers \[h, w\]"),
        (numpy_file(np.zeros(3)), r"expected numbers \[h, w\]"),
        (numpy_file(np.array([[{}]])), "allow_pickle"),
        (numpy_file(array("uint8", 1))[:-9], "cannot be decoded"),
        (empty.getvalue(), "cannot be decoded as an image$|its arrays are none"),
        (numpy_file(array("uint16", 1)), r"pixels are uint16 of 1 channels: expected uint8 \(data\.dtype\)"),
    ):
        with pytest.raises(DecodeError, match=why):
            read(data)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".jp2", ".pgm"])
def test_sixteen_bits_stay_sixteen(channels, suffix):
    image = array("uint16", channels, (80, 96))
    options = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000) if suffix == ".jp2" else ()
    data = cv2.imencode(".ppm" if (suffix, channels) == (".pgm", 3) else suffix, image[..., ::-1], options)[1]
    np.testing.assert_array_equal(read(data.tobytes(), "uint16"), image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", pytest.param("TIFF", marks=pytest.mark.extra)])
def test_alpha_is_dropped_kept_or_laid_over_a_ground(kind):
    image = array("uint8", 4)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = pillow_file(image, kind, **options)
    np.testing.assert_array_equal(read(data), image[..., :3])
    np.testing.assert_array_equal(read(data, bands=4, alpha="keep"), image)
    opacity = image[..., 3:] / 255
    for ground, value in (("black", 0), ("white", 255)):
        expected = np.rint(image[..., :3] * opacity + value * (1 - opacity))
        np.testing.assert_array_equal(read(data, alpha=ground), expected)


def test_alpha_of_grey_deep_and_turned_files():
    grey = array("uint8", 2)
    np.testing.assert_array_equal(read(pillow_file(grey, "PNG"), bands=2, alpha="keep"), grey)
    deep = array("uint16", 4)
    data = cv2.imencode(".png", deep[..., [2, 1, 0, 3]])[1].tobytes()
    np.testing.assert_array_equal(read(data, "uint16", 4, alpha="keep"), deep)
    tags = Image.Exif()
    tags[274] = 6
    image = array("uint8", 4)
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    raw = PngInfo()
    raw.add_text("Raw profile type exif", f"\nexif\n{len(tags.tobytes()):8}\n{tags.tobytes().hex()}", zip=True)
    by_exif = pillow_file(image, "PNG", exif=tags)
    webp = dict(lossless=True, exact=True)
    for data in (
        by_exif,
        pillow_file(image, "PNG", pnginfo=text),
        pillow_file(image, "PNG", pnginfo=raw),
        pillow_file(image, "WEBP", exif=tags, **webp),
        pillow_file(image, "WEBP", xmp=b'tiff:Orientation="6"', **webp),
    ):
        np.testing.assert_array_equal(read(data, bands=4, alpha="keep"), np.rot90(image, -1))
    first = by_exif.index(b"eXIf") + 4
    damaged = by_exif[:first] + b"!" + by_exif[first + 1 :]  # its checksum is wrong: OpenCV leaves EXIF data out
    assert cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_UNCHANGED).shape == image.shape
    with pytest.raises(DecodeError, match=r"^image cannot be decoded"):
        read(damaged, bands=4, alpha="keep")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_with_opacity_is_decoded_once(kind, monkeypatch):
    image = array("uint8", 4)
    data = pillow_file(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(read(data, bands=4, alpha="keep"), image)


# TIFF


def tiff_file(image, **options):
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, image, **{"photometric": "minisblack", **options})
    return file.getvalue()


LAYOUTS = {
    "striped": {},
    "tiled": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
    "tiled planes": {"planarconfig": "separate", "tile": (16, 32)},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "deflate": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw"},
    "zstd": {"compression": "zstd", "tile": (16, 16)},
    "lerc": {"compression": "lerc", "tile": (16, 16)},
}


@pytest.mark.extra
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_tiff_keeps_every_bit(dtype, channels, layout):
    if (layout, dtype) == ("lerc", "float16"):
        return  # LERC has no such pixels
    image, options = array(dtype, channels), dict(LAYOUTS[layout])
    planes = options.get("planarconfig") == "separate" and channels > 1
    options = options if planes or channels > 1 else {k: v for k, v in options.items() if k != "planarconfig"}
    if channels > 1:
        options.setdefault("planarconfig", "contig")
    stored = np.moveaxis(image, -1, 0) if planes else image if channels > 1 else image[..., 0]
    found = read(tiff_file(stored, **options), dtype, channels)
    assert found.dtype == dtype and np.array_equal(found, image)


@pytest.mark.extra
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_read_as_if_all_were_decoded(channels, layout):
    image, options = array("uint16", channels, (70, 90)), dict(LAYOUTS[layout])
    planes = options.pop("planarconfig", "contig")
    stored = image[..., 0] if channels == 1 else np.moveaxis(image, -1, 0) if planes == "separate" else image
    data = tiff_file(
        stored, rowsperstrip=None if "tile" in options else 16, planarconfig=planes if channels > 1 else None, **options
    )
    view = RandomView(0, (16, 24), channels, (0.02, 0.3), (0.5, 2.0), True, reading=Reading("uint16", channels))
    for index in range(12):
        np.testing.assert_array_equal(view(Encoded(data, "scene"), index), view(image, index))


def sparse(data):
    """A tiled TIFF without every third tile, as GDAL writes sparse files: offset and length are 0."""
    import tifffile

    file = io.BytesIO(data)
    with tifffile.TiffFile(file) as opened:
        for code in (324, 325):  # TileOffsets, TileByteCounts
            tag = opened.pages[0].tags[code]
            tag.overwrite([0 if i % 3 == 1 else value for i, value in enumerate(tag.value)])
    return file.getvalue()


@pytest.mark.extra
@pytest.mark.parametrize("no_data", [None, "-7"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_tiles_that_are_not_stored_have_no_data(planes, no_data):
    image = array("int16", 3, (60, 80))
    stored, tags = image if planes == "contig" else np.moveaxis(image, -1, 0), []
    if no_data:
        tags.append((42113, "s", 0, no_data, True))
    data = sparse(tiff_file(stored, planarconfig=planes, tile=(16, 16), compression="zlib", extratags=tags))
    whole = read(data, "int16", 3)
    gone = whole != image
    assert 0 < gone.mean() < 0.5 and (whole[gone] == int(no_data or 0)).all()
    view = RandomView(0, (16, 24), 3, (0.02, 0.3), (0.5, 2.0), True, reading=Reading("int16", 3))
    for index in range(12):
        np.testing.assert_array_equal(view(Encoded(data, "scene"), index), view(whole, index))


@pytest.mark.extra
@pytest.mark.parametrize(
    "dtype, said, value",
    [
        ("float32", "-3.4028234663852886e+38", np.finfo(np.float32).min),  # GDAL's usual one
        ("float32", "nan", np.nan),
        ("float32", "-9999,5", -9999.5),
        ("float32", "1e39", 0),
        ("int16", "-32768.0", -32768),
        ("int16", "0.5", 0),
        ("uint16", "-1", 0),
        ("uint8", "nan", 0),
        ("uint8", "none", 0),
    ],
)
def test_what_is_not_stored_is_the_value_that_the_file_names(dtype, said, value, caplog):
    image = array(dtype, 1, (32, 32))[..., 0]
    data = sparse(tiff_file(image, tile=(16, 16), extratags=[(42113, "s", 0, said, True)]))
    image[:16, 16:] = value  # the only tile that is gone
    np.testing.assert_array_equal(read(data, dtype, 1)[..., 0], image)
    part, _ = load(Encoded(data, "scene"), lambda size: ((8, 8, 16, 16), (16, 16)), Reading(dtype, 1))
    np.testing.assert_array_equal(part[..., 0], image[8:24, 8:24])
    if value == np.finfo(np.float32).min:
        assert is_there(part, said).mean() == 0.75
    assert not caplog.records


@pytest.mark.extra
def test_a_crop_of_a_large_scene_reads_its_tiles_alone(tmp_path):
    """All tiles but one are garbage; a crop inside that tile does not mind. The file lies in memory page by page."""
    import tifffile

    image = array("uint8", 3, (2560, 2560))
    tifffile.imwrite(tmp_path / "scene.tif", image, photometric="rgb", tile=(256, 256), compression="deflate")
    with tifffile.TiffFile(tmp_path / "scene.tif") as file:
        offsets = file.pages[0].dataoffsets
    with open(tmp_path / "scene.tif", "r+b") as file:
        for index, offset in enumerate(offsets):
            if index != 10 * 3 + 5:
                file.seek(offset)
                file.write(b"garbage" * 9)
        assert file.seek(0, 2) >= LARGE and len(offsets) == 100
    scene = FolderSource(str(tmp_path), Names.of(["scene.tif"])).encoded(0)
    assert not isinstance(scene.data, bytes)
    pixels, size = load(scene, lambda size: ((3 * 256 + 10, 5 * 256 + 7, 200, 190), (50, 60)))
    assert size == (50, 60)
    np.testing.assert_array_equal(pixels, image[778 : 778 + 200, 1287 : 1287 + 190])
    with pytest.raises(DecodeError):
        load(scene, lambda size: ((0, 0, 300, 300), (50, 60)))


@pytest.mark.extra
@pytest.mark.parametrize(
    "channels, options",
    [
        (1, dict(bitspersample=4)),
        (4, dict(photometric="rgb", extrasamples=["assocalpha"])),
        (4, dict(photometric="rgb", extrasamples=["unassalpha"])),
        (4, dict(photometric="rgb", extrasamples=["unspecified"])),
        (5, dict(photometric="rgb", extrasamples=["unassalpha", "unspecified"])),
    ],
)
def test_a_large_picture_has_the_pixels_of_a_small_one(channels, options, monkeypatch):
    """Numbers of 4 bits are levels of grey, opacity is taken out of colours, and other channels are no colours."""
    image = array("uint8", channels) >> 8 - options.get("bitspersample", 8)
    data = tiff_file(image.squeeze(), tile=(16, 16), planarconfig="contig" if channels > 1 else None, **options)
    part = lambda size: ((8, 16, 12, 20), (12, 20))  # noqa: E731
    small, _ = load(Encoded(data, "scene"), part)
    monkeypatch.setattr(encoded, "LARGE", 0)
    np.testing.assert_array_equal(load(Encoded(data, "scene"), part)[0], small)


def test_images_smaller_than_the_crop_are_enlarged():
    for view in (
        RandomView(0, (64, 64), 5, (0.2, 1.0), (0.75, 1.33), True, reading=Reading("int16", 5)),
        CentreView((64, 64), 5, reading=Reading("int16", 5)),
    ):
        assert view(array("int16", 5, (9, 7)), 0).shape == (64, 64, 5)


@pytest.mark.extra
def test_pages_are_chosen_or_stacked():
    pages = array("uint16", 5)
    data = tiff_file(np.moveaxis(pages, -1, 0), metadata=None)
    np.testing.assert_array_equal(read(data, "uint16", page=3), pages[..., 3:4])
    np.testing.assert_array_equal(read(data, "uint16", 5, page=-1), pages)
    np.testing.assert_array_equal(read(data, "uint16", 0, page=-1, channels=(4, 0)), pages[..., [4, 0]])
    with pytest.raises(DecodeError, match=r"it has 5 pages: expected more than 7 \(data\.page\)"):
        read(data, "uint16", page=7)


@pytest.mark.extra
def test_odd_tiffs_are_read_rightly_or_refused_in_a_line():
    image = array("uint16", 1)[..., 0]
    inverted = tiff_file(image, photometric="miniswhite")
    np.testing.assert_array_equal(read(inverted, "uint16")[..., 0], 65535 - image)
    turned = tiff_file(image, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read(turned, "uint16")[..., 0], np.rot90(image, -1))
    for data, why in (
        (tiff_file(array("uint16", 4), photometric="separated"), "its colours are CMYK"),
        (tiff_file(image)[:-200], "cannot be decoded"),
        (tiff_file(image.astype(np.int32)), r"pixels are int32 of 1 channels: expected uint16"),
    ):
        with pytest.raises(DecodeError, match=why) as error:
            read(data, "uint16", 0)
        assert "\n" not in str(error.value)


def test_a_missing_reader_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match=r"^image .*: tifffile reads it: `pip install 'greenjax\[tiff\]'` installs"):
        read(b"II*\0" + bytes(20), "uint16")


def without_imagecodecs(monkeypatch):
    """Stands in for tifffile."""

    def refused(_):  # in tifffile's words
        raise ValueError("<COMPRESSION.ZSTD: 50000> requires the 'imagecodecs' package")

    monkeypatch.setitem(sys.modules, "tifffile", SimpleNamespace(TiffFile=refused))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)


def test_so_is_one_that_a_compression_needs(monkeypatch):
    without_imagecodecs(monkeypatch)
    line = r"^image .*: imagecodecs reads it: `pip install 'greenjax\[tiff\]'` installs"
    scene, deep = Encoded(b"II*\0" + bytes(20), "image"), Reading("uint16")
    with pytest.raises(InputError, match=line):
        scene.decode(reading=deep)
    with pytest.raises(InputError, match=line):  # no DecodeError, for which images are left out one by one
        load(scene, whole, deep)


def whole(size):
    """The part that is all of an image."""
    return (0, 0, *size), size


@pytest.mark.parametrize("missing", ["imagecodecs", "tifffile"])
def test_a_large_picture_needs_neither(missing, monkeypatch):
    without_imagecodecs(monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(encoded, "LARGE", 0)
    image = array("uint8", 3)
    found, _ = load(Encoded(pillow_file(image, "TIFF", compression="tiff_lzw"), "image"), whole)
    np.testing.assert_array_equal(found, image)


@pytest.mark.extra
def test_a_part_that_tifffile_alone_can_decode_needs_no_imagecodecs(monkeypatch):
    image = array("uint16", 13)
    data = tiff_file(image, photometric="minisblack", planarconfig="contig", rowsperstrip=1)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    found, _ = Encoded(data, "scene").decode_part(lambda size: ((8, 4, 12, 20), (12, 20)), Reading("uint16", 13))
    np.testing.assert_array_equal(found, image[8:20, 4:24])
