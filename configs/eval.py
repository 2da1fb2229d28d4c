"""A trained classifier on the held-out images of its run, and on any other sets, in one run.

    python -m greenjax.main --config configs/eval.py --workdir runs/eval --config.init=runs/finetune

Model, image size and images are those of `init`; for others give --config.data.source, --config.data.path,
--config.data.eval_split and so on (the source may be left out where `init` has the same). More sets:
--config.data.eval_sets=SET,SET, such as imagenet_v2/matched-frequency@test beside ImageNet (docs/finetune.md).
--config.log.predictions writes what is said of each image. Labels are matched by the names of the classes. Hardware,
time and result: not measured here.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.task = "eval"
    config.init = "runs/finetune"
    config.data.batch_size = 256
    return config
