"""Compares imported and exported weights with timm's and torchvision's own models, and prints one table.

    PYTHONPATH=. python tests/parity_timm.py [WORD ...]     # all models, or those with one of the words in their label

`narrow` stands before models of few channels, `full` before those of published size. Not collected by pytest: timm and
torchvision ask for another torch than the project's environments have. Where both are installed, random weights come in
from their models by load_torch and go out by save_torch, with a strict load; each time the logits must be theirs, and
the gradient of a weighted sum of logits in the pixels. Where timm's `features_only` reads the exported file, its maps
must be those of greenjax.features; where timm reads official files, an export with official names must give the same
logits. Each figure is the largest difference as a share of the largest value; exit code 1 where one exceeds 1e-5.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from transformers_swin import randomise

import greenjax

TOLERANCE = 1e-5  # of the largest value, after up to 36 blocks in float32
CLASSES = 10
COLUMNS = ("logits, in", "gradients", "logits, out", "features", "official names")
LARGER = {  # timm's names of Swin V2 with windows larger than in pre-training, and these windows
    "swinv2_base_window12to16_192to256": 16,
    "swinv2_base_window12to24_192to384": 24,
}
FULL = {  # names of timm and of greenjax
    "swinv2_tiny_window8_256": "swinv2_t",
    "swinv2_base_window8_256": "swinv2_b",
    "convnext_base": "convnext_b",
    "convnextv2_base": "convnextv2_base",
    "hiera_base_224": "hiera_b",
    "pvt_v2_b2": "pvt_v2_b2",
    "vit_small_patch16_224": "vit_s",
    "vit_base_patch16_224": "vit_b",
    **dict.fromkeys(LARGER, "swinv2_b"),
}


class Case(NamedTuple):
    """A PyTorch model, and the greenjax settings that must give the same."""

    label: str
    theirs: torch.nn.Module
    layout: str
    settings: dict[str, Any]
    features: Callable[[Path], torch.nn.Module] | None = None  # timm's pyramid with the weights of a file
    official: str | None = None  # the layout of the official names, which timm reads, too


def main() -> int:
    wanted = sys.argv[1:]
    print(f"| model | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}")
    worst = 0.0
    for case in cases():
        if not wanted or any(word in case.label for word in wanted):
            differences = compare(case)
            figures = [f"{differences[column]:.1e}" if column in differences else "" for column in COLUMNS]
            print(f"| {case.label} | {' | '.join(figures)} |", flush=True)
            worst = max(worst, *differences.values())
    return int(not worst <= TOLERANCE)


def cases() -> Iterator[Case]:
    """Narrow models with every kind of window, then real ones, each built when it is asked for."""
    narrow = dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    yield timm_swin("narrow Swin, window 7 at 224 px", 224, 7, narrow)
    yield timm_swin("narrow Swin, window 12 at 384 px", 384, 12, narrow)
    yield timm_swin("narrow Swin, window 14 at 224 px", 224, 14, narrow)  # larger than the grid of the last stage
    yield torchvision_swin("narrow Swin, window 7 at 224 px", 224, 7, narrow)
    yield torchvision_swin("narrow Swin, window 12 at 384 px", 384, 12, narrow)
    dims = dict(embed_dims=(16, 32, 64, 64), depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 4))
    yield timm_twins("narrow Twins-SVT", "twins_s", dict(dims, mlp_ratios=(4, 4, 4, 4)))
    yield timm_twins("narrow Twins-PCPVT", "pcpvt_s", dict(dims, mlp_ratios=(8, 8, 4, 4)))

    yield timm_named("narrow", "swinv2_tiny_window8_256", "swinv2_t", narrow)
    yield timm_named("narrow", "swinv2_tiny_window16_256", "swinv2_t", dict(narrow, window=16))
    for name in LARGER:
        yield timm_named("narrow", name, "swinv2_b", narrow)
    dims = (16, 32, 48, 64)
    yield timm_named("narrow", "convnext_tiny", "convnext_t", dict(depths=(1, 1, 2, 1)), dims)
    yield timm_named("narrow", "convnextv2_atto", "convnextv2_atto", dict(depths=(1, 1, 2, 1)), dims)
    yield timm_named("narrow", "hiera_tiny_224", "hiera_t", dict(embed_dim=16, depths=(1, 2, 2, 1)))
    dims = dict(embed_dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4))
    yield timm_named("narrow", "pvt_v2_b0", "pvt_v2_b0", dims)
    for class_token, pool in ((True, "token"), (True, "mean"), (False, "mean")):
        yield timm_vit(class_token, pool)

    swin_t = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    swin_b = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    yield timm_swin("full Swin-T", 224, 7, swin_t)
    yield timm_swin("full Swin-B", 224, 7, swin_b)
    yield torchvision_swin("full Swin-T", 224, 7, swin_t)
    svt_s = dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 10, 4), num_heads=(2, 4, 8, 16))
    svt_l = dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
    pcpvt_s = dict(embed_dims=(64, 128, 320, 512), depths=(3, 4, 6, 3), num_heads=(1, 2, 5, 8))
    yield timm_twins("full Twins-SVT-S", "twins_s", dict(svt_s, mlp_ratios=(4, 4, 4, 4)))
    yield timm_twins("full Twins-SVT-L", "twins_l", dict(svt_l, mlp_ratios=(4, 4, 4, 4)))
    yield timm_twins("full Twins-PCPVT-S", "pcpvt_s", dict(pcpvt_s, mlp_ratios=(8, 8, 4, 4)))
    for theirs, name in FULL.items():
        yield timm_named("full", theirs, name, {})


def timm_named(label: str, theirs: str, name: str, shape: dict[str, Any], dims: tuple[int, ...] = ()) -> Case:
    """A model of timm by its name; `shape` goes to both, `dims`, the channels by stage, under each one's own name."""
    size = timm.get_pretrained_cfg(theirs).input_size[-1]
    names = {"window": "window_size"} | ({"depths": "stages"} if theirs.startswith("hiera") else {})
    own = {names.get(key, key): value for key, value in shape.items()}
    own |= {"dims": dims} if dims else {}
    settings = {"image_size": size, "model.name": name} | {f"model.{key}": value for key, value in shape.items()}
    settings |= {"model.embed_dims": dims} if dims else {}
    if theirs in LARGER:
        settings |= {"model.window": LARGER[theirs], "model.pretrained_windows": (12, 12, 12, 6)}

    def features(file: Path) -> torch.nn.Module:
        options = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(file), num_classes=CLASSES), **own)
        options |= {"out_indices": (-1,)} if theirs.startswith("vit") else {}  # of its one stage
        return timm.create_model(theirs, features_only=True, **options)

    model = timm.create_model(theirs, num_classes=CLASSES, **own)
    official = next((layout for layout in ("convnext", "hiera", "pvt_v2") if theirs.startswith(layout)), None)
    return Case(f"timm, {label} {theirs}", model, "timm", settings, features, official)


