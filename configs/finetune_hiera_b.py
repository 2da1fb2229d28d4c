"""Fine-tunes Hiera-B on ImageNet-1K with labels, after its masked autoencoder (arXiv 2306.00989).

    python -m greenjax.main --config configs/finetune_hiera_b.py --config.init=runs/hiera_b

Source: the paper's table 14b; 84.5 top-1 (section 6.1). Random erasing and the crops, of which it says nothing,
are those with which MAE fine-tunes ViT-B (arXiv 2111.06377, table 9).

`init` is the workdir of the pre-training, or a file of weights, such as one of the project's or timm's; positions are
resized where images have another size. Without it the same recipe trains from scratch.
Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.optim.accumulation=N fits an update into less memory.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.model.name = "hiera_b"  # 96 channels, blocks (2, 3, 16, 3)
    config.model.query_pools = 3  # whatever the pre-training had
    config.model.drop_path = 0.1
    config.image_size = 224

    config.epochs = 100
    config.data.batch_size = 1024
    config.optim.base_lr = 5e-4  # at a batch of 256; 2e-3 at 1024
    config.optim.warmup_epochs = 5
    config.optim.warmup_lr = 0.0
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.7
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
