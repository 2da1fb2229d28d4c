"""Pre-trains a small Swin on scikit-learn's 1,500 training digits: the first run, nothing to download.

    python -m greenjax.main --config configs/digits.py --workdir runs/digits

Hardware: two CPU cores. Time and result: docs/quickstart.md.
Digits of 8 x 8 pixels are enlarged to 32 x 32. Mask units have 8 pixels a side; 4 of 16 units stay visible.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "swin_t"
    config.model.in_channels = 1
    config.model.patch = 4  # one pixel of the digit
    config.model.window = 4
    config.model.embed_dim = 64
    config.model.depths = (2, 2)
    config.model.num_heads = (4, 8)
    config.decoder.dim = 32  # a wider one does the encoder's work: docs/digits.md
    config.decoder.num_heads = 4
    config.mask.groups = 8

    config.steps = 2500
    config.optim.base_lr = 4e-3  # at a batch of 256
    config.optim.warmup_lr = 4e-6
    config.optim.warmup_steps = 150

    config.data.source = "digits"
    config.data.split = "train"
    config.data.eval_split = "test"
    config.data.batch_size = 128
    config.data.workers = 0  # digits are resized faster than a worker process starts
    config.data.crop_scale = (0.9, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.flip = False  # a mirrored digit is another shape
    config.data.mean = (0.305,)
    config.data.std = (0.376,)

    config.log.every = 40
    config.log.eval_every = 500
    config.log.picture_every = 500
    config.log.checkpoint_every = 500
    return config
