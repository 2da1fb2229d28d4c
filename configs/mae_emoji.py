"""Pre-trains a small ViT as MAE does on 1,280 pictures of emoji: configs/emoji.py with another backbone.

    python launch/emoji.py data/emoji        # makes the images; needs npm and a network
    python -m greenjax.main --config configs/mae_emoji.py --workdir runs/mae_emoji

Hardware: two CPU cores. Results: not measured yet. The ViT has as many parameters as the Swin of emoji.py.
Pictures are taken at 32 x 32 pixels. Patches, which are the mask units, have 8 pixels a side; 4 of 16 stay visible,
and every image has its own mask: another --config.data.batch_size=N needs --config.mask.groups=N, too.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "vit_s"
    config.model.in_channels = 3
    config.model.patch = 8
    config.model.embed_dim = 120
    config.model.depths = (3,)
    config.model.num_heads = (4,)
    config.model.positions = "sincos"
    config.model.pool = "mean"
    config.decoder.dim = 32
    config.decoder.num_heads = 4
    config.mask.groups = 128  # one mask an image

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
