"""Resizing and decoding: close to Pillow's bicubic, whatever short cut was taken; EXIF data are followed."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny_data import encode

from greenjax.data.augment import CentreView, RandomView, resize, uniforms
from greenjax.data.augment import generator as new_generator
from greenjax.data.encoded import DecodeError, Encoded, cut, extent, shrinkage
from greenjax.data.jpeg import jpeg_header


@pytest.fixture(scope="module")
def photographs():
    return [np.ascontiguousarray(image) for image in load_sample_images().images]


def difference(a, b):
    """Of 255 levels, on average."""
    return np.abs(a.astype(int) - b).mean()


# Source pixels for one of the view's, down and across; the bound is that of what resize does there.
SHRINKS = [(s, s) for s in (0.6, 0.9, 1.02, 1.1, 1.2, 1.3, 1.45, 1.6, 1.7, 1.85, 1.95, 2.2, 2.7, 3.3, 4.0)]
SHRINKS += [(1.4, 1.05), (0.9, 1.3), (1.4, 1.9), (2.3, 1.8), (0.9, 2.4), (1.8, 3.5)]


@pytest.mark.parametrize("down, across", SHRINKS)
def test_resizing_is_near_pillows_bicubic(photographs, down, across):
    """Averaged pixels, INTER_AREA, are up to 1.6 of 255 levels away: so may be what takes their place below 2."""
    height, width = (round(min(96, 400 / max(down, across))),) * 2
    found = []
    for image in photographs:
        image = np.ascontiguousarray(image[: round(height * down), 100 : 100 + round(width * across)])
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        found.append(difference(resize(image, (height, width)), expected))
        grey = resize(image[:, :, :1], (height, width))
        assert grey.shape == (height, width, 1) and difference(grey, expected[:, :, :1]) < 3
    assert np.mean(found) < 1.8, found


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (3, 2)])
def test_the_smallest_images_are_resized(size):
    for target in ((1, 1), (2, 3), (16, 16), (1, 20)):
        assert (resize(np.full((*size, 3), 77, np.uint8), target) == 77).all()


def test_uniforms_are_those_of_the_generator():
    for seed, index in ((0, 0), (3, 7), (2**32 - 1, 10**12)):
        assert uniforms(seed, index, 23) == new_generator(seed, index).random(23).tolist()


# Scaled decoding


def exif(jpeg, orientation):
    """The JPEG with an EXIF block that says how to turn it."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    block = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


@pytest.fixture(scope="module")
def large(photographs):
    """Large and smooth: half a pixel of the decoded grid, to which crops are rounded, makes little difference."""
    return encode(cv2.resize(resize(photographs[0], (24, 32)), (1600, 1200), interpolation=cv2.INTER_CUBIC), ".jpg")


def factors(monkeypatch):
    """Which factors images are decoded by from here on."""
    found, decode = [], Encoded.decode

    def noted(self, factor=1, *rows, **how):
        found.append(factor)
        return decode(self, factor, *rows, **how)

    monkeypatch.setattr(Encoded, "decode", noted)
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_shrinks_while_it_is_decoded(large, orientation, monkeypatch):
    """The crop is the same one, and never has fewer pixels than the view; EXIF data turn it as they turn the whole."""
    image = Encoded(exif(large, orientation), "large.jpg")
    whole = image.decode()
    assert whole.shape[:2] == ((1200, 1600) if orientation <= 4 else (1600, 1200))
    for view in (RandomView(0, (96, 112), 3, (0.2, 1.0), (0.5, 2.0), True), CentreView((96, 112), 3, 0.9)):
        for index in range(5):
            expected = view(whole, index)
            with monkeypatch.context() as patch:
                taken = factors(patch)
                assert difference(view(image, index), expected) < 2.5
            assert taken in ([4], [8])


def test_what_need_not_shrink_is_decoded_whole(large, monkeypatch):
    taken = factors(monkeypatch)
    view = RandomView(0, (700, 700), 3, (0.2, 1.0), (0.75, 4 / 3), True)
    image = Encoded(large, "large.jpg")
    assert np.array_equal(view(image, 0), view(image.decode(), 0)) and set(taken) == {1}
    png = Encoded(encode(image.decode()), "large.png")
    small = CentreView((32, 32), 3)
    assert np.array_equal(small(png, 0), small(png.decode(), 0)) and set(taken) == {1}


