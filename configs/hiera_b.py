"""Pre-trains Hiera-B on ImageNet-1K as a masked autoencoder (arXiv 2306.00989).

    python -m greenjax.main --config configs/hiera_b.py --workdir runs/hiera_b

Source: the paper's table 14a; 84.5 top-1 after 1600 epochs and fine-tuning (section 6.1). 400 epochs is the length of
its ablations, where a decoder that reads all stages gains 0.6 points with Hiera-L (section 4, table 3a). Three things
are those of the published weights, facebook/hiera-base-224-mae-hf: the last stage does not pool in pre-training, so the
decoder predicts patches of 16 pixels; it has 512 channels; and its positions are trained. Two are greenjax's: 8 masks
an update, and gradients clipped at 5.

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
    config.model.query_pools = 2  # fine-tuning has 3, with the same weights
    config.model.drop_path = 0.2
    config.image_size = 224
    config.mask.ratio = 0.6
    config.decoder.depth = 8
    config.decoder.dim = 512
    config.decoder.num_heads = 16
    config.decoder.fusion = True
    config.decoder.positions = "learned"

    config.epochs = 400
    config.data.batch_size = 4096
    config.optim.base_lr = 5e-5  # at a batch of 256; 8e-4 at 4096
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.95
    config.optim.warmup_epochs = 40
    config.optim.warmup_lr = 0.0

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
