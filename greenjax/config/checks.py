"""Settings that contradict each other. Each check takes the flat settings {"model.window": 7, ...}.

Checks raise InputError: one line with the key, its value and what is expected beside the other settings.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from greenjax.backbones.geometry import grid_of, specs_of, visible_of
from greenjax.backbones.registry import family_of
from greenjax.backbones.settings import by_stage
from greenjax.config.settings import KEYS, READING
from greenjax.data.sources import COLUMNS, SEVERAL, SOURCES
from greenjax.errors import listed, refuse

Values = dict[str, Any]

LABELLED = ("data.per_class", "data.randaugment", "data.erasing", "data.mixup", "data.cutmix")  # for one label an image
UNUSED = {  # by task: a value other than the default or 0 is refused
    "detect": (*LABELLED, "data.quarter_turns", "data.eval_crop", "optim.label_smoothing"),
    "pretrain": (*LABELLED, "optim.label_smoothing"),
}


def check_all(values: Values) -> None:
    model = SimpleNamespace(**{key[6:]: value for key, value in values.items() if key.startswith("model.")})
    grid = grid_of(values["image_size"], model)
    check_rates(values)
    check_model(values, model, grid)
    check_data(values)
    check_optimizer(values)
    if values["task"] == "detect":
        check_detection(values, grid)
    if values["task"] == "pretrain":
        check_masks(values, grid)
        check_decoder(values, family_of(model.name))
        check_unlabelled(values)
    check_split(values, max(values["mesh.data"], 1) * values["mesh.fsdp"])  # mesh.data -1: at least one device


def check_rates(values: Values) -> None:
    for key in ("optim.warmup_lr", "optim.min_lr"):
        if values[key] > values["optim.base_lr"]:
            refuse(values, key, f"at most optim.base_lr, {values['optim.base_lr']!r}")


def check_model(values: Values, model: Any, grid: Any) -> None:
    family = family_of(model.name)
    for key, value in values.items():
        if KEYS[key].by_stage and isinstance(value, tuple) and len(value) != len(model.depths):
            refuse(values, key, f"one value a stage, as model.depths {model.depths!r} has")
    family.check(model)
    stages = specs_of(family, model, grid)
    if model.border != "cut" and not (family.pads and any(stage.windows for stage in stages)):
        refuse(values, "model.border", f"cut for {model.name}, which has no windows that zeros can fill up")
    if model.attention != "xla" and not any(stage.windows for stage in stages):
        refuse(values, "model.attention", f"xla for {model.name}, which has no attention inside windows")
    for width, heads in zip(family.channels(model), model.num_heads or ()):
        if model.attention == "pallas" and width // heads not in (16, 32, 64, 128):
            allowed = f"xla where a head has {width // heads} channels: pallas takes 16, 32, 64 or 128"
            refuse(values, "model.attention", allowed)
    sparse = family.overlapping or any(stage.kernels for stage in stages)
    if not sparse and {*by_stage(model.sparse_conv, len(stages))} != {"native"}:
        refuse(values, "model.sparse_conv", f"native for {model.name}, which has no sparse convolutions")


def check_masks(values: Values, grid: Any) -> None:
    visible_of(grid, values["mask.ratio"])
    most, (rows, columns) = max(1, min(grid.units) - 1), grid.units
    if values["mask.block"] > most:
        refuse(values, "mask.block", f"at most {most} for {rows} x {columns} units: a block is a part of the image")


def check_decoder(values: Values, family: Any) -> None:
    dim, heads = values["decoder.dim"], values["decoder.num_heads"]
    if dim % 4:
        refuse(values, "decoder.dim", "a multiple of 4 (sine and cosine of row and column)")
    if dim % heads:
        refuse(values, "decoder.num_heads", f"a divisor of decoder.dim, {dim}")
    if values["method"] != "green":
        for key in ("decoder.fusion", "decoder.positions"):
            if values[key] != KEYS[key].default:
                why = f"for method {values['method']!r}, whose decoder is a linear layer"
                refuse(values, key, f"{KEYS[key].default!r} {why}")
    if values["decoder.fusion"] and (len(values["model.depths"]) == 1 or family.norms_stages):
        why = "norms every stage" if family.norms_stages else "has one stage"
        refuse(values, "decoder.fusion", f"False for {values['model.name']}, which {why}")


def check_data(values: Values) -> None:
    channels = values["model.in_channels"]
    for key in ("data.mean", "data.std"):
        if len(values[key]) != channels:
            how = "" if channels in (1, 3) else "; `python -m greenjax.data.statistics` measures them"
            refuse(values, key, f"{channels} numbers, one a channel (model.in_channels), or one for all{how}")
    check_pixels(values, channels)
    name = values["data.source"]
    if isinstance(values["data.path"], tuple) and name not in SEVERAL:
        refuse(values, "data.path", f"one path for data.source {name!r}; several are for {listed(SEVERAL)}")
    for key in COLUMNS:
        if values[key] and key not in SOURCES[name].place:
            refuse(values, key, f"'' for data.source {name!r}, which has no such columns")
    SOURCES[name].check(values)


def check_detection(values: Values, grid: Any) -> None:
    levels = len(values["model.depths"]) + 1
    if levels == 2:
        refuse(values, "task", f"another for {values['model.name']}, which has one stage and so no feature pyramid")
    if grid.side(-1) > 1:
        why = "for task 'detect': a pyramid halves its grid at every level"
        refuse(values, f"model.{family_of(values['model.name']).unpooled_by}", f"{levels - 2} {why}")
    if len(values["detect.anchor_sizes"]) != levels:
        refuse(values, "detect.anchor_sizes", f"{levels} sizes: one a stage of {values['model.name']}, and one above")
    if max(values["detect.shorter_sides"], default=0) > min(values["image_size"]):
        refuse(values, "detect.shorter_sides", f"at most the shorter side of image_size, {values['image_size']}")
    picture = "for task 'detect', whose images are pictures: 8 bits of grey or RGB"
    if values["model.in_channels"] not in (1, 3):
        refuse(values, "model.in_channels", f"1 or 3 {picture}")
    if values["init"] != "none":
        picture += f"; given beside the config, it goes before that of init {values['init']!r}"
    for key in READING:
        if values[key] != KEYS[key].default:
            refuse(values, key, f"{KEYS[key].default!r} {picture}")
    for key in UNUSED["detect"]:
        if values[key] not in (KEYS[key].default, 0):
            refuse(values, key, f"{KEYS[key].default!r}, the default, for task 'detect', which makes no use of it")


def check_pixels(values: Values, channels: int) -> None:
    dtype, no_data = np.dtype(values["data.dtype"]), values["data.no_data"]
    if values["data.channels"] and len(values["data.channels"]) != channels:
        refuse(values, "data.channels", f"{channels} of them (model.in_channels), or () for all")
    if (
        dtype.kind in "iu"
        and no_data != "none"
        and not (float(no_data).is_integer() and np.iinfo(dtype).min <= float(no_data) <= np.iinfo(dtype).max)
    ):
        refuse(values, "data.no_data", f"none, or a number that {dtype.name} (data.dtype) has")
    for key, why in unfit(values).items():
        if values[key]:
            refuse(values, key, f"0 {why}")
    if values["data.quarter_turns"] and len(set(values["image_size"])) > 1:
        refuse(values, "data.quarter_turns", f"False for image_size {values['image_size']!r}, which is not square")
    if max(values["log.picture_channels"]) >= channels > 3:
        refuse(values, "log.picture_channels", f"channels below {channels} (model.in_channels)")


def unfit(values: Values) -> dict[str, str]:
    """The settings of augmentation that the images of these settings cannot have, and why."""
    found, (dtype, channels) = {}, (values[key] for key in ("data.dtype", "model.in_channels"))
    if values["data.no_data"] != "none":
        given = f"where data.no_data is {values['data.no_data']!r}"
        found["data.mixup"] = f"{given}: pixels without data mix with nothing"
        found["data.randaugment"] = f"{given}: it would make data of pixels without data"
    if dtype != "uint8" or channels not in (1, 3):
        found["data.randaugment"] = f"for {dtype} of {channels} channels: it is for 8 bits of grey or RGB"
    return found


def acceptable(settings: Values) -> Values:
    """Settings that weights bring, without augmentation that is refused for their task or their images.

    Earlier versions took it, and weights open whatever augmentation they were trained with.
    """
    values = {key: entry.default for key, entry in KEYS.items()} | settings
    unused = {key: KEYS[key].default for key in UNUSED.get(values["task"], ())}
    refused = {key: default for key, default in unused.items() if values[key] not in (default, 0)}
    return settings | dict.fromkeys(unfit(values), 0) | refused


def check_optimizer(values: Values) -> None:
    if values["optim.name"] == "lars" and values["task"] not in ("linear", "eval"):
        refuse(values, "optim.name", f"adamw for task {values['task']!r}")
    if values["optim.layer_decay"] != 1 and values["task"] not in ("finetune", "detect", "eval"):
        refuse(values, "optim.layer_decay", f"1 for task {values['task']!r}: it is for fine-tuning")
    if values["monitor"] != "none" and values["task"] != "pretrain":
        refuse(values, "monitor", f"none for task {values['task']!r}")
    for key in ("source", "path", "name", "split", "eval_split"):
        if values["monitor"] == "views" and values[f"data.monitor_{key}"]:
            refuse(values, f"data.monitor_{key}", "'' for monitor 'views', which takes images of the training")
    if values["monitor"] in ("knn", "linear") and not (values["data.monitor_eval_split"] or values["data.eval_split"]):
        refuse(values, "monitor", "none or views where data.eval_split is not set")


def check_unlabelled(values: Values) -> None:
    if values["model.border"] != "cut":
        refuse(values, "model.border", "cut for task 'pretrain': zeros beyond the border are not visible tokens")
    for key in UNUSED["pretrain"]:
        if values[key] not in (KEYS[key].default, 0):
            refuse(values, key, "0 for task 'pretrain': it is for images with labels")


def check_split(values: Values, devices: int) -> None:
    """Every device computes equally many mask groups, or labelled images, in each part of an update."""
    key = "mask.groups" if values["task"] == "pretrain" else "data.batch_size"
    accumulation, batch = values["optim.accumulation"], values["data.batch_size"]
    if values[key] % (accumulation * devices):
        allowed = f"a multiple of optim.accumulation x devices (mesh.data x mesh.fsdp), {accumulation} x {devices}"
        refuse(values, key, allowed)
    if values["task"] == "pretrain" and batch % values["mask.groups"]:
        refuse(values, "mask.groups", f"a divisor of data.batch_size, {batch}")
    if values["task"] == "linear" and batch // accumulation < 2:
        refuse(values, "data.batch_size", "at least 2 images in each part of an update, for the batch norm of a probe")
