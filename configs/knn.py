"""Classifies frozen features by their neighbours, without training (arXiv 1805.01978; k and temperature: DINO's).

    python -m greenjax.main --config configs/knn.py --workdir runs/knn --config.init=runs/swin_b

The run takes the model, the image size and the images from `init`; the images need labels. --config.data.source,
--config.data.path, --config.data.split and --config.data.eval_split name other images (the source may be left out where
`init` has the same).

Hardware, time and result: not measured yet. ImageNet's bank, 1.28 million features of Swin-B, takes 5 GB.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "knn"
    config.init = "runs/swin_b"
    config.knn.k = (10, 20, 100)
    config.knn.temperature = 0.07
    config.data.batch_size = 256
    return config
