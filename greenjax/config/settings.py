"""Every setting of a run: its name, default, type and allowed values. `KEYS` is the whole list."""

import math

from greenjax.backbones.registry import ARCHITECTURES, DEFAULT, SETTINGS
from greenjax.backbones.settings import UNSET, Key, choice, count, counts, positive
from greenjax.data.reading import ALPHAS, DTYPES, is_number
from greenjax.data.sources import SOURCES

SIZE = (int, tuple)  # the type of image_size: one side in pixels, or (height, width)
RATIO = (int, float, tuple)  # the type of model.mlp_ratio: one number, or one a stage
NAMES = (str, tuple)  # the type of model.sparse_conv: one name, or one a stage
PHASES = SIZE  # the type of detect.pre_nms: one count for training and evaluation, or (training, evaluation)


def _share(default: float) -> Key:
    return Key(float, default, "at least 0 and below 1", lambda value: 0 <= value < 1)


def _fraction(default: float) -> Key:
    return Key(float, default, "above 0, at most 1", lambda value: 0 < value <= 1)


def _probability(default: float) -> Key:
    return Key(float, default, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def _amount(default: float, note: str = "") -> Key:
    return Key(float, default, f"a number, at least 0{note}", lambda value: value >= 0)


def _range(default: tuple[float, float], most: float = math.inf) -> Key:
    allowed = "two numbers (low, high), 0 < low <= high" + (f" <= {most:g}" if most < math.inf else "")
    return Key(tuple[float, ...], default, allowed, lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= most)


def _size(default: int) -> Key:
    allowed = "pixels: one side or (height, width), 1 to 65536"
    return Key(SIZE, default, allowed, lambda v: len(v) == 2 and min(v) >= 1 and max(v) <= 65536)


def _phases(training: int, evaluation: int) -> Key:
    allowed = "a whole number, at least 1: one for both, or (training, evaluation)"
    return Key(PHASES, (training, evaluation), allowed, lambda v: len(v) == 2 and min(v) >= 1)


def _channels(default: tuple[float, ...], above: float = -math.inf) -> Key:
    allowed = "numbers" + (f" above {above:g}" if above > -math.inf else "") + ", one a channel or one for all"
    return Key(tuple[float, ...], default, allowed, lambda v: v and min(v) > above)


def _indices(default: tuple[int, ...], exactly: int = 0) -> Key:
    allowed = "whole numbers, at least 0" + (f", {exactly} of them" if exactly else "")
    return Key(tuple[int, ...], default, allowed, lambda v: min(v, default=0) >= 0 and len(v) == (exactly or len(v)))


def _flag(default: bool) -> Key:
    return Key(bool, default, "True or False")


def _text(default: str) -> Key:
    return Key(str, default, "text")


def _no_data() -> Key:
    return Key(str, "none", "'none', 'nan' or a number", lambda value: value == "none" or is_number(value))


def _ratio() -> Key:
    allowed = "a number above 0, or one a stage"
    return Key(RATIO, None, allowed, lambda v: min(v) > 0 if isinstance(v, tuple) else v > 0, by_stage=True)


def _backend(*names: str) -> Key:
    allowed = f"{' or '.join(names)}, for all stages or one a stage"
    return Key(NAMES, names[0], allowed, lambda v: set(v if isinstance(v, tuple) else [v]) <= {*names}, by_stage=True)


_NO_FLOAT16 = " (float16 needs loss scaling, which is not there)"

# The defaults are the paper's Swin-B (arXiv 2205.13515, section 4.1).
KEYS = {
    "task": choice("pretrain", "pretrain", "finetune", "linear", "knn", "eval", "detect"),
    "method": choice("green", "green", "simmim"),
    "seed": Key(int, 0, "a whole number, 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "epochs": count(None, 0, UNSET),  # of the training split; this or steps
    "steps": count(None, 0, UNSET),  # updates; this or epochs
    "image_size": _size(224),
    "init": Key(str, "none", "'none', a greenjax workdir, or a file or folder of weights", bool),  # the first weights
    "new_head": _flag(False),  # draws the layers with outputs for classes anew, although `init` has them
    "monitor": choice("none", "none", "knn", "linear"),  # in pre-training: measures the accuracy of frozen features
    "ema": _share(0.0),  # decay of the moving average of the weights, at each update; 0 = no average
    "deterministic": _flag(False),  # the same bits in every run on one GPU, at some cost in speed
    "model.name": choice(DEFAULT, *ARCHITECTURES),
    **{f"model.{part}": key for part, key in SETTINGS.items()},  # come with `name`, as the next four
    "model.patch": count(None),  # pixels a side
    "model.depths": counts(),  # blocks
    "model.mlp_ratio": _ratio(),
    "model.norm_epsilon": positive(None)._replace(free=True),  # of the norms, but for those with a fixed one
    "model.drop_path": _share(0.0),  # stochastic depth of the last block; it rises linearly from 0 at the first
    "model.attention": choice("xla", "xla", "pallas"),  # of grouped windows; pallas: our kernel for NVIDIA GPUs
    "model.border": choice("cut", "cut", "pad"),  # of windows: cut there, or filled with zeros that are attended to
    "model.sparse_conv": _backend("native", "spconv", "masked"),  # of sparse convolutions, by the stage of their input
    "model.spconv_callback": choice("pure", "pure", "buffer"),  # the way in which JAX calls spconv
    "model.in_channels": count(3),
    "model.num_classes": count(None, 0, UNSET),  # outputs of a classifier's head
    "model.dtype": choice("float32", "float32", "bfloat16", note=_NO_FLOAT16),  # parameters stay float32
    "model.remat": _flag(False),  # recomputes each block in the backward pass: less memory, more time
    "decoder.dim": count(512),
    "decoder.depth": count(1),
    "decoder.num_heads": count(16),
    "mask.ratio": Key(float, 0.75, "above 0 and below 1", lambda value: 0 < value < 1),  # the masked share of the units
    "mask.groups": count(8),  # masks of one update, each for equally many images; data.batch_size = one mask an image
    "mask.pool": count(0, 0),  # the number of masks that are drawn once and chosen from; 0 = every mask is new
    "data.source": choice("tfds", *SOURCES),
    "data.path": _text(
        ""
    ),  # folder, records: a directory; list: a file; tar: a pattern; tfds: a prepared data set or its data_dir
    "data.name": _text(""),  # tfds: the data set's name
    "data.split": Key(str, "train", "the name of a split", bool),
    "data.eval_split": _text(""),  # "" = no held-out evaluation
    "data.eval_sets": _text(""),  # task eval: more sets, NAME_OR_PATH@SPLIT or SPLIT, separated by commas
    "data.eval_images": count(2048),  # at most, in pre-training; a classifier is judged on all
    "data.monitor_source": choice("", "", *SOURCES, note="; '' = as data.source"),
    "data.monitor_path": _text(""),  # of labelled sets for the monitor; "" = as data.path, also for the next three
    "data.monitor_name": _text(""),
    "data.monitor_split": _text(""),
    "data.monitor_eval_split": _text(""),
    "data.per_class": count(0, 0),  # a classifier trains on the first so many images of each class; 0 = on all
    "data.batch_size": count(2048),  # images of one update: all devices and accumulation steps together
    "data.workers": count(8, 0, most=1024),  # processes that decode and augment images; 0 = the main process does
    "data.crop_scale": _range((0.2, 1.0), most=1.0),  # the share of the image's area that a crop has
    "data.crop_ratio": _range((3 / 4, 4 / 3)),  # width / height
    "data.flip": _flag(True),
    "data.quarter_turns": _flag(False),  # turns each view by 0, 90, 180 or 270 degrees
    "data.randaugment": Key(float, 0.0, "a number from 0 (off) to 10", lambda value: 0 <= value <= 10),  # its magnitude
    "data.randaugment_layers": count(2),  # operations an image
    "data.erasing": _probability(0.0),  # that a random box is filled with noise
    "data.mixup": _amount(0.0),  # alpha of the Beta distribution of the shares of two images; 0 = off, also for cutmix
    "data.cutmix": _amount(0.0),
    "data.mix_prob": _probability(1.0),  # that an image is mixed at all
    "data.mix_switch": _probability(0.5),  # of CutMix rather than Mixup, where both are on
    "data.eval_crop": _fraction(1.0),  # the side of the crop, as a share of the shorter side
    "data.dtype": choice("uint8", *DTYPES),  # of the pixels, from the file to the device
    "data.channels": _indices(()),  # of an image, in the order in which the model takes them; () = all
    "data.alpha": choice("drop", *ALPHAS),  # of transparent images; keep: a channel; black, white: the ground below
    "data.page": Key(int, 0, "at least 0, or -1 for all pages, as channels", lambda value: value >= -1),  # of a TIFF
    "data.no_data": _no_data(),  # the value of pixels without a measurement; NaN is one too where this is given
    "data.scale": Key(float, None, f"a number above 0{UNSET}", lambda value: value >= 0),  # pixels are divided by it
    "data.mean": _channels((0.485, 0.456, 0.406)),  # of pixels / data.scale; ImageNet's
    "data.std": _channels((0.229, 0.224, 0.225), above=0.0),
    "data.statistics": _text(""),  # a file of greenjax.data.statistics, which gives data.mean and data.std
    "optim.name": choice("adamw", "adamw", "lars", note="; lars for task 'linear' only"),
    "optim.schedule": choice("cosine", "cosine", "steps"),  # of the rate after the warm-up
    "optim.steps_at": Key(  # shares of the run after which the rate of "steps" falls
        tuple[float, ...],
        (0.75, 11 / 12),
        "rising numbers above 0 and below 1",
        lambda v: all(0 < share < 1 for share in v) and list(v) == sorted(set(v)),
    ),
    "optim.steps_factor": _fraction(0.1),  # of the rate, at each of them
    "optim.base_lr": positive(1.5e-4),  # multiplied by data.batch_size / 256, as warmup_lr and min_lr
    "optim.warmup_lr": _amount(1.5e-7),  # at the start of the warm-up
    "optim.min_lr": _amount(0.0),  # at the end of the cosine
    "optim.warmup_epochs": count(None, 0, UNSET),  # in a run measured in epochs; no warm-up if neither is given
    "optim.warmup_steps": count(None, 0, UNSET),  # in a run measured in steps
    "optim.weight_decay": _amount(0.05),
    "optim.b1": _share(0.9),
    "optim.b2": _share(0.95),  # the paper prints 0.999; the recipe behind its numbers has MAE's 0.95
    "optim.eps": positive(1e-8),
    "optim.layer_decay": _fraction(1.0),  # factor of the rate, from a layer to the layer below
    "optim.layer_blocks": count(1),  # blocks of a stage, in turn, that are one layer of the decay
    "optim.clip": _amount(5.0, "; 0 = no clipping"),  # the largest global norm of a gradient
    "optim.label_smoothing": _share(0.1),  # the part of a classifier's target that is spread over all classes
    "optim.accumulation": count(1),  # the number of parts in which the batch of an update is computed
    "optim.max_skipped": count(10, 0),  # more updates in a row that are not finite are a divergence
    # The run diverges where the mean loss of 10 updates is above this many times the mean of the 100 before.
    "guard.spike": Key(float, 3.0, "a number above 1, or 0 = off", lambda value: value == 0 or value > 1),
    "guard.rollbacks": count(3, 0),  # how often a run that diverges goes back and takes other data
    "mesh.data": Key(int, -1, "at least 1, or -1 for all devices", lambda value: value == -1 or value >= 1),
    "mesh.fsdp": count(1),  # devices that parameters are split over
    "log.every": count(50),  # in steps, as all *_every
    "log.eval_every": count(1000, 0),  # 0 = only at the end
    "log.picture_every": count(5000, 0),
    "log.picture_channels": _indices((0, 1, 2), 3),  # that are shown as red, green and blue of more than three
    "log.checkpoint_every": count(1000, 0),
    "log.monitor_every": count(5000, 0),
    "log.monitor_images": count(20000),  # at most this many of each split
    "log.keep": count(3),  # the latest checkpoints
    "log.keep_every": count(0, 0),  # and the checkpoints of multiples of this many steps; 0 = none
    "log.predictions": _flag(False),  # task eval: a CSV with the prediction for each image
    "detect.fpn_dim": count(256),  # channels of the feature pyramid
    "detect.anchor_sizes": Key(  # pixels a side of an anchor, one a level of the pyramid
        tuple[int, ...], (32, 64, 128, 256, 512), "whole numbers, at least 1, one a level", lambda v: v and min(v) >= 1
    ),
    "detect.pre_nms": _phases(2000, 1000),  # proposals of a level before non-maximum suppression
    "detect.post_nms": _phases(2000, 1000),  # proposals of an image after it
    "detect.rpn_nms_threshold": _fraction(0.7),  # of the intersection over union of two boxes, as the next
    "detect.nms_threshold": _fraction(0.5),
    "detect.max_detections": count(100),  # of an image
    "detect.score_threshold": _share(0.05),  # the least score of a detection
    "detect.rpn_samples": count(256),  # anchors of an image that the loss takes
    "detect.box_samples": count(512),  # proposals of an image that the loss takes
    "detect.shorter_sides": Key(  # pixels: drawn in training, the largest in evaluation; () = that of image_size
        tuple[int, ...], (), "whole numbers, at least 1", lambda v: not v or min(v) >= 1
    ),
    "detect.max_objects": count(100),  # of an image in training: the largest
    "detect.keep_empty": _flag(False),  # trains on images without objects, too
    "knn.k": Key(tuple[int, ...], (20,), "whole numbers, at least 1", lambda v: v and min(v) >= 1),  # neighbours
    "knn.temperature": positive(0.07),  # a neighbour's weight is exp(cosine / temperature)
}
