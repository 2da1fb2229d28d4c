"""Fine-tunes ViT-B on ImageNet-1K with labels, after MAE's pre-training (arXiv 2111.06377).

    python -m greenjax.main --config configs/finetune_mae_vit_b.py --config.init=runs/mae_vit_b

Source: MAE, appendix A.1, table 9; 83.6 top-1 after 1600 epochs of pre-training, as its table 3 prints. The classifier
reads the mean of the tokens. The appendix has the class token, and says that the mean works as well
(--config.model.pool=token). Its last norm starts as that of the pre-training.

`init` is the workdir of the pre-training, or a file of weights, such as one of timm's or a folder of transformers;
positions are resized where images have another size. Without it the same recipe trains from scratch.
Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.optim.accumulation=N fits an update into less memory.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "finetune"
    config.model.name = "vit_b"  # 768 channels, 12 blocks, patches of 16 pixels
    config.model.positions = "learned"  # they start as the sines and cosines of the pre-training
    config.model.pool = "mean"
    config.model.drop_path = 0.1
    config.image_size = 224

    config.epochs = 100
    config.data.batch_size = 1024
    config.optim.base_lr = 1e-3  # at a batch of 256; 4e-3 at 1024
    config.optim.warmup_epochs = 5
    config.optim.warmup_lr = 0.0
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.75
    config.optim.label_smoothing = 0.1
    config.optim.clip = 0.0

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    config.data.eval_crop = 0.875  # the centre 224 of 256 pixels
    config.data.crop_scale = (0.08, 1.0)
    config.data.randaugment = 9.0
    config.data.mixup = 0.8
    config.data.cutmix = 1.0
    return config