def timm_swin(label: str, size: int, window: int, shape: dict[str, Any]) -> Case:
    model = SwinTransformer(img_size=size, window_size=window, num_classes=CLASSES, **shape)
    return Case(f"timm, {label}", model, "timm", swin_settings(size, window, shape))


def torchvision_swin(label: str, size: int, window: int, shape: dict[str, Any]) -> Case:
    model = TorchvisionSwin(patch_size=[4, 4], window_size=[window, window], num_classes=CLASSES, **shape)
    return Case(f"torchvision, {label}", model, "torchvision", swin_settings(size, window, shape))


def swin_settings(size: int, window: int, shape: dict[str, Any]) -> dict[str, Any]:
    settings = {"image_size": size, "model.name": "swin_t", "model.window": window}
    return settings | {f"model.{key}": value for key, value in shape.items()}


def timm_twins(label: str, name: str, shape: dict[str, Any]) -> Case:
    windows = (7, 7, 7, 7) if name.startswith("twins") else None
    model = Twins(wss=windows, sr_ratios=(8, 4, 2, 1), num_classes=CLASSES, **shape)
    settings = {"model.name": name, "model.mlp_ratio": tuple(map(float, shape["mlp_ratios"]))}
    settings |= {f"model.{key}": shape[key] for key in ("embed_dims", "depths", "num_heads")}
    return Case(f"timm, {label}", model, "timm", settings)


