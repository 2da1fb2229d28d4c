"""Evaluates a trained classifier on the held-out images of its run, and on any other sets, in one run.

    python -m greenjax.main --config configs/eval.py --workdir runs/eval --config.init=runs/finetune

The run takes the model, the image size and the images from `init`. --config.data.source, --config.data.path and
--config.data.eval_split name other images (the source may be left out where `init` has the same).
--config.data.eval_sets=SET,SET adds sets, such as imagenet_v2/matched-frequency@test beside ImageNet
(docs/finetune.md). --config.log.predictions writes a CSV with the prediction for each image. Classes are matched by
name. Hardware, time and result: not measured yet.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "eval"
    config.init = "runs/finetune"
    config.data.batch_size = 256
    return config
