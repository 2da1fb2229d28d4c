"""Pre-trains Hiera-B on ImageNet-1K as a masked autoencoder (arXiv 2306.00989).

    python -m greenjax.main --config configs/hiera_b.py --workdir runs/hiera_b

Mask ratio, decoder and target come from facebookresearch/hiera, whose README reports a top-1 of 84.5 after fine-tuning.
That project publishes no training code: rates, batch and crops here are MAE's (arXiv 2111.06377, appendix), and 400
epochs is the length of the Hiera paper's ablations. Two things differ: Hiera's decoder reads all stages, and its last
stage does not pool in pre-training; here the decoder reads the last stage, which pools as in fine-tuning.

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory; --config.mask.groups, 8 here, has
to be a multiple of devices x N.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.model.name = "hiera_b"  # 96 channels, blocks (2, 3, 16, 3)
    config.image_size = 224
    config.mask.ratio = 0.6
    config.decoder.depth = 8
    config.decoder.dim = 512

    config.epochs = 400
    config.data.batch_size = 4096
    config.optim.base_lr = 1.5e-4  # at a batch of 256; 2.4e-3 at 4096
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.95
    config.optim.warmup_epochs = 40
    config.optim.warmup_lr = 0.0

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
