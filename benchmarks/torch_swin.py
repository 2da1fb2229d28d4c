"""SimMIM on transformers' Swin in PyTorch, of the same size, images and precision; optionally by torch.compile."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from transformers import SwinConfig, SwinForMaskedImageModeling

from benchmarks.programs import PARTS

Peaks = dict[str, int]  # peak bytes of the GPU's memory by part, filled by runs


def programs(config: ConfigDict, batch: int, peaks: Peaks, compiled: bool = False) -> dict[str, Callable[[], Any]]:
    """Forward, forward + backward and the update as functions without arguments, which return after the GPU is done."""
    device = torch.device("cuda" if on_gpu() else "cpu")
    if on_gpu():
        torch.set_float32_matmul_precision("high")  # TF32, in which XLA multiplies float32 on a GPU
    model = SwinForMaskedImageModeling(swin_config(config)).train()
    torch.nn.Module.to(model, device)
    optim = config.optim
    adamw = torch.optim.AdamW(
        model.parameters(), 1e-4, (optim.b1, optim.b2), optim.eps, optim.weight_decay, fused=device.type == "cuda"
    )
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(batch, config.model.in_channels, *config.image_size)).astype(np.float32)
    images = torch.from_numpy(pixels).to(device)
    patches = config.image_size[0] // config.model.patch
    masked = torch.from_numpy(rng.random((batch, patches * patches)) < config.mask.ratio).to(device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16")
    run: Callable[..., Any] = torch.compile(model) if compiled else model

    def loss() -> torch.Tensor:
        with half:
            return run(images, bool_masked_pos=masked).loss

    def forward() -> None:
        with torch.no_grad():
            loss()

    def backward() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def update() -> None:
        adamw.zero_grad(set_to_none=True)
        loss().backward()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        adamw.step()

    every = dict(zip(PARTS, (forward, backward, update), strict=True))
    return {part: partial(waited, part, program, peaks) for part, program in every.items()}


def waited(part: str, program: Callable[[], None], peaks: Peaks) -> None:
    """Runs a program to its end, and records its peak memory on a GPU."""
    if not on_gpu():
        return program()
    torch.cuda.reset_peak_memory_stats()
    program()
    torch.cuda.synchronize()
    peaks[part] = torch.cuda.max_memory_allocated()


def on_gpu() -> bool:
    return torch.cuda.is_available()


def free_memory() -> None:
    """Returns PyTorch's cached memory to the GPU."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def why_not_compiled() -> str | None:
    """The reason why torch.compile cannot run here, such as a missing compiler; None: it can."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device="cuda" if on_gpu() else "cpu"))
    except (RuntimeError, OSError, ImportError) as error:  # a compiler, a header or Triton is missing
        return f"torch.compile fails: {str(error).strip().splitlines()[0]}"
    return None


def swin_config(config: ConfigDict) -> SwinConfig:
    """The Swin of a resolved configuration in transformers' settings."""
    model = config.model
    return SwinConfig(
        image_size=config.image_size[0],
        patch_size=model.patch,
        num_channels=model.in_channels,
        embed_dim=model.embed_dim,
        depths=list(model.depths),
        num_heads=list(model.num_heads),
        window_size=model.window,
        mlp_ratio=model.mlp_ratio,
        drop_path_rate=model.drop_path,
        layer_norm_eps=model.norm_epsilon,
        encoder_stride=model.patch * 2 ** (len(model.depths) - 1),
    )
