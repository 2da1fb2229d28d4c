"""Every setting of a run: its name, default, type, allowed values and meaning. `KEYS` is the whole list."""

from greenjax.backbones.registry import ARCHITECTURES, DEFAULT, SETTINGS
from greenjax.backbones.settings import UNSET, Key, choice, count, counts, positive
from greenjax.config.kinds import (
    amount,
    backend,
    by_channel,
    flag,
    fraction,
    indices,
    low_high,
    no_data,
    paths,
    phases,
    probability,
    ratio,
    several,
    share,
    size,
    text,
)
from greenjax.data.reading import ALPHAS, DTYPES
from greenjax.data.sources import SOURCES

_NO_FLOAT16 = " (float16 needs loss scaling, which is not there)"

# The defaults are the paper's Swin-B (arXiv 2205.13515, section 4.1).
KEYS = {
    "task": choice("pretrain", "pretrain", "finetune", "linear", "knn", "eval", "detect").means("what the run does"),
    "method": choice("green", "green", "simmim").means(
        "green encodes visible tokens only; simmim, the dense baseline, encodes all"
    ),
    "seed": Key(int, 0, "a whole number, 0 to 4294967295", lambda value: 0 <= value < 2**32).means(
        "of initial weights, masks, augmentation and the order of the images"
    ),
    "epochs": count(None, 0, UNSET).means("length of the run, in passes over the training split; this or steps"),
    "steps": count(None, 0, UNSET).means("length of the run, in updates; this or epochs"),
    "image_size": size(224).means("of the images that the model takes"),
    "init": Key(str, "none", "'none', a greenjax workdir, or a file or folder of weights", bool).means(
        "where the first weights come from"
    ),
    "new_head": flag(False).means("draws the layers with outputs for classes anew, although init has them"),
    "monitor": choice("none", "none", "knn", "linear", "views").means(
        "in pre-training: measures frozen features, by labels, or by views of images (docs/finetune.md)"
    ),
    "ema": share(0.0).means("decay of the moving average of the weights, at each update; 0 = no average"),
    "deterministic": flag(False).means("the same bits in every run on one GPU, at some cost in speed"),
    "model.name": choice(DEFAULT, *ARCHITECTURES).means("the backbone; brings its published settings"),
    **{f"model.{part}": key for part, key in SETTINGS.items()},  # come with `name`, as the next four
    "model.patch": count(None).means("side of a patch, pixels"),
    "model.depths": counts().means("blocks of each stage"),
    "model.mlp_ratio": ratio().means("width of an MLP's hidden layer / channels"),
    "model.norm_epsilon": positive(None)._replace(free=True).means("of the norms, but for those with a fixed one"),
    "model.drop_path": share(0.0).means("stochastic depth of the last block; it rises linearly from 0 at the first"),
    "model.attention": choice("xla", "xla", "pallas").means("of grouped windows; pallas: our kernel for NVIDIA GPUs"),
    "model.border": choice("cut", "cut", "pad").means(
        "of windows: cut there, or filled with zeros that are attended to"
    ),
    "model.sparse_conv": backend("native", "spconv", "masked").means(
        "backend of sparse convolutions, by the stage of their input"
    ),
    "model.spconv_callback": choice("pure", "pure", "buffer").means("the way in which JAX calls spconv"),
    "model.in_channels": count(3).means("of the images that the model takes"),
    "model.num_classes": count(None, 0, UNSET).means(
        "outputs of a classifier's head; not given: the classes of the data"
    ),
    "model.dtype": choice("float32", "float32", "bfloat16", note=_NO_FLOAT16).means(
        "of activations and products; parameters stay float32"
    ),
    "model.remat": flag(False).means("recomputes each block in the backward pass: less memory, more time"),
    "decoder.dim": count(512).means("channels of the decoder of pre-training"),
    "decoder.depth": count(1).means("its transformer blocks"),
    "decoder.num_heads": count(16).means("its attention heads"),
    "decoder.norm_pixels": flag(True).means(
        "green predicts the pixels of each patch less their mean and over their deviation; False: the pixels"
    ),
    "decoder.fusion": flag(False).means("it reads the tokens of all stages, summed on the last grid, as Hiera's"),
    "decoder.positions": choice("sincos", "sincos", "learned").means("of its tokens: sines and cosines, or trained"),
    "mask.ratio": Key(float, 0.75, "above 0 and below 1", lambda value: 0 < value < 1).means(
        "the masked share of the units"
    ),
    "mask.groups": count(8).means(
        "masks of one update, each for equally many images; data.batch_size = one mask an image"
    ),
    "mask.block": count(1).means("units a side of the blocks that a mask hides whole; 1 = single units"),
    "mask.pool": count(0, 0).means("number of masks that are drawn once and chosen from; 0 = every mask is new"),
    "data.source": choice("tfds", *SOURCES).means("the kind of data set (docs/data.md)"),
    "data.path": paths().means(
        "a directory, a file, a pattern or a name, by data.source; folder: one directory or several (docs/data.md)"
    ),
    "data.name": text("").means("tfds: the data set's name; huggingface: its configuration"),
    "data.image_column": text("").means("huggingface: the column of images; '' = image, or the only one of images"),
    "data.label_column": text("").means("huggingface: the column of classes; '' = label, or the only one of classes"),
    "data.split": Key(str, "train", "the name of a split", bool).means(
        "the images of training, such as train or all[:98%]"
    ),
    "data.eval_split": text("").means("the held-out images; '' = no held-out evaluation"),
    "data.eval_sets": text("").means("task eval: more sets, NAME_OR_PATH@SPLIT or SPLIT, separated by commas"),
    "data.eval_images": count(2048).means(
        "at most so many held-out images in pre-training, evenly spaced; a classifier is judged on all"
    ),
    "data.monitor_source": choice("", "", *SOURCES, note="; '' = as data.source").means(
        "the kind of data set of the monitor's labelled images"
    ),
    "data.monitor_path": paths().means("of the monitor's labelled images; '' = as data.path"),
    "data.monitor_name": text("").means("of the monitor's labelled images; '' = as data.name"),
    "data.monitor_split": text("").means("of the monitor's labelled images, to learn from; '' = as data.split"),
    "data.monitor_eval_split": text("").means("of the monitor's labelled images, to judge by; '' = as data.eval_split"),
    "data.per_class": count(0, 0).means("a classifier trains on the first so many images of each class; 0 = on all"),
    "data.batch_size": count(2048).means("images of one update: all devices and accumulation steps together"),
    "data.workers": count(8, 0, most=1024).means("processes that decode and augment images; 0 = the main process does"),
    "data.cache": text("").means("folder of copies of images at URLs; '' = objects in the user's cache folder"),
    "data.cache_gb": amount(20.0, "; 0 = no copies").means("the most that the folder of copies holds, 10^9 bytes"),
    "data.fetch_seconds": positive(60.0).means("of one request to a URL, with all its tries; then the run ends"),
    "data.crop_scale": low_high((0.2, 1.0), most=1.0).means("the share of the image's area that a crop has"),
    "data.crop_ratio": low_high((3 / 4, 4 / 3)).means("width / height of a crop"),
    "data.flip": flag(True).means("mirrors half of the views"),
    "data.quarter_turns": flag(False).means("turns each view by 0, 90, 180 or 270 degrees"),
    "data.randaugment": Key(float, 0.0, "a number from 0 (off) to 10", lambda value: 0 <= value <= 10).means(
        "magnitude of RandAugment"
    ),
    "data.randaugment_layers": count(2).means("operations of RandAugment, an image"),
    "data.erasing": probability(0.0).means("probability that a random box is filled with noise"),
    "data.mixup": amount(0.0).means("alpha of the Beta distribution of the shares of two images; 0 = off"),
    "data.cutmix": amount(0.0).means("alpha of the Beta distribution of the shares of two images; 0 = off"),
    "data.mix_prob": probability(1.0).means("probability that an image is mixed at all"),
    "data.mix_switch": probability(0.5).means("probability of CutMix rather than Mixup, where both are on"),
    "data.eval_crop": fraction(1.0).means("side of the crop in evaluation, as a share of the shorter side"),
    "data.dtype": choice("uint8", *DTYPES).means("of the pixels, from the file to the device"),
    "data.channels": indices(()).means("of an image, in the order in which the model takes them; () = all"),
    "data.alpha": choice("drop", *ALPHAS).means(
        "of transparent images; keep: a channel; black, white: the ground below"
    ),
    "data.page": Key(int, 0, "at least 0, or -1 for all pages, as channels", lambda value: value >= -1).means(
        "of a TIFF"
    ),
    "data.no_data": no_data().means("the value of missing pixels; where this is given, NaN counts as missing, too"),
    "data.scale": Key(float, None, f"a number above 0{UNSET}", lambda value: value >= 0).means(
        "pixels are divided by it; not given: by the largest value of an integer type"
    ),
    "data.mean": by_channel((0.485, 0.456, 0.406)).means("of pixels / data.scale; the default is ImageNet's"),
    "data.std": by_channel((0.229, 0.224, 0.225), above=0.0).means("of pixels / data.scale; the default is ImageNet's"),
    "data.statistics": text("").means("a file of `greenjax data statistics`, which gives data.mean and data.std"),
    "optim.name": choice("adamw", "adamw", "lars", note="; lars for task 'linear' only").means("the optimizer"),
    "optim.schedule": choice("cosine", "cosine", "steps").means("of the rate after the warm-up"),
    "optim.steps_at": Key(
        tuple[float, ...],
        (0.75, 11 / 12),
        "rising numbers above 0 and below 1",
        lambda v: all(0 < share < 1 for share in v) and list(v) == sorted(set(v)),
    ).means("shares of the run after which the rate of the schedule steps falls"),
    "optim.steps_factor": fraction(0.1).means("of the rate, at each of optim.steps_at"),
    "optim.base_lr": positive(1.5e-4).means(
        "highest learning rate; multiplied by data.batch_size / 256, as warmup_lr and min_lr"
    ),
    "optim.warmup_lr": amount(1.5e-7).means("learning rate at the start of the warm-up"),
    "optim.min_lr": amount(0.0).means("learning rate at the end of the cosine"),
    "optim.warmup_epochs": count(None, 0, UNSET).means("in a run measured in epochs; no warm-up if neither is given"),
    "optim.warmup_steps": count(None, 0, UNSET).means("in a run measured in steps"),
    "optim.weight_decay": amount(0.05).means("of matrices; biases, norms, position biases and mask token have none"),
    "optim.b1": share(0.9).means("decay of the mean of gradients"),
    # The paper prints 0.999 for b2; the recipe behind its numbers has MAE's 0.95.
    "optim.b2": share(0.95).means("decay of the mean of their squares"),
    "optim.eps": positive(1e-8).means("of AdamW's denominator"),
    "optim.layer_decay": fraction(1.0).means("factor of the rate, from a layer to the layer below"),
    "optim.layer_blocks": count(1).means("blocks of a stage, in turn, that are one layer of the decay"),
    "optim.clip": amount(5.0, "; 0 = no clipping").means("the largest global norm of a gradient"),
    "optim.label_smoothing": share(0.1).means("the part of a classifier's target that is spread over all classes"),
    "optim.accumulation": count(1).means("parts in which the batch of an update, or of an evaluation, is computed"),
    "optim.max_skipped": count(10, 0).means("a run diverges if more updates than this in a row are not finite"),
    "guard.spike": Key(float, 3.0, "a number above 1, or 0 = off", lambda value: value == 0 or value > 1).means(
        "a run diverges if the median loss of 10 updates is above so many times the mean of the 100 before them"
    ),
    "guard.rollbacks": count(3, 0).means("how often a run that diverges goes back and takes other data"),
    "mesh.data": Key(int, -1, "at least 1, or -1 for all devices", lambda value: value == -1 or value >= 1).means(
        "devices that the batch is split over"
    ),
    "mesh.fsdp": count(1).means("devices that parameters are split over"),
    "log.to": several("tensorboard", "tensorboard", "wandb", "mlflow").means("trackers, beside metrics.jsonl"),
    "log.every": count(50).means("steps between two lines of metrics"),
    "log.eval_every": count(1000, 0).means("steps between two held-out evaluations; 0 = first and last step only"),
    "log.picture_every": count(5000, 0).means("steps between two pictures; 0 = first and last step only"),
    "log.picture_channels": indices((0, 1, 2), 3).means("shown as red, green and blue of more than three"),
    "log.checkpoint_every": count(1000, 0).means("steps between two checkpoints; 0 = only at the end"),
    "log.monitor_every": count(5000, 0).means(
        "steps between two measurements of the monitor; 0 = first and last step only"
    ),
    "log.monitor_images": count(20000).means("at most so many images of each of the monitor's splits, evenly spaced"),
    "log.keep": count(3).means("the number of latest checkpoints that stay"),
    "log.keep_every": count(0, 0).means("checkpoints of multiples of so many steps stay, too; 0 = none"),
    "log.predictions": flag(False).means("task eval: a CSV with the prediction for each image"),
    "detect.fpn_dim": count(256).means("channels of the feature pyramid"),
    "detect.anchor_sizes": Key(
        tuple[int, ...], (32, 64, 128, 256, 512), "whole numbers, at least 1, one a level", lambda v: v and min(v) >= 1
    ).means("pixels a side of an anchor, one a level of the pyramid"),
    "detect.pre_nms": phases(2000, 1000).means("proposals of a level before non-maximum suppression"),
    "detect.post_nms": phases(2000, 1000).means("proposals of an image after non-maximum suppression"),
    "detect.rpn_nms_threshold": fraction(0.7).means("intersection over union of two proposals of which one is dropped"),
    "detect.nms_threshold": fraction(0.5).means("intersection over union of two detections of which one is dropped"),
    "detect.max_detections": count(100).means("of an image"),
    "detect.score_threshold": share(0.05).means("the least score of a detection"),
    "detect.rpn_samples": count(256, 2).means("anchors of an image that the loss takes"),
    "detect.box_samples": count(512, 4).means("proposals of an image that the loss takes"),
    "detect.shorter_sides": Key(tuple[int, ...], (), "whole numbers, at least 1", lambda v: not v or min(v) >= 1).means(
        "pixels: drawn in training, the largest in evaluation; () = that of image_size"
    ),
    "detect.max_objects": count(100).means("of an image in training: the largest"),
    "detect.keep_empty": flag(False).means("trains on images without objects, too"),
    "knn.k": Key(tuple[int, ...], (20,), "whole numbers, at least 1", lambda v: v and min(v) >= 1).means(
        "neighbours that vote; the accuracy of each number is measured"
    ),
    "knn.temperature": positive(0.07).means("a neighbour's weight is exp(cosine / temperature)"),
}

READING = ("data.dtype", "data.channels", "data.alpha", "data.page", "data.no_data")  # how pixels are read
