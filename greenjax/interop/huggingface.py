"""What makes a folder of weights one that transformers' from_pretrained opens: its config, and how images get in."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.data.classes import Classes
from greenjax.errors import InputError

UNNAMED = "LABEL_"  # how transformers begins the name of a class that nobody named


def folder_config(config: ConfigDict, parts: set[str], classes: Classes = ()) -> dict[str, Any]:
    """config.json for a SwinModel, SwinForImageClassification or SwinForMaskedImageModeling, by the parts of the model.

    `classes` are the names of the head's outputs, as far as they are known. Raises InputError for what SwinConfig
    cannot say.
    """
    model = config.model
    if isinstance(model.mlp_ratio, tuple) and len(set(model.mlp_ratio)) > 1:
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}: expected one ratio for all stages with layout 'hf'")
    rows, columns = config.image_size
    if "pixel_head" in parts and rows != columns:
        raise InputError(f"image_size is {config.image_size}: expected a square with layout 'hf' and a decoder")
    ratio = model.mlp_ratio[0] if isinstance(model.mlp_ratio, tuple) else model.mlp_ratio
    kinds = {"head": "SwinForImageClassification", "pixel_head": "SwinForMaskedImageModeling"}
    labels = _labels(classes, model.num_classes) if "head" in parts else {}
    return {
        "architectures": [next((kind for part, kind in kinds.items() if part in parts), "SwinModel")],
        "model_type": "swin",
        "image_size": rows if rows == columns else [rows, columns],
        "patch_size": model.patch,
        "num_channels": model.in_channels,
        "embed_dim": model.embed_dim,
        "depths": list(model.depths),
        "num_heads": list(model.num_heads),
        "window_size": model.window,
        "mlp_ratio": ratio,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": model.drop_path,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": model.norm_epsilon,
        "encoder_stride": token_grid(config).unit,
        "dtype": "float32",
        **labels,
    }


def _labels(classes: Classes, count: int) -> dict[str, Any]:
    names = [*classes, *(f"{UNNAMED}{index}" for index in range(len(classes), count))]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def folder_classes(path: Path) -> Classes:
    """The names that a folder of transformers, or the one that a file lies in, gives the outputs of its head.

    None where there is no such folder, or where the names are those that transformers makes up.
    """
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        names = found["id2label"]
        classes = tuple(str(names[str(index)]) for index in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return () if any(name.startswith(UNNAMED) for name in classes) else classes


def image_processor(config: ConfigDict) -> dict[str, Any] | str:
    """preprocessor_config.json for what evaluation does with an image (CentreView), or why there is none.

    The shorter side becomes image_size / data.eval_crop, and the centre is cut out. BitImageProcessor is the plainest
    processor of transformers that does so, with and without torchvision, in versions 4 and 5.
    """
    height, width = config.image_size
    if config.model.in_channels != 3:
        grey = config.model.in_channels == 1
        remedy = ": --rgb exports one that takes RGB" if grey and config.task != "pretrain" else ""
        images = "grey images" if grey else f"images of {config.model.in_channels} channels"
        return f"transformers reads files as RGB, and the model takes {images}{remedy}"
    if height != width:
        return f"transformers cannot cover {height} x {width} pixels: docs/interop.md has a line that does"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(height / config.data.eval_crop)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.data.mean),
        "image_std": list(config.data.std),
    }
