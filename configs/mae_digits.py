"""Pre-trains a small ViT as MAE does on scikit-learn's 1,500 training digits: configs/digits.py with another backbone.

    python -m greenjax.main --config configs/mae_digits.py --workdir runs/mae_digits

Hardware: two CPU cores. Result: masked loss of 0.41 on the held-out digits, 1.51
before training, 0.94 for the best constant; accuracies in docs/digits.md.
Digits of 8 x 8 pixels are enlarged to 32 x 32. Patches, which are the mask units, have 8 pixels a side; 4 of 16 stay
visible, and every image has its own mask: another --config.data.batch_size=N needs --config.mask.groups=N, too.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "vit_s"
    config.model.in_channels = 1
    config.model.patch = 8
    config.model.embed_dim = 128
    config.model.depths = (4,)
    config.model.num_heads = (4,)
    config.model.positions = "sincos"
    config.model.pool = "mean"
    config.decoder.dim = 32
    config.decoder.num_heads = 4
    config.mask.groups = 128  # one mask an image

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
