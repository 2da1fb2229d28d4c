"""Trains Mask R-CNN with Swin-B on COCO 2017 (arXiv 2205.13515, section 4.1, Table 3: box AP 50.0, mask AP 44.1).

    python -m greenjax.main --config configs/detect_swin_b.py --workdir runs/detect_swin_b \
        --config.data.path=/data/coco --config.init=runs/swin_b

`init` is the workdir of the pre-training, or a file of weights; without it the same recipe trains from scratch.
docs/detection.md says how COCO gets to /data/coco. Hardware, time and result: not measured yet.
--config.model.dtype=bfloat16 halves the activations on a GPU, --config.model.remat and --config.optim.accumulation=N
fit an update into less memory.

Batch, rate, weight decay and schedule are the paper's: 36 epochs ("3x"), the rate falls tenfold after 27 and 33. The
"1x" schedule has 12 epochs: --config.steps=88000. Warm-up, scales and stochastic depth are those of mmdetection's Mask
R-CNN with Swin, whose further crops are left out. An image is padded to a square, so that one program serves all.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "detect"
    config.model.name = "swin_b"
    config.model.border = "pad"
    config.model.drop_path = 0.2
    config.model.num_classes = 80
    config.image_size = 1344  # pixels: no side of an image becomes longer
    config.detect.shorter_sides = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # pixels

    config.steps = 264000  # 36 epochs of the 117,266 images with objects
    config.data.batch_size = 16
    config.optim.base_lr = 1.6e-3  # at a batch of 256; 1e-4 at 16
    config.optim.schedule = "steps"
    config.optim.steps_at = (0.75, 11 / 12)
    config.optim.warmup_steps = 1000
    config.optim.warmup_lr = 1.6e-6
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.clip = 0.0

    config.data.source = "coco"
    config.data.path = "data/coco"  # with annotations/ and the folders of images
    config.data.split = "train2017"
    config.data.eval_split = "val2017"
    config.log.eval_every = 22000  # steps: 3 epochs
    return config
