"""Images with objects: COCO's files and scenes of digits, in the view of a detector, in batches."""

import logging
from contextlib import contextmanager
from itertools import islice

import jax
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict
from pycocotools.coco import COCO
from sklearn.datasets import load_digits
from tiny_data import COLUMNS, SQUARE, coco, encode, picture

from greenjax.backbones.geometry import token_grid
from greenjax.config import flatten, resolve
from greenjax.config.checks import check_detection
from greenjax.data.detection.__main__ import instances
from greenjax.data.detection.__main__ import main as convert
from greenjax.data.detection.batches import blank_object_batch, object_batches, object_eval_batches
from greenjax.data.detection.scenes import BRIGHT, DARK, SEEN, scene
from greenjax.data.detection.view import MASK_SIDE, ObjectView, covered, fitted
from greenjax.data.listing import listing
from greenjax.data.open import open_objects, open_source
from greenjax.data.overlap import images_in_both
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError
from greenjax.tasks.detect import opened


def config_of(source="scenes", path="", image_size=32, detect=None, **data):
    model = dict(patch=2, depths=(2, 2, 2), num_heads=(1, 2, 4), embed_dim=8, window=4, in_channels=3)
    data = {"source": source, "path": str(path), "batch_size": 4, "workers": 0, **data}
    sections = dict(model=model, data=data, detect={"max_objects": 8, **(detect or {})})
    return resolve({"task": "finetune", "steps": 1, "image_size": image_size} | sections)


def training_images(config, **classes):
    return open_objects(config, "train", **classes, training=True)


def take(iterator, count):
    batches = list(islice(iterator, count))
    iterator.close()
    return batches


@contextmanager
def refused(line):
    """What is inside raises an InputError of one line that has `line` in it."""
    with pytest.raises(InputError) as raised:
        yield
    assert line in str(raised.value) and "\n" not in str(raised.value)


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# Scenes


@pytest.mark.parametrize("index", range(12))
def test_masks_and_boxes_of_a_scene_are_exact(index):
    """A pixel is bright where a mask has it and dark elsewhere; no two masks share one; boxes touch their masks."""
    image, (size, boxes, labels, masks) = training_images(config_of()).encoded(index)
    assert image.shape == (*size, 1) == (128, 128, 1) and 1 <= len(labels) == len(masks) <= 6
    assert (masks.sum(axis=0) == (image[:, :, 0] >= BRIGHT)).all() and image[masks.sum(axis=0) == 0].max() <= DARK
    for (x0, y0, x1, y1), mask in zip(boxes.astype(int), masks):
        inside = mask[y0:y1, x0:x1]
        assert inside.sum() == mask.sum() and inside.any(axis=0).all() | inside.any(axis=1).all()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_scenes_are_the_same_again_and_others_by_index_and_split():
    train, test = (open_objects(config_of(eval_split="test"), split) for split in ("train", "test"))
    images = [each.encoded(index)[0] for each in (train, test) for index in range(3)]
    assert len({image.tobytes() for image in images}) == 6
    np.testing.assert_array_equal(images[2], train.encoded(2)[0])
    pixels = np.round(load_digits().images[..., None] * (255 / 16))  # the held-out ones are those of the digits
    assert (train.source.digits.images == pixels[:1500]).all() and (test.source.digits.images == pixels[1500:]).all()
    np.testing.assert_array_equal(open_source(config_of().data, "train[2:3]")[0], images[2])  # for pre-training


def test_a_label_is_that_of_its_digit_and_every_digit_stays_visible():
    """Digits of which 2 is a block and 5 its left half; where several are drawn, at least SEEN of each is seen."""
    digits, values = np.full((2, 8, 8, 1), 255, np.uint8), np.array([2, 5], np.int32)
    digits[1, :, 4:] = 0
    for index in range(20):
        _, (_, ((x0, y0, x1, y1),), (label,), _) = scene(digits, values, 128, 1, 0, index)
        assert label == (3 if (x1 - x0) / (y1 - y0) > 0.8 else 6)
        _, (_, _, _, masks) = scene(digits[:1], values[:1], 128, 6, 0, index)
        if len(masks) > 1:
            assert (masks.sum(axis=(1, 2)) >= SEEN * 20**2).all()


# COCO


