"""Fine-tunes Swin V2-B on ImageNet-1K with labels, 224 px and window 14, after SimMIM (arXiv 2206.04664).

    python -m greenjax.main --config configs/finetune_swinv2_b.py --config.init=runs/simmim_swinv2_b \
        --config.model.window=14

Source: simmim_finetune__swinv2_base__img224_window14__800ep.yaml of microsoft/Swin-Transformer, whose model hub prints
a top-1 of 85.0. The window of `init` goes before that of this file, so the command has it. Weights of another
window need no resizing: the position bias is a function of the offset, and keeps the windows of `init`
(docs/backbones.md).

`init` is the workdir of the pre-training, or a file of weights. A file of another library does not say its windows:
SimMIM's at 192 pixels need --config.model.pretrained_windows=12,12,12,6, too. Without `init` the same recipe trains
from scratch.
Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.optim.accumulation=N fits an update into less memory.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.model.name = "swinv2_b"  # 128 channels, blocks (2, 2, 18, 2)
    config.model.window = 14
    config.model.drop_path = 0.1
    config.image_size = 224

    config.epochs = 100
    config.data.batch_size = 2048
    config.optim.base_lr = 6.25e-4  # at a batch of 256; 5e-3 at 2048
    config.optim.warmup_epochs = 20
    config.optim.warmup_lr = 1.25e-7
    config.optim.min_lr = 1.25e-7
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.75
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
