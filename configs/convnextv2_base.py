"""Pre-trains ConvNeXt V2-Base on ImageNet-1K with the recipe of FCMAE (arXiv 2301.00808, appendix).

    python -m greenjax.main --config configs/convnextv2_base.py --workdir runs/convnextv2_base

Source: TRAINING.md of facebookresearch/ConvNeXt-V2, whose README prints a top-1 of 84.9 after fine-tuning. Two things
differ: the decoder has as many channels and blocks, but attends where FCMAE's convolves; and an update has 8 masks,
where FCMAE draws one an image (--config.mask.groups).

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory; --config.mask.groups has to be a
multiple of devices x N.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.model.name = "convnextv2_base"  # 128 to 1024 channels, blocks (3, 3, 27, 3)
    config.image_size = 224
    config.mask.ratio = 0.6
    config.decoder.depth = 1
    config.decoder.dim = 512

    config.epochs = 1600
    config.data.batch_size = 4096
    config.optim.base_lr = 1.5e-4  # at a batch of 256; 2.4e-3 at 4096
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.95
    config.optim.warmup_epochs = 40
    config.optim.warmup_lr = 0.0

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
