"""Mask R-CNN (arXiv 1703.06870): objects in images, with boxes, classes and masks.

Read in the order of the data: detector (the whole), pyramid (levels of features), anchors and proposals (boxes that may
hold an object), roi_align (their features), heads (their classes, boxes and masks). Parts of them: convolutions, boxes
(overlaps and codes), nms (suppression), matching (which object a box stands for), losses. Semantics and numbers are
torchvision's, so that weights are the same in both.
"""

from greenjax.models.detection.detector import Detector
from greenjax.models.detection.heads import Detections

__all__ = ["Detections", "Detector"]
