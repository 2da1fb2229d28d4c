"""Trains a small Mask R-CNN on scenes of digits, from the encoder of scenes.py.

    python -m greenjax.main --config configs/detect_digits.py --workdir runs/detect_digits --config.init=runs/scenes
    CONFIG=configs/detect_digits.py bash launch/quickstart.sh        # the pre-training, this, and the same from scratch

Hardware: two CPU cores. Time and result: docs/detection.md.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "detect"
    config.image_size = 128
    config.model.name = "swin_t"
    config.model.border = "pad"
    config.model.in_channels = 1
    config.model.patch = 4
    config.model.window = 4
    config.model.embed_dim = 64
    config.model.depths = (2, 2)
    config.model.num_heads = (4, 8)
    config.detect.fpn_dim = 64
    config.detect.anchor_sizes = (16, 32, 64)  # pixels: digits have about 15 to 55
    config.detect.pre_nms = (200, 100)
    config.detect.post_nms = (200, 100)
    config.detect.rpn_samples = 64
    config.detect.box_samples = 64
    config.detect.max_detections = 20
    config.detect.max_objects = 6

    config.steps = 250
    config.data.batch_size = 8
    config.optim.base_lr = 3.2e-2  # at a batch of 256; 1e-3 at 8
    config.optim.warmup_steps = 25
    config.optim.warmup_lr = 0.0
    config.optim.b2 = 0.999

    config.data.source = "scenes"
    config.data.split = "train"
    config.data.eval_split = "test[:500]"
    config.data.workers = 0
    config.data.flip = False  # a mirrored digit is another shape
    config.data.mean = (0.305,)
    config.data.std = (0.376,)

    config.log.every = 20
    return config