def test_masks_boxes_and_labels_are_those_of_pycocotools(tmp_path):
    coco(tmp_path)
    source = training_images(config_of("coco", tmp_path, detect=dict(keep_empty=True)))
    theirs = COCO(tmp_path / "annotations" / "instances_train.json")
    seen = 0
    for index in range(len(source)):
        image, (size, boxes, labels, masks) = source.encoded(index)
        found = theirs.loadAnns(theirs.getAnnIds(source.image_id(index), iscrowd=False))
        assert int(image.decode().mean()) == source.image_id(index) - 10 and size == source.size(index) == (8, 12)
        assert masks.shape == (len(found), 8, 12) and masks.dtype == np.uint8
        for annotation, box, label, mask in zip(found, boxes, labels, masks, strict=True):
            np.testing.assert_array_equal(mask, theirs.annToMask(annotation))
            x, y, w, h = annotation["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
            assert theirs.loadCats(annotation["category_id"])[0]["name"] == source.classes[label - 1]
            assert source.category_id(int(label)) == annotation["category_id"]
        truth = source.ground_truth(index)
        whole = theirs.loadAnns(theirs.getAnnIds(source.image_id(index)))
        assert [(each["bbox"], each["area"], each["iscrowd"], each["category_id"]) for each in truth] == [
            (each["bbox"], each["area"], each["iscrowd"], each["category_id"]) for each in whole
        ]
        seen += len(found)
    assert source.classes == ("cat", "dog") and seen == 10 and len(source) == 6


def test_images_without_objects_are_left_out_of_training_alone(tmp_path):
    coco(tmp_path)
    coco(tmp_path, "val")
    config = config_of("coco", tmp_path, eval_split="val")
    train = training_images(config)
    assert sorted(train.image_id(index) for index in range(len(train))) == [12, 13, 14, 15]
    assert len(open_objects(config, "val")) == len(open_objects(config, "train")) == 6
    train, held_out, _ = opened(config_of("coco", tmp_path, eval_split="train"))
    assert held_out is not None and (len(train), len(held_out)) == (4, 6)
    half = config_of("coco", tmp_path, split="train[:50%]", detect=dict(keep_empty=True))
    assert len(open_objects(half, "train[:50%]", training=True)) == 3


def test_classes_are_told_by_name(tmp_path):
    """An evaluation set may number its categories otherwise, and lack some; one that the model lacks is refused."""
    coco(tmp_path)
    classes = ("horse", "dog", "cat")
    ours, theirs = (training_images(config_of("coco", tmp_path), classes=names) for names in (classes, ()))
    for index in range(len(ours)):
        names = [[source.classes[label - 1] for label in source.encoded(index)[1].labels] for source in (ours, theirs)]
        assert names[0] == names[1] and names[0]
    assert [ours.category_id(label) for label in (1, 2, 3)] == [None, 3, 7]
    with refused("train has class 'cat': expected the classes of the model, dog, horse"):
        training_images(config_of("coco", tmp_path), classes=("dog", "horse"))


def test_sets_are_told_apart_and_known_again(tmp_path):
    coco(tmp_path)
    coco(tmp_path, "val", categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}])
    config = config_of("coco", tmp_path, eval_split="val")
    train, again, val = (open_objects(config, split) for split in ("train", "train", "val"))
    assert listing(train) == listing(again) != listing(val)
    assert images_in_both(train, again) == 6 and images_in_both(train, val) == 0
    first, second = (open_objects(config_of(), split) for split in ("train[:5]", "train[3:9]"))
    assert images_in_both(first, second) == 2 and images_in_both(first, open_objects(config_of(), "test")) == 0


LAYOUTS = [("annotations/train.json", "images"), ("train/_annotations.coco.json", "train"), ("train.json", ".")]


@pytest.mark.parametrize("pattern, images", LAYOUTS)
def test_other_layouts_are_found(tmp_path, pattern, images):
    coco(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / pattern)
    for file in (tmp_path / "train").glob("*.png"):
        (tmp_path / images).mkdir(exist_ok=True)
        file.rename(tmp_path / images / file.name)
    assert training_images(config_of("coco", tmp_path)).encoded(0)[0].decode().shape == (8, 12, 3)


