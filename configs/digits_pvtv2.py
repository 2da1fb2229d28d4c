"""Pre-trains a small PVT v2 on scikit-learn's 1,500 training digits: configs/digits.py with another backbone.

    python -m greenjax.main --config configs/digits_pvtv2.py --workdir runs/digits_pvtv2

Hardware: two CPU cores. Result: masked loss of 0.51 on the held-out digits, 1.47
before training, 0.93 for the best constant; accuracies in docs/digits.md.
Digits of 8 x 8 pixels are enlarged to 32 x 32. Mask units have 8 pixels a side; 4 of 16 units stay visible.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "pvt_v2_b0"
    config.model.in_channels = 1
    config.model.patch = 4  # one pixel of the digit
    config.model.embed_dims = (64, 128)
    config.model.depths = (2, 2)
    config.model.num_heads = (2, 4)
    config.model.mlp_ratio = 4.0
    config.model.sr_ratios = (2, 1)  # one key a mask unit
    config.decoder.dim = 32
    config.decoder.num_heads = 4
    config.mask.groups = 8

    config.steps = 1000
    config.optim.base_lr = 2e-3  # at a batch of 256
    config.optim.warmup_lr = 2e-6
    config.optim.warmup_steps = 100

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

    config.log.every = 20
    config.log.eval_every = 200
    config.log.picture_every = 200
    config.log.checkpoint_every = 200
    return config
