"""A fine-tuned Swin-B on ImageNet's validation set and on ImageNet-v2, a shifted one, in one run.

    python -m greenjax.main --config configs/eval_swin_b.py --workdir runs/eval --config.init=runs/finetune_swin_b

Both by TFDS (docs/data.md); more sets with --config.data.eval_sets=NAME@SPLIT,NAME@SPLIT. --config.log.predictions
writes what is said of each image. Hardware, time and result: not measured here.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "eval"
    config.init = "runs/finetune_swin_b"
    config.model.name = "swin_b"
    config.model.num_classes = 1000
    config.image_size = 224

    config.data.batch_size = 1024
    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    config.data.eval_crop = 0.875  # the centre 224 of 256 pixels
    config.data.eval_sets = "imagenet_v2/matched-frequency@test"
    return config
