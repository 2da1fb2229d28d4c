"""Probes Swin-B on ImageNet-1K: a linear head learns on the frozen encoder (arXiv 2111.06377, appendix A.1).

    python -m greenjax.main --config configs/linear_swin_b.py --workdir runs/linear --config.init=runs/swin_b

MAE's recipe: batch norm without affine before the head, LARS, 90 epochs, no weight decay, random crops and flips only.
Another `init` brings its own model. Hardware, time and result: not measured yet.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "linear"
    config.model.name = "swin_b"
    config.image_size = 224

    config.epochs = 90
    config.data.batch_size = 16384
    config.optim.name = "lars"
    config.optim.base_lr = 0.1  # at a batch of 256; 6.4 at 16384
    config.optim.warmup_epochs = 10
    config.optim.warmup_lr = 0.0
    config.optim.weight_decay = 0.0
    config.optim.b1 = 0.9  # momentum
    config.optim.clip = 0.0
    config.optim.label_smoothing = 0.0

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    config.data.eval_crop = 0.875  # the centre 224 of 256 pixels
    config.data.crop_scale = (0.08, 1.0)
    return config
