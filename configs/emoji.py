"""Pre-trains a small Swin on 1,280 pictures of emoji, in colour.

    python launch/emoji.py data/emoji        # makes the images; needs npm and a network
    python -m greenjax.main --config configs/emoji.py --workdir runs/emoji

Hardware: two CPU cores. Results: not measured yet; docs/evidence.md says how it is compared with other methods.
Pictures are taken at 32 x 32 pixels. Mask units have 8 pixels a side; 4 of 16 units stay visible.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "swin_t"
    config.model.in_channels = 3
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

    config.data.source = "folder"
    config.data.path = "data/emoji"  # made by launch/emoji.py
    config.data.split = "train"
    config.data.eval_split = "test"
    config.data.batch_size = 128
    config.data.workers = 0  # images this small are read faster than a worker process starts
    config.data.crop_scale = (0.6, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.mean = (0.851, 0.796, 0.790)
    config.data.std = (0.250, 0.265, 0.295)

    config.log.every = 40
    config.log.eval_every = 300
    config.log.picture_every = 300
    config.log.checkpoint_every = 300
    return config
