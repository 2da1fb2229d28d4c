"""Pre-trains Swin-S by green masked image modelling on ImageNet-1K (arXiv 2205.13515, section 4.1).

The paper has no Swin-S. The recipe is its recipe for Swin-B.

    python -m greenjax.main --config configs/swin_s.py --workdir runs/swin_s

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory; --config.mask.groups, 8 here, has
to be a multiple of devices x N.

Longer runs: --config.epochs=200, 400 or 800, all else the same.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.model.name = "swin_s"  # 96 channels, blocks (2, 2, 18, 2), window 7
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
