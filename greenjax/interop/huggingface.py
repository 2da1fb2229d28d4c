"""What makes a folder of weights one that transformers' from_pretrained opens: its config, and how images get in."""

from typing import Any

from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.planning import token_grid


def folder_config(config: ConfigDict, parts: set[str]) -> dict[str, Any]:
    """config.json for a SwinModel, SwinForImageClassification or SwinForMaskedImageModeling, by the parts of the model.

    Raises InputError for what SwinConfig cannot say.
    """
    model = config.model
    if isinstance(model.mlp_ratio, tuple) and len(set(model.mlp_ratio)) > 1:
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}: expected one ratio for all stages with layout 'hf'")
    rows, columns = config.image_size
    if "pixel_head" in parts and rows != columns:
        raise InputError(f"image_size is {config.image_size}: expected a square with layout 'hf' and a decoder")
    ratio = model.mlp_ratio[0] if isinstance(model.mlp_ratio, tuple) else model.mlp_ratio
    kinds = {"head": "SwinForImageClassification", "pixel_head": "SwinForMaskedImageModeling"}
    labels = {"id2label": {str(i): f"LABEL_{i}" for i in range(model.num_classes)}} if "head" in parts else {}
    labels |= {"label2id": {name: int(i) for i, name in labels["id2label"].items()}} if labels else {}
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


def image_processor(config: ConfigDict) -> dict[str, Any]:
    """preprocessor_config.json: resize to the image size, scale to [0, 1], normalise colours."""
    height, width = config.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.data.mean),
        "image_std": list(config.data.std),
    }
