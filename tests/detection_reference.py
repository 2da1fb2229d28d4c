"""The pieces of a detector by their definitions, in NumPy, one box at a time."""

import math

import numpy as np


def overlap(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    union = area(a) + area(b) - both
    return both / union if union > 0 else 0.0


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def survivors(boxes, scores, groups, valid, threshold, limit):
    """Greedy suppression: the best box that is left stays, and takes those away that overlap it too much."""
    left = sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i))
    kept = []
    while left and len(kept) < limit:
        best, *left = left
        kept.append(best)
        left = [i for i in left if groups[i] != groups[best] or overlap(boxes[i], boxes[best]) <= threshold]
    return kept


def bilinear(image, y, x):
    """The value between four pixels; the border up to one pixel beyond it, and zero further away."""
    h, w = image.shape[:2]
    if not (-1 <= y <= h and -1 <= x <= w):
        return np.zeros(image.shape[2:])
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    dy, dx = y - y0, x - x0
    upper = (1 - dx) * image[y0, x0] + dx * image[y0, x1]
    return (1 - dy) * upper + dy * ((1 - dx) * image[y1, x0] + dx * image[y1, x1])


def roi_align(image, box, cells, samples=None):
    """Means over samples x samples positions in each of cells x cells; by default as many as a cell has pixels."""
    (x0, y0), (x1, y1) = box[:2], box[2:]
    height, width = max(y1 - y0, 1) / cells, max(x1 - x0, 1) / cells
    out = np.zeros((cells, cells, *image.shape[2:]))
    for p in range(cells):
        for q in range(cells):
            rows, columns = samples or math.ceil(height), samples or math.ceil(width)
            values = [
                bilinear(image, y0 + (p + (i + 0.5) / rows) * height, x0 + (q + (j + 0.5) / columns) * width)
                for i in range(rows)
                for j in range(columns)
            ]
            out[p, q] = np.mean(values, axis=0)
    return out


def level(box, first, last):
    return min(max(math.floor(4 + math.log2(math.sqrt(area(box)) / 224) + 1e-6), first), last)


def pasted(mask, box, size):
    """Every pixel of the image reads the mask with a border of zeros, interpolated linearly."""
    m = len(mask)
    padded = np.pad(mask, 1)
    centre, half = (
        [(box[i] + box[i + 2]) / 2 for i in (0, 1)],
        [(box[i + 2] - box[i]) / 2 * (m + 2) / m for i in (0, 1)],
    )
    x0, y0, x1, y1 = (int(c + s * h) for s in (-1, 1) for c, h in zip(centre, half))
    width, height = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    out = np.zeros(size)
    for y in range(max(y0, 0), min(y1 + 1, size[0])):
        for x in range(max(x0, 0), min(x1 + 1, size[1])):
            at = [
                min(max((offset + 0.5) * (m + 2) / length - 0.5, 0), m + 1)
                for offset, length in ((y - y0, height), (x - x0, width))
            ]
            out[y, x] = bilinear(padded, *at)
    return out


def matched(boxes, objects, low, high, best_too):
    """For each box the object, and 1, 0 or -1: an object, background, neither."""
    if not len(objects):
        return [0] * len(boxes), [0] * len(boxes)
    table = np.array([[overlap(box, each) for each in objects] for box in boxes])
    labels = np.where(table.max(axis=1) >= high, 1, np.where(table.max(axis=1) < low, 0, -1))
    if best_too:
        for column in table.T:
            labels[column == column.max()] = 1
    return table.argmax(axis=1), labels
