"""Pre-trains PVT v2 B2 (arXiv 2106.13797) by green masked image modelling on ImageNet-1K.

The paper does not have this backbone. The recipe is its recipe for Swin-B (arXiv 2205.13515, section 4.1).

    python -m greenjax.main --config configs/pvt_v2_b2.py --workdir runs/pvt_v2_b2

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory; --config.mask.groups, 8 here, has
to be a multiple of devices x N.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.model.name = "pvt_v2_b2"  # 64 to 512 channels, blocks (3, 4, 6, 3)
    config.image_size = 224
    config.mask.ratio = 0.75
    config.decoder.depth = 1
    config.decoder.dim = 512

    config.epochs = 100
    config.data.batch_size = 2048
    config.optim.base_lr = 1.5e-4  # at a batch of 256; 1.2e-3 at 2048
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.95  # the paper prints 0.999; the recipe behind its numbers has 0.95
    config.optim.warmup_epochs = 40
    config.optim.warmup_lr = 1.5e-7

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
