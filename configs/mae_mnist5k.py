"""Pre-trains a small ViT as MAE does on 4,000 digits of MNIST: configs/mnist5k.py with another backbone.

    pip install -e '.[mnist5k]'
    python -m greenjax.main --config configs/mae_mnist5k.py --workdir runs/mae_mnist5k

Hardware: two CPU cores. docs/evidence.md compares it. The ViT has as many parameters as the Swin of mnist5k.py.
Digits of 28 x 28 pixels are enlarged to 32 x 32. Patches, which are the mask units, have 8 pixels a side; 4 of 16 stay
visible, and every image has its own mask: another --config.data.batch_size=N needs --config.mask.groups=N, too.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 32
    config.model.name = "vit_s"
    config.model.in_channels = 1
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
