"""Fine-tunes PVT v2 B2 (arXiv 2106.13797) on ImageNet-1K with labels.

No recipe after masked images is published for it. This is the one for Swin-B (arXiv 2205.13515, section 4.1), with
half of its stochastic depth.

    python -m greenjax.main --config configs/finetune_pvt_v2_b2.py --workdir runs/finetune --config.init=runs/pvt_v2_b2

`init` is the workdir of the pre-training, or a file of weights. Without it the same recipe trains from scratch.
Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.optim.accumulation=N fits an update into less memory.

Epochs, rates, layer decay and weight decay are that paper's. The augmentation is that of SimMIM's fine-tuning
(arXiv 2111.09886, appendix), which it follows.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.model.name = "pvt_v2_b2"  # 64 to 512 channels, blocks (3, 4, 6, 3)
    config.model.drop_path = 0.1
    config.image_size = 224

    config.epochs = 100
    config.data.batch_size = 2048
    config.optim.base_lr = 1.25e-4  # at a batch of 256; 1e-3 at 2048
    config.optim.warmup_epochs = 20
    config.optim.warmup_lr = 2.5e-7
    config.optim.min_lr = 2.5e-7
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.9
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
