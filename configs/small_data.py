"""Pre-trains Swin-T on some hundred to some ten thousand of your own images: docs/small_data.md.

    python -m greenjax.main --config configs/small_data.py --workdir runs/mine --config.data.path=/data/mine

Hardware: one GPU, or about a day on two CPU cores by the rate in docs/growth.md. Time and result: not measured at this
size; the settings come from small models (docs/small_data.md). --config.init=FILE starts from weights that were trained
on other images (docs/continue_pretraining.md).
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 224
    config.model.name = "swin_t"
    config.decoder.dim = 192  # a quarter of the encoder's channels: a wide decoder does the encoder's work
    config.decoder.num_heads = 6

    config.steps = 10_000
    config.data.batch_size = 128
    config.optim.base_lr = 6e-4  # at a batch of 256; 3e-4 at 128
    config.optim.warmup_steps = 500
    config.optim.weight_decay = 0.05

    config.data.source = "folder"
    config.data.path = "images"
    config.data.split = "all[:95%]"
    config.data.eval_split = "all[95%:]"
    config.data.crop_scale = (0.4, 1.0)

    config.monitor = "views"  # rises as the features improve; a falling loss does not show this
    config.log.every = 50
    config.log.eval_every = 500
    config.log.monitor_every = 500
    config.log.picture_every = 500
    config.log.checkpoint_every = 500
    return config
