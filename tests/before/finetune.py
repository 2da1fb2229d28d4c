"""The run in `finetuned`: the encoder of `pretrained` with a head for ten digits, stopped after 2 of 4 updates."""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.init = "tests/before/pretrained"
    config.image_size = 16
    config.steps = 4
    config.optim.base_lr = 0.1
    config.optim.warmup_steps = 1
    config.mesh.data = 1

    config.data.source = "digits"
    config.data.eval_split = "test[:8]"
    config.data.batch_size = 8
    config.data.workers = 0
    config.data.flip = False

    config.log.every = 1
    config.log.checkpoint_every = 2
    return config
