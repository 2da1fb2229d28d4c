"""Pre-trains Swin-B by SimMIM with its own recipe (arXiv 2111.09886, section 4.1.1), 224 px and window 7 as swin_b.py.

    python -m greenjax.main --config configs/simmim_swin_b.py --workdir runs/simmim_swin_b

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory.

Longer runs: --config.epochs=200, 400 or 800, all else the same.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.method = "simmim"
    config.model.name = "swin_b"
    config.model.window = 7
    config.image_size = 224
    config.mask.ratio = 0.6  # of units of 32 pixels
    config.mask.groups = 2048  # one mask an image

    config.epochs = 100
    config.data.batch_size = 2048
    config.optim.base_lr = 1e-4  # at a batch of 256; 8e-4 at 2048
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.999
    config.optim.warmup_epochs = 10
    # Not in the paper; in the published configuration these two are 1e-6 and 1e-5, at a batch of 512.
    config.optim.warmup_lr = 5e-7
    config.optim.min_lr = 5e-6

    config.data.crop_scale = (0.67, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.flip = True
    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