def drawn_sizes(count):
    """Sizes of 1 to 5,000 a side, both orientations, with those of cameras and the smallest and thinnest among them."""
    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, np.exp(rng.uniform(0, np.log(5000.99), 2)))) for _ in range(count)]
    sizes += [(480, 640), (600, 800), (1080, 1920), (375, 500), (4000, 6000)] * (count // 20)
    sizes += [(1, 1), (1, 5000), (2, 4999), (447, 448), (448, 448), (449, 448), (1793, 1792)] * 5
    return [turned for size in sizes for turned in (size, size[::-1])]


SCALES = ((0.08, 1.0), (0.2, 1.0), (0.5, 0.5), (1.0, 1.0), (0.001, 0.01))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("target", [(224, 224), (96, 320), (16, 16)])
def test_a_jpeg_is_never_shrunk_below_its_view(scale, target):
    """Whichever way EXIF data turn it, every crop has the pixels it needs, inside of what is decoded."""
    view, taken = RandomView(0, target, 3, scale, (3 / 4, 4 / 3), True), set()
    for index, size in enumerate(drawn_sizes(160)):
        drawn = uniforms(0, index, 23)
        factor, rows = extent(lambda full, drawn=drawn: (view.box(full, drawn), target), size)
        taken.add(factor)
        for full in (size, size[::-1]):
            height, width = (-(-side // factor) for side in full)
            top, left, tall, wide = view.box(full, drawn)
            crop = cut(np.broadcast_to(np.uint8(0), (height, width, 1)), (top, left, tall, wide), factor).shape
            assert abs(crop[0] - tall / factor) <= 1 and abs(crop[1] - wide / factor) <= 1 and min(crop[:2]) >= 1
            assert factor == 1 or (tall >= factor * target[0] and wide >= factor * target[1])
        assert (rows is None) == (factor > 1)
        assert rows is None or sum(view.box(size, drawn)[::2]) == rows <= size[0]
    assert taken == {1, 2, 4, 8} or scale[1] < 0.5 or target[0] > 16


@pytest.mark.parametrize("share", [1.0, 0.875, 0.3])
@pytest.mark.parametrize("target", [(224, 224), (96, 320), (16, 16)])
def test_a_centre_view_has_the_pixels_it_needs(share, target):
    view = CentreView(target, 3, share)
    for size in drawn_sizes(160):
        factor, rows = extent(view.cover, size)
        (top, left, height, width), covering = view.cover(size)
        assert min(top, left) >= 0 and top + height <= size[0] and left + width <= size[1]
        assert rows in (None, top + height)
        assert factor == 1 or (height >= factor * covering[0] and width >= factor * covering[1])
        assert all(shown <= side for shown, side in zip(target, covering))
        assert (
            max(covering) <= 8 * max(target) / share + 3 * covering[0] / height + 1
        )  # whole pixels of the image; parity


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (600, 800)])
def test_views_of_ordinary_photographs(photographs, size):
    """Sizes of cameras: their crops shrink by two in one orientation, and are enlarged in the other."""
    pixels = cv2.resize(photographs[0], size[::-1], interpolation=cv2.INTER_CUBIC)
    jpeg = encode(pixels, ".jpg")
    image, turned = Encoded(jpeg, "photograph.jpg"), Encoded(exif(jpeg, 6), "turned.jpg")
    view, whole = RandomView(0, (224, 224), 3, (0.08, 1.0), (3 / 4, 4 / 3), True), (image.decode(), turned.decode())
    hard = [index for index in range(4000) if disagree(view, size, uniforms(0, index, 23))]
    assert hard
    for index in hard[:3]:
        for encoded, pixels in zip((image, turned), whole):
            assert difference(view(encoded, index), view(pixels, index)) < 4


def disagree(view, size, drawn):
    """The crop is shrunk by two, that of the turned image is enlarged."""
    here, turned = (shrinkage(view.box(full, drawn)[2:], view.size) for full in (size, size[::-1]))
    return here >= 2 and turned < 1


def test_a_grey_jpeg_stays_grey(photographs):
    grey = encode(cv2.cvtColor(photographs[0], cv2.COLOR_RGB2GRAY)[:, :, None], ".jpg")
    image = Encoded(grey, "grey.jpg")
    assert image.decode().shape == (427, 640, 1) and image.decode(2).shape == (214, 320, 1)
    view = CentreView((64, 64), 1)
    assert difference(view(image, 0), view(image.decode(), 0)) < 4


def test_the_header_tells_the_size():
    for progressive in (0, 1):
        options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 3]
        jpeg = cv2.imencode(".jpg", np.zeros((30, 70, 3), np.uint8), options)[1].tobytes()
        for encoded in (jpeg, exif(jpeg, 6)):
            assert jpeg_header(encoded) == (30, 70, 3, 0)
            assert all(jpeg_header(encoded[:cut]) in (None, (30, 70, 3, 0)) for cut in range(len(encoded)))
        with pytest.raises(DecodeError):
            Encoded(jpeg[:200], "broken.jpg").decode(2)
    assert jpeg_header(encode(np.zeros((3, 4, 3), np.uint8))) is None and jpeg_header(b"") is None


SAMPLINGS = {name: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("411", "420", "422", "440", "444")}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("width", [500, 501, 17])
def test_rows_below_the_crop_are_left_out_and_nothing_else_changes(photographs, sampling, width, capfd):
    """Bit for bit, whatever the colours' resolution; the decoder does not complain of what it was not shown."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    for pixels in (photographs[1][:375, :width], photographs[1][:375, :width, :1]):
        image = Encoded(cv2.imencode(".jpg", pixels, options)[1].tobytes(), "image.jpg")
        whole = image.decode()
        assert jpeg_header(image.data).height_at and whole.shape == pixels.shape
        for rows in (1, 7, 8, 15, 16, 100, 303, 304, 343, 365, 366, 367, 375):
            part = image.decode(rows=rows)
            assert len(part) == (375 if rows > 366 else rows + 2)
            assert np.array_equal(part[:rows], whole[:rows])
        view = RandomView(0, (224, 224), 3, (0.2, 1.0), (0.75, 4 / 3), True)
        assert all(np.array_equal(view(image, index), view(whole, index)) for index in range(4))
    assert not capfd.readouterr().err


def test_other_jpegs_are_decoded_to_their_end(photographs):
    kinds = {"JPEG_PROGRESSIVE": 1, "JPEG_RST_INTERVAL": 5}
    jpegs = [
        cv2.imencode(".jpg", photographs[1], [getattr(cv2, f"IMWRITE_{k}"), v])[1].tobytes() for k, v in kinds.items()
    ]
    plain = encode(photographs[1], ".jpg")
    for jpeg in (*jpegs, exif(plain, 1), plain + bytes(1)):
        assert jpeg_header(jpeg).height_at == 0
        assert Encoded(jpeg, "image.jpg").decode(rows=9).shape == (427, 640, 3)
    with pytest.raises(DecodeError):
        Encoded(plain[:-20000], "image.jpg").decode(rows=9)  # a file that lacks its end is seen for what it is
