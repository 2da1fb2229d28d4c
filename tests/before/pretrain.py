"""The run in `pretrained`: a Swin of one block on 16 x 16 digits, stopped after 2 of 4 updates."""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.image_size = 16
    config.model.name = "swin_t"
    config.model.in_channels = 1
    config.model.patch = 2
    config.model.window = 4
    config.model.embed_dim = 4
    config.model.depths = (1,)
    config.model.num_heads = (2,)
    config.decoder.dim = 4
    config.decoder.num_heads = 2
    config.mask.groups = 2

    config.steps = 4
    config.optim.base_lr = 0.1  # 0.003 at a batch of 8: two updates move every weight
    config.optim.warmup_steps = 1
    config.mesh.data = 1

    config.data.source = "digits"
    config.data.batch_size = 8
    config.data.workers = 0
    config.data.flip = False
    config.data.mean = (0.3,)
    config.data.std = (0.4,)

    config.log.every = 1
    config.log.picture_every = 0
    config.log.checkpoint_every = 2
    return config