def entry(**changes):
    """An annotation of image 12."""
    return {"id": 5, "image_id": 12, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": [SQUARE]} | changes


COUNTED = {
    "a box without area": entry(bbox=[1, 1, 0, 4]),
    "a box outside of its image": entry(bbox=[12, 1, 4, 4]),
    "a bbox that is not [x, y, width, height]": entry(bbox=None),
    "an empty polygon": entry(segmentation=[]),
    "a polygon of fewer than three points": entry(segmentation=[[1, 1, 5, 5]]),
    "a polygon far outside of its image": entry(segmentation=[[1, 1, 1e9, 1, 1, 5]]),
    "a mask without pixels": entry(segmentation=[[20, 20, 30, 20, 30, 30]]),
    "a mask of another size than its image": entry(segmentation=COLUMNS | {"size": [12, 8]}),
    "damaged run lengths": entry(segmentation=COLUMNS | {"counts": [16, 16]}),
    "damaged run lengths ": entry(segmentation=COLUMNS | {"counts": "0"}),
    "damaged run lengths  ": entry(segmentation=COLUMNS | {"counts": None}),
    "a segmentation that is neither polygons nor run lengths": entry(segmentation=SQUARE),
    "no segmentation": entry(segmentation=None),
    "an image_id that is not listed": entry(image_id=99),
    "no fields": None,
}


@pytest.mark.parametrize("fault", COUNTED)
def test_an_annotation_that_cannot_be_used_is_counted_in_one_line(tmp_path, caplog, fault):
    coco(tmp_path, annotations=[entry(), COUNTED[fault], entry(bbox=[10, 6, 4.5, 4]), COUNTED[fault]])
    with caplog.at_level(logging.WARNING):
        source = training_images(config_of("coco", tmp_path))
    first = 1 if COUNTED[fault] is None else 5
    (line,) = [record.getMessage() for record in caplog.records]
    file = tmp_path / "annotations" / "instances_train.json"
    assert line == f"'{file}': 2 of 4 annotations cannot be used: 2 with {fault.strip()} (first id {first})"
    assert len(source) == 1 and source.encoded(0)[1].boxes.tolist() == [
        [1, 1, 5, 5],
        [10, 6, 12, 8],
    ]  # cut at the border


IMAGE, CATEGORY = {"id": 10, "file_name": "0.png", "height": 8, "width": 12}, {"id": 7, "name": "cat"}
REFUSED = {
    "has category_id 9 in annotations[0]: expected one of its categories, 7, 3": dict(
        annotations=[entry(category_id=9)]
    ),
    "has no list 'categories': expected COCO's instances": dict(categories=None),
    "has height 0 in images[0]: expected a whole number, at least 1": dict(images=[IMAGE | {"height": 0}]),
    "has file_name None in images[0]: expected a text": dict(images=[IMAGE | {"file_name": None}]),
    "has id 10 twice in images: expected every id once": dict(images=[IMAGE, IMAGE]),
    "has 2 categories 'cat': expected every name once": dict(categories=[CATEGORY, CATEGORY | {"id": 3}]),
    "1 of 1 annotations cannot be used: 1 with no fields (first id 0)": dict(annotations=[None]),
    "lists no images: expected at least one": dict(images=[], annotations=[]),
    "1 of the 1 images of ": dict(images=[IMAGE | {"file_name": "gone.png"}], annotations=[]),
    "split 'train' has no image with an object": dict(annotations=[]),
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, line):
    coco(tmp_path, **REFUSED[line])
    with refused(line):
        training_images(config_of("coco", tmp_path))


def test_what_is_no_file_of_coco_is_refused(tmp_path):
    coco(tmp_path)
    with refused("no annotations of split 'val': expected one of annotations/instances_val.json, annotations/val.json"):
        open_objects(config_of("coco", tmp_path), "val")
    with refused("data.source is 'digits': expected one whose images have objects, 'coco', 'scenes'"):
        training_images(config_of("digits"))
    with refused("images of many objects: expected one of images with one label each"):
        training_images(config_of()).source.labelled(True)
    (tmp_path / "annotations" / "instances_train.json").write_text('{"images": [')
    with refused("is cut short or damaged: expected COCO's instances"):
        training_images(config_of("coco", tmp_path))
    with refused("data.path is '': expected a directory with annotations/instances_SPLIT.json"):
        config_of("coco")


def test_instance_masks_become_a_file_of_coco(tmp_path, capsys):
    """In the layout of Penn-Fudan: objects are numbers in the pixels of a palette."""
    masks = np.zeros((2, 8, 12), np.uint8)
    masks[0, 1:4, 2:7], masks[0, 5:, 9:], masks[1, :, 4] = 1, 2, 3
    for folder in ("PNGImages", "PedMasks"):
        (tmp_path / folder).mkdir()
    for i, mask in enumerate(masks):
        (tmp_path / "PNGImages" / f"{i}.png").write_bytes(encode(picture(i, 8, 12)))
        image = PIL.Image.fromarray(mask)
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 0])
        image.save(tmp_path / "PedMasks" / f"{i}_mask.png")
    options = ["--path", str(tmp_path), "--images", "PNGImages", "--masks", "PedMasks", "--name", "pedestrian"]
    convert(["", *options])
    assert capsys.readouterr().out.endswith("instances_all.json: 2 images, 3 objects\n")
    source = open_objects(config_of("coco", tmp_path, split="all"), "all")
    for index in range(2):
        image, (_, boxes, labels, found) = source.encoded(index)
        mask = masks[int(image.decode().mean())]
        np.testing.assert_array_equal(found, [mask == value for value in np.unique(mask[mask > 0])])
        assert set(labels) == {1} and source.classes == ("pedestrian",)
        assert boxes.tolist() == ([[2, 1, 7, 4], [9, 5, 12, 8]] if len(found) == 2 else [[4, 0, 5, 8]])
    (tmp_path / "PedMasks" / "1_mask.png").unlink()
    with pytest.raises(SystemExit, match=r"1\.png' has no mask: expected .*PedMasks/1\.png' or .*1_mask\.png'"):
        convert(["", *options])


