"""Pre-trains a small encoder on scenes of digits, for the detector of detect_digits.py.

    python -m greenjax.main --config configs/scenes.py --workdir runs/scenes

Hardware: two CPU cores. Time and result: docs/detection.md.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 64  # a crop of a scene, at about its own scale
    config.model.name = "swin_t"
    config.model.in_channels = 1
    config.model.patch = 4
    config.model.window = 4
    config.model.embed_dim = 64
    config.model.depths = (2, 2)
    config.model.num_heads = (4, 8)
    config.mask.ratio = 0.75
    config.mask.groups = 8
    config.decoder.dim = 128
    config.decoder.num_heads = 4
    config.decoder.norm_pixels = False  # three of four patches hold only grain, which normalising would enlarge

    config.steps = 800
    config.data.batch_size = 64
    config.optim.base_lr = 4e-3
    config.optim.warmup_steps = 50
    config.optim.weight_decay = 0.05

    config.data.source = "scenes"
    config.data.split = "train"
    config.data.eval_split = "test[:500]"
    config.data.workers = 0
    config.data.crop_scale = (0.2, 0.3)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.flip = False
    config.data.mean = (0.305,)
    config.data.std = (0.376,)
    config.log.every = 50
    config.log.eval_every = 400
    return config
