"""configs/twins_l.py with convolutions by the spconv library (docs/sparse_conv.md).

    python -m greenjax.main --config configs/twins_l_spconv.py --workdir runs/twins_l_spconv

Data: TFDS's imagenet2012, prepared as ArrayRecord (docs/imagenet.md). --config.data.path=DIR names the folder where it
is not TFDS's own.

It needs PyTorch and spconv beside JAX: requirements.txt has them for CPUs, requirements-cuda12.txt and
requirements-cuda13.txt for GPUs.

Hardware, time and result: not measured yet. --config.model.dtype=bfloat16 halves the activations on a GPU.
--config.model.remat and --config.optim.accumulation=N fit an update into less memory; --config.mask.groups, 8 here, has
to be a multiple of devices x N.
"""

import greenjax


def get_config():
    config = greenjax.default_config()
    config.model.name = "twins_l"  # 128 to 1024 channels, blocks (2, 2, 18, 2), window 7
    config.model.sparse_conv = "spconv"  # patch embeddings and sub-sampling; depth-wise convolutions stay native
    config.image_size = 224
    config.mask.ratio = 0.75
    config.decoder.depth = 1
    config.decoder.dim = 512

    config.epochs = 100
    config.data.batch_size = 2048
    config.optim.base_lr = 1.5e-4  # at a batch of 256; 1.2e-3 at 2048
    config.optim.weight_decay = 0.05
    config.optim.b1, config.optim.b2 = 0.9, 0.95  # the paper prints 0.999; the recipe behind its numbers has 0.95
    config.optim.warmup_epochs = 40
    config.optim.warmup_lr = 1.5e-7

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.split = "train"
    config.data.eval_split = "validation"
    return config