def test_a_mask_is_found_by_the_whole_name_of_its_image(tmp_path):
    """Of frame.1.png neither the mask of frame.png nor that of frame.2.png; a mask of 1 bit is one object."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number, end in enumerate(("", ".1_mask", ".2")):
        mask = np.zeros((8, 12), bool)
        mask[:, : number + 1] = True
        PIL.Image.fromarray(mask).save(tmp_path / "masks" / f"frame{end}.png")
        if number:
            (tmp_path / "images" / f"frame.{number}.png").write_bytes(encode(picture(number, 8, 12)))
    found = instances(tmp_path, "images", "masks", "x")["annotations"]
    assert [(each["image_id"], each["area"]) for each in found] == [(1, 16), (2, 24)]


def test_masks_belong_to_upright_photographs(tmp_path):
    """Every view turns a photograph by its EXIF data; the mask is that of what people see."""
    mask, tags = np.zeros((12, 8), np.uint8), PIL.Image.Exif()
    mask[:5, 2:], tags[274] = 1, 6
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    PIL.Image.fromarray(picture(1, 8, 12)).save(tmp_path / "images" / "a.jpg", exif=tags)
    PIL.Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    convert(["", "--path", str(tmp_path), "--images", "images", "--masks", "masks", "--name", "x"])
    image, objects = open_objects(config_of("coco", tmp_path, split="all"), "all").encoded(0)
    assert image.decode().shape[:2] == objects.size == (12, 8) and objects.boxes.tolist() == [[2, 0, 8, 5]]


@pytest.mark.parametrize("file, damage", [("images/a.npy", b"\x93NUMPY"), ("masks/a.png", None)])
def test_a_file_that_pillow_cannot_read_is_named(tmp_path, file, damage):
    for path, content in (("images/a.png", encode(picture(1, 8, 12))), ("masks/a.png", encode(picture(1, 8, 12, 1)))):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(content)
    (tmp_path / file).write_bytes(damage or (tmp_path / file).read_bytes()[:60])
    with pytest.raises(SystemExit, match=rf"{file}' cannot be read as an image: "):
        convert(["", "--path", str(tmp_path), "--images", "images", "--masks", "masks", "--name", "x"])


def test_images_are_looked_for_in_each_folder(tmp_path):
    """All images count, not the first: the folder with the fewest missing ones is named."""
    coco(tmp_path)
    (tmp_path / "train").rename(tmp_path / "images")
    whole = training_images(config_of("coco", tmp_path))
    assert len(whole) == 4
    (tmp_path / "train").mkdir()
    first = whole.source.name_of(0)
    (tmp_path / "images" / first.rpartition("/")[2]).rename(tmp_path / "train" / first.rpartition("/")[2])
    with refused(
        f"1 of the 6 images of '{tmp_path / 'annotations/instances_train.json'}' are missing: expected '{first}'"
    ):
        training_images(config_of("coco", tmp_path))


# Views


@pytest.mark.parametrize("size, shorter, canvas, expected", [
    ((480, 640), 800, (800, 1344), (800, 1067)),
    ((480, 640), 480, (800, 1344), (480, 640)),
    ((400, 1000), 800, (800, 1344), (538, 1344)),
    ((640, 480), 800, (1344, 1344), (1067, 800)),
    ((640, 480), 800, (800, 1344), (800, 600)),
    ((1, 3000), 800, (800, 1344), (1, 1344)),
])  # fmt: skip
def test_an_image_is_resized_by_its_shorter_side_and_fits_on_the_canvas(size, shorter, canvas, expected):
    assert fitted(size, shorter, canvas) == expected


def test_a_shorter_side_that_no_image_can_get_is_refused():
    config = config_of(image_size=(32, 48), detect=dict(shorter_sides=(24, 40), anchor_sizes=(8, 16, 32, 64)))
    values, grid = flatten(config), token_grid(config)
    with refused("detect.shorter_sides is (24, 40): expected at most the shorter side of image_size, (32, 48)"):
        check_detection(values, grid)
    check_detection(values | {"detect.shorter_sides": (24, 32)}, grid)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_masks_lie_where_the_view_shows_the_objects(flip):
    """Scenes at random sizes, flipped or not: what is bright in the view is what the masks in their boxes cover."""
    detect = dict(shorter_sides=(96, 128, 160))
    source, config = training_images(config_of()), config_of(image_size=(160, 192), detect=detect, flip=flip)
    view, sizes, flips = ObjectView.from_config(config, training=True), set(), 0
    for index in range(16):
        image, objects = source.encoded(index)
        canvas, (height, width), boxes, labels, masks, valid = view(image, objects, index)
        assert canvas.shape == (160, 192, 3) and not canvas[height:].any() and not canvas[:, width:].any()
        assert (
            valid.sum() == len(objects.labels) and (labels[valid] == objects.labels).all() and not labels[~valid].any()
        )
        sizes.add(int(height))
        flips += boxes[0, 0] != np.float32(objects.boxes[0, 0] * height / 128)
        drawn = np.zeros((height, width), bool)
        for (x0, y0, x1, y1), mask in zip(boxes[valid], masks[valid]):
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            rows, columns = (np.arange(side) + 0.5 for side in (height, width))
            row, column = ((rows - y0) / (y1 - y0) * MASK_SIDE), ((columns - x0) / (x1 - x0) * MASK_SIDE)
            rows, columns = ((at >= 0) & (at < MASK_SIDE) for at in (row, column))
            drawn[np.ix_(rows, columns)] |= mask[np.ix_(row[rows].astype(int), column[columns].astype(int))] > 0
        bright = canvas[:height, :width, 0] > (DARK + BRIGHT) / 2
        assert (drawn & bright).sum() / (drawn | bright).sum() > 0.9
    assert sizes == {96, 128, 160} and (0 < flips < 16 if flip else flips == 0)


def test_a_mask_in_its_box_is_the_share_of_each_cell():
    """Against 40 x 40 points a cell, of a box at fractions of pixels."""
    random = np.random.default_rng(0)
    mask = (random.random((37, 50)) < 0.5).astype(np.uint8)
    for box in ([3.3, 2.75, 48.5, 36.1], [10, 10, 14, 13.5], [0, 0, 50, 37]):
        ours, points = covered(mask, np.array(box, np.float64)), (np.arange(40 * MASK_SIDE) + 0.5) / (40 * MASK_SIDE)
        x, y = (box[i] + points * (box[i + 2] - box[i]) for i in (0, 1))
        theirs = mask[np.ix_(y.astype(int), x.astype(int))].reshape(MASK_SIDE, 40, MASK_SIDE, 40).mean(axis=(1, 3))
        np.testing.assert_allclose(ours, theirs, atol=0.03)
    np.testing.assert_allclose(covered(np.ones((9, 9), np.uint8), np.array([0.5, 1.25, 9, 8.1])), 1, atol=1e-12)


def test_the_largest_objects_are_kept(tmp_path, caplog):
    boxes = [[0, 0, 1 + i, 1 + i] for i in (2, 5, 1, 4, 3)]
    coco(tmp_path, annotations=[entry(bbox=box, segmentation=COLUMNS) for box in boxes])
    config = config_of("coco", tmp_path, image_size=(8, 16), detect=dict(max_objects=2), flip=False)
    with caplog.at_level(logging.WARNING):
        (batch,) = take(object_batches(config, training_images(config)), 1)
    assert batch.targets.boxes[0].tolist() == [[0, 0, 6, 6], [0, 0, 5, 5]] and batch.targets.valid.all()
    open_objects(config_of(detect=dict(max_objects=4)), "train", training=True)
    for count, most in (("1", 2), ("100,000", 4)):
        line = f"up to {count} images of 'train' have more objects than detect.max_objects, {most}: the largest ones"
        assert line in caplog.text


def test_an_image_of_another_size_than_its_annotations_is_damaged(tmp_path):
    coco(tmp_path)
    (tmp_path / "train" / "3.png").write_bytes(encode(picture(3, 12, 8)))
    config, undecodable = config_of("coco", tmp_path, eval_split="train"), Undecodable(tmp_path)
    batches = list(object_eval_batches(config, training_images(config), undecodable=undecodable))
    assert sum(batch.undecodable.sum() for batch in batches) == 1 and sum(batch.valid.sum() for batch in batches) == 3
    (line,) = (tmp_path / "undecodable.txt").read_text().splitlines()
    assert line.endswith("3.png\thas 12 x 8 pixels: expected 8 x 12, (height, width), as its annotations have")


# Batches


@pytest.fixture(params=["scenes", "coco"])
def config(request, tmp_path):
    if request.param == "coco":
        coco(tmp_path)
    return config_of(
        request.param, tmp_path if request.param == "coco" else "", detect=dict(shorter_sides=(16, 24, 32))
    )


@pytest.mark.parametrize("start, workers", [(0, 0), (3, 0), (2, 2)])
def test_a_batch_depends_on_its_step_alone(config, start, workers):
    source = training_images(config)
    whole = take(object_batches(config, source), 6)
    other = ConfigDict(config).copy_and_resolve_references()
    other.data.workers = workers
    assert_equal(take(object_batches(other, source, start), 6 - start), whole[start:])
    own = take(object_batches(config, source, own=range(1, 3)), 6)  # of one of several processes
    assert_equal(own, [jax.tree.map(lambda rows: rows[1:3], batch) for batch in whole])
    assert all(batch.valid.all() and batch.targets.valid.any(axis=1).all() for batch in whole)


def test_every_image_comes_once_an_epoch_and_once_in_an_evaluation(tmp_path):
    coco(tmp_path, count=10)
    config = config_of("coco", tmp_path, image_size=(8, 16), eval_split="val")
    coco(tmp_path, "val", count=10)
    order = [
        int(image[0, 0, 0])
        for batch in take(object_batches(config, training_images(config)), 4)
        for image in batch.images
    ]
    assert sorted(order[:8]) == sorted(order[8:]) == list(range(2, 10)) and order[:8] != order[8:]
    source = open_objects(config, "val")
    batches = list(object_eval_batches(config, source))
    valid = np.concatenate([batch.valid for batch in batches])
    values = np.concatenate([batch.images[:, 0, 0, 0] for batch in batches])[valid]
    assert values.tolist() == [source.image_id(index) - 10 for index in range(10)] and valid.sum() == 10
    assert all((batch.sizes[batch.valid] == (8, 12)).all() for batch in batches)
    config.optim.accumulation = 2
    parts = list(object_eval_batches(config, source))
    assert {len(part.images) for part in parts} == {len(batches[0].images) // 2}
    whole, joined = (jax.tree.map(lambda *rows: np.concatenate(rows)[:10], *each) for each in (batches, parts))
    assert_equal([joined], [whole])


def test_a_blank_batch_has_the_shapes_of_others(config):
    (batch,) = take(object_batches(config, training_images(config)), 1)
    shapes = [
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (batch, blank_object_batch(config))
    ]
    assert shapes[0] == shapes[1]
