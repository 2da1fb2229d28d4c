"""The accuracy of a detector: COCO's numbers for what it finds, and pictures of it."""

import math
from collections import namedtuple
from itertools import count

import cv2
import numpy as np
import pytest
from flax import nnx
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_data import SQUARE, coco

from greenjax.config import flatten, resolve
from greenjax.data.detection.batches import object_eval_batches
from greenjax.data.open import open_objects
from greenjax.errors import InputError
from greenjax.evaluation.detection.precision import average_precision
from greenjax.evaluation.detection.results import Found, by_image, collect, write
from greenjax.evaluation.pictures.detections import LEAST_SCORE, draw_detections
from greenjax.tasks import detections
from greenjax.tasks.detections import DetectionJudge
from greenjax.training.sharding import make_mesh

Output = namedtuple("Output", "boxes scores labels masks valid")  # as a detector's


def config_of(source, path="", image_size=(32, 48), **data):
    model = dict(patch=2, depths=(2, 2, 2), num_heads=(1, 2, 4), embed_dim=8, window=4, in_channels=3)
    data = dict(source=source, path=str(path), batch_size=4, workers=0, split="train", eval_split="val") | data
    return resolve(
        {"task": "finetune", "steps": 1, "image_size": image_size, "model": model, "data": data}
        | {"detect.max_objects": 8}
    )


def detector(batches, noise=0.0, empty=False):
    """A detector that knows the truth of `batches`, and errs by `noise` in boxes, labels and scores."""
    random, step = np.random.default_rng(0), count()

    def forward(params, images, sizes):
        targets = batches[next(step)].targets
        boxes = targets.boxes + noise * random.normal(size=targets.boxes.shape).astype(np.float32)
        scores = 1 - random.random(targets.valid.shape, np.float32)
        labels = np.where(random.random(targets.labels.shape) < noise / 10, 1, targets.labels)
        masks = [[cv2.resize(mask.astype(np.float32), (28, 28)) for mask in row] for row in targets.masks]
        return Output(boxes, scores, labels, np.array(masks), targets.valid & (not empty))

    return forward


def found_in(config, split="val", classes=(), **options):
    source = open_objects(config, split, classes)
    batches = list(object_eval_batches(config, source))
    return collect(detector(batches, **options), None, batches, lambda leaf: leaf, source)


def stats(truth, detections, kind):
    evaluation = COCOeval(truth, truth.loadRes(str(detections)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:6].tolist()


def test_average_precision_is_that_of_pycocotools_on_the_files(tmp_path):
    """To the last digit: on the file that is written, and on the annotations as the user has them, with crowds."""
    coco(tmp_path)
    coco(tmp_path, "val", count=11)
    found = found_in(config_of("coco", tmp_path), noise=1.0)
    write(tmp_path, "val", found)
    metrics = average_precision(found)
    for name in ("detections_val.truth.json", "annotations/instances_val.json"):
        truth = COCO(tmp_path / name)
        for kind, ours in (("bbox", "box"), ("segm", "mask")):
            theirs = stats(truth, tmp_path / f"detections_val.{kind}.json", kind)
            mine = [value for key, value in metrics.items() if key.startswith(ours)]
            assert [-1 if math.isnan(value) else value for value in mine] == theirs
            assert 0 < theirs[0] < 0.9 and len(mine) == 6
    assert {each["iscrowd"] for each in found.ground_truth["annotations"]} == {0, 1}


@pytest.mark.parametrize("image_size", [(160, 192), (96, 192), (128, 64)])
def test_a_perfect_detector_has_a_precision_of_one(image_size):
    """Boxes and masks come back from resized images to the pixels of the stored ones."""
    config = config_of("scenes", image_size=image_size, eval_split="test[:10]")
    found = found_in(config, "test[:10]")
    metrics = average_precision(found)
    assert (
        metrics["box_ap"] == pytest.approx(1) and metrics["mask_ap50"] == pytest.approx(1) and metrics["mask_ap"] > 0.8
    )
    assert math.isnan(metrics["box_ap_large"]) and len(found.boxes) == len(found.ground_truth["annotations"])
    assert [image["id"] for image in found.ground_truth["images"]] == list(range(10))  # two rows are padding


def test_damaged_images_and_unknown_classes_are_left_out(tmp_path):
    coco(tmp_path)
    only = [{"id": 1, "image_id": 12, "category_id": 7, "bbox": [1, 1, 4, 4], "area": 16, "segmentation": [SQUARE]}]
    coco(tmp_path, "val", annotations=only, categories=[{"id": 7, "name": "cat"}])
    (tmp_path / "val" / "4.png").write_bytes(b"")
    found = found_in(config_of("coco", tmp_path), classes=("dog", "cat"))
    assert sorted(image["id"] for image in found.ground_truth["images"]) == [10, 11, 12, 13, 15]
    assert [each["category_id"] for each in found.boxes] == [7]
    assert average_precision(found)["box_ap"] == pytest.approx(1)
    assert found.boxes[0]["bbox"] == pytest.approx([1, 1, 4, 4])
    wrong = found_in(config_of("coco", tmp_path), classes=("dog", "cat"), noise=10.0)
    assert not wrong.boxes and average_precision(wrong)["box_ap"] == 0  # all are taken for dogs


def test_nothing_found_is_a_precision_of_zero_and_no_images_an_error(tmp_path):
    coco(tmp_path)
    coco(tmp_path, "val", count=3)
    config = config_of("coco", tmp_path)
    assert average_precision(found_in(config, empty=True))["mask_ap"] == 0
    for file in (tmp_path / "val").glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="can"):
        found_in(config)


