"""Fine-tunes the encoder of mnist5k.py on 10 labels a class.

    python -m greenjax.main --config configs/finetune_mnist5k.py --workdir runs/finetune --config.init=runs/mnist5k

Hardware: two CPU cores. Results: docs/evidence.md. --config.data.per_class=0 takes all 4,000 labels.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.image_size = 32
    config.model.name = "swin_t"
    config.model.in_channels = 1
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

    config.data.source = "mnist5k"
    config.data.split = "train"
    config.data.eval_split = "test"
    config.data.per_class = 10
    config.data.batch_size = 64
    config.data.workers = 0
    config.data.crop_scale = (0.8, 1.0)
    config.data.crop_ratio = (0.9, 1.1)
    config.data.flip = False
    config.data.mean = (0.131,)
    config.data.std = (0.308,)
    return config