def timm_vit(class_token: bool, pool: str) -> Case:
    """A narrow ViT of 224 pixels; timm calls the last norm by its place, behind the pooling or before it."""
    shape = dict(embed_dim=32, depth=3, num_heads=2)
    own = dict(class_token=class_token, global_pool={"token": "token", "mean": "avg"}[pool])
    model = timm.create_model("vit_small_patch16_224", num_classes=CLASSES, **shape, **own)
    settings = {"model.name": "vit_s", "model.embed_dim": 32, "model.depths": (3,), "model.num_heads": (2,)}
    settings |= {"model.class_token": class_token, "model.pool": pool}
    label = f"timm, narrow vit_small_patch16_224, {'' if class_token else 'no '}class token, pool {pool}"
    return Case(label, model, "timm", settings)


def compare(case: Case) -> dict[str, float]:
    """The differences by column: of logits and gradients after weights came in, of logits after they went out, of the
    features in timm, and of the logits after an export with official names."""
    settings = {"task": "finetune", "steps": 10, "data.source": "digits", "model.num_classes": CLASSES}
    config = greenjax.resolve(settings | case.settings)
    images = np.random.default_rng(0).standard_normal((2, *config.image_size, 3)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((2, CLASSES)).astype(np.float32)
    theirs, differences = case.theirs.eval(), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        randomise(theirs, seed=0)
        save_file(theirs.state_dict(), path)
        ours = greenjax.load_torch(path, config, layout=case.layout)
        logits = np.asarray(ours(images))
        gradients = jax.jit(jax.grad(lambda pixels: (ours(pixels) * weights).sum()))(images)
        differences["logits, in"] = difference(logits, run(theirs, images))
        differences["gradients"] = difference(gradients, gradient(theirs, images, weights))

        randomise(theirs, seed=1)  # nothing is left of the weights that came in
        greenjax.save_torch(ours, path, layout=case.layout)
        theirs.load_state_dict(load_file(path), strict=True)
        differences["logits, out"] = difference(logits, run(theirs, images))

        if case.features:
            maps = run(case.features(path).eval(), images)
            pairs = zip(greenjax.features(ours, images), maps, strict=True)
            differences["features"] = max(difference(a, channels_last(b, a.shape)) for a, b in pairs)
        if case.official:
            randomise(theirs, seed=1)
            greenjax.save_torch(ours, path, layout=case.official)
            renamed = import_module(type(theirs).__module__).checkpoint_filter_fn(load_file(path), theirs)
            theirs.load_state_dict(renamed, strict=True)
            differences["official names"] = difference(logits, run(theirs, images))
    return differences


def gradient(model: torch.nn.Module, images: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Of the weighted sum of the logits, in the pixels."""
    pixels = torch.tensor(images, requires_grad=True)
    (model(pixels.permute(0, 3, 1, 2)) * torch.tensor(weights)).sum().backward()
    assert pixels.grad is not None
    return pixels.grad


def run(model: torch.nn.Module, images: np.ndarray) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(images).permute(0, 3, 1, 2))


def channels_last(found: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """timm's maps are channels first, but for Swin's."""
    return found if found.shape == shape else found.permute(0, 2, 3, 1)


def difference(ours: Any, theirs: torch.Tensor) -> float:
    """The largest, as a share of the largest value."""
    return float(np.abs(np.asarray(ours) - theirs.numpy()).max() / np.abs(theirs.numpy()).max())


if __name__ == "__main__":
    sys.exit(main())
