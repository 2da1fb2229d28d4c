"""Every setting of a run: its name, default, type and allowed values. `KEYS` is the whole list."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from greenjax.backbones.registry import ARCHITECTURES
from greenjax.data.sources import SOURCES

SIZE = (int, tuple)  # the type of image_size: a side in pixels, or height and width
RATIO = (int, float, tuple)  # the type of model.mlp_ratio: one for all stages, or one a stage


class Key(NamedTuple):
    """One setting. A default of None is a typed placeholder: not given, or given by `model.name`."""

    kind: Any  # int, float, bool, str, tuple[int, ...], tuple[float, ...], SIZE or RATIO
    default: Any
    allowed: str
    ok: Callable[[Any], bool] = lambda value: True


def _choice(default: str, *names: str, note: str = "") -> Key:
    return Key(str, default, " or ".join(names) + note, lambda value: value in names)


def _count(default: int | None, least: int = 1, note: str = "", most: int = 0) -> Key:
    end = f"{least} to {most}" if most else f"at least {least}, below 2**31"  # the step is an int32
    return Key(int, default, f"a whole number, {end}{note}", lambda value: least <= value <= (most or 2**31 - 1))


def _share(default: float) -> Key:
    return Key(float, default, "at least 0 and below 1", lambda value: 0 <= value < 1)


def _probability(default: float) -> Key:
    return Key(float, default, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def _amount(default: float, note: str = "") -> Key:
    return Key(float, default, f"a number, at least 0{note}", lambda value: value >= 0)


def _positive(default: float | None) -> Key:
    return Key(float, default, "a number above 0", lambda value: value > 0)


def _range(default: tuple[float, float], most: float = math.inf) -> Key:
    allowed = "two numbers (low, high), 0 < low <= high" + (f" <= {most:g}" if most < math.inf else "")
    return Key(tuple[float, ...], default, allowed, lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= most)


def _size(default: int) -> Key:
    allowed = "pixels: one side or (height, width), 1 to 65536"
    return Key(SIZE, default, allowed, lambda v: len(v) == 2 and min(v) >= 1 and max(v) <= 65536)


def _channels(default: tuple[float, ...], above: float = -math.inf) -> Key:
    allowed = "numbers" + (f" above {above:g}" if above > -math.inf else "") + ", one a channel"
    return Key(tuple[float, ...], default, allowed, lambda v: v and min(v) > above)


def _flag(default: bool) -> Key:
    return Key(bool, default, "True or False")


def _text(default: str) -> Key:
    return Key(str, default, "text")


def _counts() -> Key:
    return Key(tuple[int, ...], None, "whole numbers, at least 1, one a stage", lambda v: v and min(v) >= 1)


def _counts_or_none() -> Key:
    allowed = f"whole numbers, at least 1, one a stage{_UNSET}"
    return Key(tuple[int, ...], None, allowed, lambda v: not any(v) or min(v) >= 1)


def _ratio() -> Key:
    allowed = "a number above 0, or one a stage"
    return Key(RATIO, None, allowed, lambda v: min(v) > 0 if isinstance(v, tuple) else v > 0)


_NO_FLOAT16 = " (float16 needs loss scaling, which is not there)"
_UNSET = "; 0 = not given"

# The defaults are the paper's Swin-B (arXiv 2205.13515, section 4.1).
KEYS = {
    "task": _choice("pretrain", "pretrain", "finetune", "linear", "knn", "eval"),
    "method": _choice("green", "green", "simmim"),
    "seed": Key(int, 0, "a whole number, 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "epochs": _count(None, 0, _UNSET),  # of the training split; this or steps
    "steps": _count(None, 0, _UNSET),  # updates; this or epochs
    "image_size": _size(224),
    "init": Key(str, "none", "'none', a greenjax workdir, or a file or folder of weights", bool),  # first weights
    "new_head": _flag(False),  # a classifier's head starts fresh, whatever `init` has
    "monitor": _choice("none", "none", "knn", "linear"),  # while pre-training: accuracy of frozen features
    "ema": _share(0.0),  # decay of the moving average of the weights, an update; 0 = no average
    "deterministic": _flag(False),  # the same bits on every run of one GPU, at some cost in speed
    "model.name": _choice("swin_b", *ARCHITECTURES),
    "model.window": _count(None, 0, _UNSET),  # tokens a side; default by name, as the next eight
    "model.patch": _count(None),  # pixels a side
    "model.embed_dim": _count(None, 0, _UNSET),  # Swin: channels of the first stage, doubled at each of the next
    "model.embed_dims": _counts_or_none(),  # Twins: channels of every stage
    "model.depths": _counts(),  # blocks
    "model.num_heads": _counts(),
    "model.mlp_ratio": _ratio(),
    "model.sr_ratios": _counts_or_none(),  # Twins: tokens along a side of the blocks that become one key
    "model.norm_epsilon": _positive(None),  # Twins: not of patch embeddings and sub-sampling, which have 1e-5
    "model.drop_path": _share(0.0),  # stochastic depth at the last block, rising linearly from 0 at the first
    "model.attention": _choice("xla", "xla", "pallas"),  # inside groups; pallas: our own kernel for NVIDIA GPUs
    "model.sparse_conv": _choice("native", "native", "spconv", "masked"),  # Twins: how visible tokens are convolved
    "model.spconv_callback": _choice("pure", "pure", "buffer"),  # how JAX calls spconv
    "model.in_channels": _count(3),
    "model.num_classes": _count(None, 0, _UNSET),  # of a classifier's head
    "model.dtype": _choice("float32", "float32", "bfloat16", note=_NO_FLOAT16),  # parameters stay float32
    "model.remat": _flag(False),  # recompute each block in the backward pass: less memory, more time
    "decoder.dim": _count(512),
    "decoder.depth": _count(1),
    "decoder.num_heads": _count(16),
    "mask.ratio": Key(float, 0.75, "above 0 and below 1", lambda value: 0 < value < 1),  # of the mask units
    "mask.groups": _count(8),  # masks drawn for one update; data.batch_size = one mask an image
    "mask.pool": _count(0, 0),  # draw this many masks once and choose among them; 0 = fresh masks always
    "data.source": _choice("tfds", *SOURCES),
    "data.path": _text(""),  # folder, records: the directory; tfds: the prepared data set or its data_dir
    "data.name": _text(""),  # tfds: the data set's name
    "data.split": Key(str, "train", "the name of a split", bool),
    "data.eval_split": _text(""),  # "" = no held-out evaluation
    "data.eval_sets": _text(""),  # task eval: more sets, NAME_OR_PATH@SPLIT or SPLIT, with commas between
    "data.eval_images": _count(2048),  # at most this many held-out images in pre-training; classifiers take all
    "data.monitor_source": _choice("", "", *SOURCES, note="; '' = as data.source"),
    "data.monitor_path": _text(""),  # labelled sets for the monitor; "" = as data.path, and so on
    "data.monitor_name": _text(""),
    "data.monitor_split": _text(""),
    "data.monitor_eval_split": _text(""),
    "data.per_class": _count(0, 0),  # train a classifier on the first this many images of each class only; 0 = on all
    "data.batch_size": _count(2048),  # images of one update: all devices and accumulation steps together
    "data.workers": _count(8, 0, most=1024),  # processes that decode and augment; 0 = the main process
    "data.crop_scale": _range((0.2, 1.0), most=1.0),  # share of the image's area
    "data.crop_ratio": _range((3 / 4, 4 / 3)),  # width / height
    "data.flip": _flag(True),
    "data.randaugment": Key(float, 0.0, "a number from 0 (off) to 10", lambda value: 0 <= value <= 10),  # magnitude
    "data.randaugment_layers": _count(2),  # operations in a row
    "data.erasing": _probability(0.0),  # of filling a random box with noise
    "data.mixup": _amount(0.0),  # alpha of the Beta distribution of an image's share; 0 = off, as the next
    "data.cutmix": _amount(0.0),
    "data.mix_prob": _probability(1.0),  # of an image being mixed at all
    "data.mix_switch": _probability(0.5),  # of CutMix, where both are on
    "data.eval_crop": Key(float, 1.0, "above 0, at most 1", lambda value: 0 < value <= 1),  # of the shorter side
    "data.mean": _channels((0.485, 0.456, 0.406)),  # of images in [0, 1]; ImageNet's
    "data.std": _channels((0.229, 0.224, 0.225), above=0.0),
    "optim.name": _choice("adamw", "adamw", "lars", note="; lars for task 'linear' only"),
    "optim.base_lr": _positive(1.5e-4),  # this and the next two are multiplied by data.batch_size / 256
    "optim.warmup_lr": _amount(1.5e-7),  # where the warm-up starts
    "optim.min_lr": _amount(0.0),  # where the cosine ends
    "optim.warmup_epochs": _count(None, 0, _UNSET),  # with epochs; none given = no warm-up
    "optim.warmup_steps": _count(None, 0, _UNSET),  # with steps
    "optim.weight_decay": _amount(0.05),
    "optim.b1": _share(0.9),
    "optim.b2": _share(0.95),  # the paper prints 0.999; the recipe behind its numbers has MAE's 0.95
    "optim.eps": _positive(1e-8),
    "optim.layer_decay": Key(float, 1.0, "above 0, at most 1", lambda value: 0 < value <= 1),  # of rates, a block
    "optim.clip": _amount(5.0, "; 0 = no clipping"),  # global norm of the gradient
    "optim.label_smoothing": _share(0.1),  # of a classifier's targets, spread evenly over all classes
    "optim.accumulation": _count(1),  # an update's batch is worked through in this many parts
    "optim.max_skipped": _count(10, 0),  # more non-finite updates in a row than this are a divergence
    "guard.spike": Key(
        float, 3.0, "a number above 1, or 0 = off", lambda value: value == 0 or value > 1
    ),  # of the loss
    "guard.rollbacks": _count(3, 0),  # a run that diverges goes back so often, and on with other data
    "mesh.data": Key(int, -1, "at least 1, or -1 for all devices", lambda value: value == -1 or value >= 1),
    "mesh.fsdp": _count(1),  # devices over which parameters are split
    "log.every": _count(50),  # steps, as the next three
    "log.eval_every": _count(1000, 0),  # 0 = only at the end
    "log.picture_every": _count(5000, 0),
    "log.checkpoint_every": _count(1000, 0),
    "log.monitor_every": _count(5000, 0),
    "log.monitor_images": _count(20000),  # at most this many of each split
    "log.keep": _count(3),  # checkpoints, the latest ones
    "log.keep_every": _count(0, 0),  # and those of multiples of so many steps; 0 = none
    "log.predictions": _flag(False),  # task eval: what is said of each image, as CSV
    "knn.k": Key(tuple[int, ...], (20,), "whole numbers, at least 1", lambda v: v and min(v) >= 1),  # neighbours
    "knn.temperature": _positive(0.07),  # a neighbour's weight is exp(cosine / temperature)
}
