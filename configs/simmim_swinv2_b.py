"""Pre-trains Swin V2-B by SimMIM with the published recipe (arXiv 2206.04664), 192 px and window 12.

    python -m greenjax.main --config configs/simmim_swinv2_b.py --workdir runs/simmim_swinv2_b

Source: simmim_pretrain__swinv2_base__img192_window12__800ep.yaml of microsoft/Swin-Transformer. Its model hub prints a
top-1 of 85.0 after fine-tuning (500,000 updates, ImageNet-1K). The target there is normalised over neighbourhoods of 47
x 47 pixels, here by the colours of the data set.

--config.method=green pre-trains the same model on visible tokens, with the decoder of configs/swin_b.py.

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.method = "simmim"
    config.model.name = "swinv2_b"  # 128 channels, blocks (2, 2, 18, 2)
    config.model.window = 12
    config.model.drop_path = 0.1
    config.image_size = 192
    config.mask.ratio = 0.6  # of units of 32 pixels
    config.mask.groups = 2048  # one mask an image

    config.epochs = 800
    config.data.batch_size = 2048
    config.optim.base_lr = 5e-5  # at a batch of 256; 4e-4 at 2048
    config.optim.schedule = "steps"
    config.optim.steps_at = (700 / 800,)  # a tenth of the rate from epoch 700 on
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.999
    config.optim.warmup_epochs = 10
    config.optim.warmup_lr = 2.5e-7

    config.data.crop_scale = (0.67, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
