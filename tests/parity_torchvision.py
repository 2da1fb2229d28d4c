"""Compares whole detectors with torchvision's Mask R-CNN: what they detect, their pyramids and their training losses.

    PYTHONPATH=. python tests/parity_torchvision.py

Not collected by pytest: torchvision asks for another torch than the project's environments have. Random weights go out
by save_torch and into torchvision's model by a strict load, and come back by load_torch. Samplers take every anchor and
every box, so that no random draw differs. A line for each figure; exit code 1 where one exceeds its tolerance.
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from small import small_config

import greenjax
from benchmarks.torch_maskrcnn import mask_rcnn
from greenjax.interop.weights import flat_weights, put_weights

CASES = (((256, 256), 4), ((200, 344), 7))  # image size, window
WORKDIR = Path(tempfile.mkdtemp())
TOLERANCES = dict(pyramid=1e-5, boxes=1e-2, scores=1e-4, labels=0, masks=1e-3, losses=1e-4, back=0)
CLASSES = 5


def main() -> int:
    worst = 0.0
    for size, window in CASES:
        ours = detector(size, window)
        theirs = mask_rcnn(ours.config).eval()
        path = WORKDIR / "detector.pth"
        assert greenjax.save_torch(ours, path, "torchvision") == []
        theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
        for name, difference in compare(ours, theirs, path).items():
            kind = name.partition(",")[0]
            print(f"{size[0]} x {size[1]}, window {window}: {name:28} {difference:.1e} (at most {TOLERANCES[kind]:g})")
            worst = max(worst, float(not difference <= TOLERANCES[kind]))
    return int(worst)


def detector(size: tuple[int, int], window: int):
    """A small detector whose scores differ, so that no near tie decides an order."""
    everything = 1 << 16
    model = greenjax.build(
        small_config(
            task="detect",
            image_size=size,
            model__border="pad",
            model__window=window,
            model__depths=(2, 2, 2, 2),
            model__num_heads=(1, 2, 4, 8),
            model__patch=4,
            model__in_channels=3,
            model__num_classes=CLASSES,
            data__mean=(0.0,) * 3,
            data__std=(1.0,) * 3,
            detect__fpn_dim=32,
            detect__pre_nms=200,
            detect__post_nms=150,
            detect__max_detections=20,
            detect__rpn_samples=everything,
            detect__box_samples=everything,
        )
    )
    rng = np.random.default_rng(5)

    def draw(name: str, value: np.ndarray) -> np.ndarray:
        if not name.endswith("kernel"):
            return (0.1 * rng.normal(size=value.shape) + name.endswith("scale")).astype(np.float32)
        gain = {"cls_logits": 2, "cls_score": 1, "bbox_pred": 0.5}.get(name.split("/")[-2], 1.4)
        return (rng.normal(size=value.shape) * gain / np.sqrt(np.prod(value.shape[:-1]))).astype(np.float32)

    put_weights(model, {name: draw(name, value) for name, value in flat_weights(model).items()})
    return model


def compare(ours, theirs, path: Path) -> dict[str, float]:
    """The largest difference of each kind; of the pyramid and of losses as a share of the largest."""
    rng = np.random.default_rng(0)
    h, w = ours.config.image_size
    images = rng.normal(size=(2, h, w, 3)).astype(np.float32)
    pixels = [torch.tensor(image).permute(2, 0, 1) for image in images]
    targets = [objects(rng, h, w) for _ in images]
    found = {}
    with torch.no_grad():
        levels = theirs.backbone(torch.stack(pixels)).values()
        expected = theirs(pixels)
    sizes = jnp.full((2, 2), jnp.asarray([h, w]), jnp.int32)
    for i, (a, b) in enumerate(zip(jax.jit(ours.pyramid)(images, sizes), levels, strict=True)):
        found[f"pyramid, level {i + 1}"] = share(a, b.permute(0, 2, 3, 1))
    out = jax.tree.map(np.asarray, ours(images))
    counts = [len(each["scores"]) for each in expected]
    assert [int(n) for n in out.valid.sum(axis=1)] == counts, (out.valid.sum(axis=1), counts)
    print(f"  {counts} detections, scores {[f'{s:.2f}' for s in expected[0]['scores'][:6].tolist()]} ...")
    for name in ("boxes", "scores", "labels"):
        pairs = zip(getattr(out, name), expected, counts)
        found[name] = max(float(np.abs(a[:n] - b[name].numpy()).max()) for a, b, n in pairs)
    cells = raw_masks(theirs, pixels, expected)
    found["masks"] = max(float(np.abs(a[:n] - b).max()) for a, b, n in zip(out.masks, cells, counts))
    losses = ours.losses(images, targets)
    theirs.train()
    wanted = theirs(pixels, [{name: torch.tensor(value) for name, value in each.items()} for each in targets])
    for name, value in wanted.items():
        found[f"losses, {name}"] = abs(float(losses[name]) - value.item()) / max(abs(value.item()), 1)
    theirs.eval()
    again = greenjax.load_torch(path, ours.config, "torchvision")
    before, after = flat_weights(ours), flat_weights(again)
    found["back, every bit"] = max(float(np.abs(before[name] - after[name]).max()) for name in before)
    return found


def raw_masks(theirs, pixels, expected) -> list[np.ndarray]:
    """The 28 x 28 probabilities of torchvision's detections, before it pastes them into the image."""
    boxes, labels = [each["boxes"] for each in expected], [each["labels"] for each in expected]
    with torch.no_grad():
        batch, _ = theirs.transform(pixels)
        heads = theirs.roi_heads
        features = heads.mask_roi_pool(theirs.backbone(batch.tensors), boxes, batch.image_sizes)
        masks = heads.mask_predictor(heads.mask_head(features)).sigmoid()
    index = torch.cat(labels)
    masks = masks[torch.arange(len(masks)), index].numpy()
    return np.split(masks, np.cumsum([len(each) for each in boxes])[:-1])


def objects(rng: np.random.Generator, h: int, w: int) -> dict[str, np.ndarray]:
    """A few random ellipses: boxes, labels and masks as large as the image."""
    n = 4
    corner = rng.uniform(0, 0.5, size=(n, 2)) * (w, h)
    side = rng.uniform(0.15, 0.5, size=(n, 2)) * (w, h)
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    y, x = np.mgrid[:h, :w][:, None] + 0.5
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    masks = ((x - centre[:, 0, None, None]) / half[:, 0, None, None]) ** 2
    masks = masks + ((y - centre[:, 1, None, None]) / half[:, 1, None, None]) ** 2 <= 1
    return dict(boxes=boxes, labels=rng.integers(1, CLASSES + 1, n), masks=masks.astype(np.uint8))


def share(a, b) -> float:
    """The largest difference as a share of the largest value."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


if __name__ == "__main__":
    sys.exit(main())
