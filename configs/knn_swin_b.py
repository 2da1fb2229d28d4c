"""Frozen features of Swin-B, classified by their neighbours: no training (arXiv 1805.01978; k and temperature: DINO's).

    python -m greenjax.main --config configs/knn_swin_b.py --workdir runs/knn --config.init=runs/swin_b

Hardware, time and result: not measured here. The bank, 1.28 million features of 1024 channels, takes 5 GB.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "knn"
    config.model.name = "swin_b"
    config.image_size = 224
    config.knn.k = (10, 20, 100)
    config.knn.temperature = 0.07

    config.data.batch_size = 1024
    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    config.data.eval_crop = 0.875  # the centre 224 of 256 pixels
    return config
