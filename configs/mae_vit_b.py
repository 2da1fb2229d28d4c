"""Pre-trains ViT-B on ImageNet-1K as MAE does (arXiv 2111.06377): the paper's peer among plain transformers.

    python -m greenjax.main --config configs/mae_vit_b.py --workdir runs/mae_vit_b

Source: MAE, section 4 and appendix A.1, table 8; 83.6 top-1 after 1600 epochs and fine-tuning, as its table 3 prints.
Every image has its own mask: another --config.data.batch_size=N needs --config.mask.groups=N, too. Positions are sines
and cosines in the encoder and in the decoder.

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.model.name = "vit_b"  # 768 channels, 12 blocks, patches of 16 pixels
    config.model.positions = "sincos"
    config.model.pool = "mean"  # read by a monitor; fine-tuning has the same
    config.image_size = 224
    config.mask.ratio = 0.75
    config.mask.groups = 4096  # one mask an image
    config.decoder.depth = 8
    config.decoder.dim = 512
    config.decoder.num_heads = 16

    config.epochs = 1600
    config.data.batch_size = 4096
    config.optim.base_lr = 1.5e-4  # at a batch of 256; 2.4e-3 at 4096
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.95
    config.optim.warmup_epochs = 40
    config.optim.warmup_lr = 0.0
    config.optim.clip = 0.0

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
