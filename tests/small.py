"""Tiny configurations for tests."""

import greenjax

_TWINS = {"model.embed_dim": 0, "model.embed_dims": (8, 16), "model.sr_ratios": (2, 1)}
_CONVNEXT = {"model.embed_dim": 0, "model.embed_dims": (8, 16), "model.window": 0, "model.num_heads": (0,)}
ONE_STAGE = dict(image_size=16, model__depths=(1,), model__num_heads=(2,))  # 8 x 8 units, for runs of any model
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}  # of a detector
FAMILIES = {
    "swin": {},
    "twins": {"model.name": "twins_s", **_TWINS},
    "swinv2": {"model.name": "swinv2_t"},
    "convnext": {"model.name": "convnext_t", **_CONVNEXT},
    "convnextv2": {"model.name": "convnextv2_atto", **_CONVNEXT},
    "hiera": {"model.name": "hiera_t", "model.window": 0, "model.depths": (1, 1, 2), "model.num_heads": (1, 2, 4)},
    "pvt_v2": {"model.name": "pvt_v2_b0", "model.window": 0, "model.mlp_ratio": (4, 2), **_TWINS},
    "vit": {"model.name": "vit_s", "model.window": 0, "model.patch": 4, "model.depths": (2,), "model.num_heads": (2,)},
    "pcpvt": {"model.name": "pcpvt_s", "model.window": 0, "model.mlp_ratio": (4, 2), **_TWINS},
}


def small_run(config, workdir, total=10, warmup=0, last=None, classes=None):
    """A run that is ready for its loop, with nothing compiled."""
    import jax

    from greenjax.data.undecodable import Undecodable
    from greenjax.runtime.compile import BackgroundJit
    from greenjax.tasks.classify import classification
    from greenjax.tasks.pretrain import pretraining
    from greenjax.training.sharding import make_mesh
    from greenjax.training.start import HELD_OUT, TRAINING, Run

    task = pretraining(config) if config.task == "pretrain" else classification(config)
    sources = dict(zip((TRAINING, HELD_OUT), (range(1500), range(297))))
    mesh, update = make_mesh(config), BackgroundJit(jax.jit(abs))
    return Run(task, workdir, mesh, sources, classes, total, warmup, last, update, Undecodable(), began=0.0)


def small_config(family="swin", **overrides):
    """Two stages of two blocks each on 32 x 32 digits: units of 4 pixels, 8 x 8 of them. Keys with __ for dots."""
    settings = {
        "image_size": 32,
        "steps": 10,
        "model.name": "swin_t",
        "model.in_channels": 1,
        "model.patch": 2,
        "model.window": 4,
        "model.embed_dim": 8,
        "model.depths": (2, 2),
        "model.num_heads": (2, 4),
        "decoder.dim": 16,
        "decoder.num_heads": 2,
        "data.source": "digits",
        "data.batch_size": 16,
        "data.workers": 0,
        "data.mean": (0.3,),
        "data.std": (0.4,),
        "data.flip": False,
        "log.every": 1,
    }
    settings |= FAMILIES[family]
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    config = greenjax.default_config()
    with config.unlocked():
        for key, value in settings.items():
            section, _, name = key.rpartition(".")
            (config[section] if section else config)[name] = value
    return greenjax.resolve(config)


def config_file(path, *args, **overrides):
    """The path of a file with `small_config(*args, **overrides)`, for commands."""
    call = f"small_config(*{args!r}, **{overrides!r})"
    path.write_text(f"from small import small_config\n\n\ndef get_config():\n    return {call}\n")
    return path
