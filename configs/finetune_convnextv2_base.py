"""Fine-tunes ConvNeXt V2-Base on ImageNet-1K with labels, after FCMAE (arXiv 2301.00808, appendix).

    python -m greenjax.main --config configs/finetune_convnextv2_base.py --config.init=runs/convnextv2_base

Source: TRAINING.md of facebookresearch/ConvNeXt-V2, which prints a top-1 of 84.9. Atto to Tiny have a layer for every
block: --config.optim.layer_blocks=1 --config.optim.layer_decay=0.9, and rates and epochs of their own there.

`init` is the workdir of the pre-training, or a file of weights. Without it the same recipe trains from scratch.
Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.optim.accumulation=N fits an update into less memory.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.model.name = "convnextv2_base"  # 128 to 1024 channels, blocks (3, 3, 27, 3)
    config.model.drop_path = 0.1
    config.image_size = 224
    config.ema = 0.9999

    config.epochs = 100
    config.data.batch_size = 1024
    config.optim.base_lr = 6.25e-4  # at a batch of 256; 2.5e-3 at 1024
    config.optim.warmup_epochs = 20
    config.optim.warmup_lr = 0.0
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.6
    config.optim.layer_blocks = 3  # twelve layers between stem and head
    config.optim.label_smoothing = 0.1

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    config.data.eval_crop = 0.875  # the centre 224 of 256 pixels
    config.data.crop_scale = (0.08, 1.0)
    config.data.randaugment = 9.0
    config.data.erasing = 0.25
    config.data.mixup = 0.8
    config.data.cutmix = 1.0
    return config
