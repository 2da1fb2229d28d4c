"""Fine-tunes the encoder of emoji.py on 20 labels a class.

    python -m greenjax.main --config configs/finetune_emoji.py --workdir runs/finetune --config.init=runs/emoji

Hardware: two CPU cores. Results: not measured yet. --config.data.per_class=0 takes all 1,280 labels.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.image_size = 32
    config.model.name = "swin_t"
    config.model.in_channels = 3
    config.model.patch = 4
    config.model.window = 4
    config.model.embed_dim = 64
    config.model.depths = (2, 2)
    config.model.num_heads = (4, 8)

    config.steps = 150
    config.optim.base_lr = 1.6e-2  # at a batch of 256
    config.optim.warmup_lr = 0.0
    config.optim.warmup_steps = 30
    config.optim.b2 = 0.999

    config.data.source = "folder"
    config.data.path = "data/emoji"  # made by launch/emoji.py
    config.data.split = "train"
    config.data.eval_split = "test"
    config.data.per_class = 20
    config.data.batch_size = 64
    config.data.workers = 0
    config.data.crop_scale = (0.6, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.mean = (0.851, 0.796, 0.790)
    config.data.std = (0.250, 0.265, 0.295)
    return config