def test_pictures_show_classes_that_the_images_do_not_have(tmp_path):
    """A head may have more outputs than the set has classes: the others are numbers."""
    config = resolve(flatten(config_of("scenes", image_size=(160, 192))) | {"model.num_classes": 12, "mesh.data": 1})
    source = open_objects(config, "test[:4]")
    (batch,) = object_eval_batches(config, source)
    found = detector([batch])(None, None, None)
    judge = DetectionJudge(config, nnx.graphdef(nnx.Module()), make_mesh(config))
    judge.forward = lambda *_: found._replace(scores=np.ones_like(found.scores), labels=np.full_like(found.labels, 12))
    judge.draw(tmp_path / "detections.png", {}, source)
    assert (tmp_path / "detections.png").stat().st_size > 1000


def test_pictures_show_six_images_whatever_the_batch(tmp_path, monkeypatch):
    """Fewer where there are no more: the last batch is filled up with black images, which are not shown."""
    shown = []
    monkeypatch.setattr(detections, "draw_detections", lambda _, *rows: shown.append(rows))
    parts = {"optim.accumulation": 2, "mesh.data": 1, "model.num_classes": 10}
    config = resolve(flatten(config_of("scenes", image_size=(160, 192))) | parts)
    for split, expected in (("test[:9]", 6), ("test[:3]", 3)):
        source = open_objects(config, split)
        batches = list(object_eval_batches(config, source))
        judge = DetectionJudge(config, nnx.graphdef(nnx.Module()), make_mesh(config))
        judge.forward = detector(batches)
        judge.draw(tmp_path / "detections.png", {}, source)
        images, _, truth, found, _ = shown.pop()
        np.testing.assert_array_equal(images, np.concatenate([batch.images for batch in batches])[:expected])
        for row, each in enumerate(found):
            np.testing.assert_array_equal(each.boxes, truth.boxes[row][truth.valid[row]])
        assert len(found) == expected


def test_pictures_show_objects_and_sure_detections(tmp_path):
    config = config_of("scenes", image_size=(160, 192), eval_split="test")
    source = open_objects(config, "test[:4]")
    (batch,) = object_eval_batches(config, source)
    output = detector([batch])(None, None, None)
    found = [each for _, each in by_image(output, batch.sizes, batch.valid)]
    draw_detections(tmp_path / "sure.png", *batch[:3], found, source.classes)
    unsure = [Found(each.boxes, each.scores * (LEAST_SCORE / 2), each.labels, each.masks) for each in found]
    draw_detections(tmp_path / "unsure.png", *batch[:3], unsure, source.classes)
    sure, unsure = (cv2.imread(str(tmp_path / name)) for name in ("sure.png", "unsure.png"))
    half = sure.shape[1] // 4  # of the first pair
    assert sure.shape == unsure.shape and (sure[24:, :half] == unsure[24:, :half]).all()
    coloured = [np.ptp(image[24:, half : 2 * half].astype(int), axis=2) > 40 for image in (sure, unsure)]
    assert coloured[0].sum() > 200 and not coloured[1].any()
