"""Weights of transformers' Swin, put into a greenjax model: the reference of the parity tests, not the export."""

import jax.numpy as jnp
import numpy as np
import torch


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Random weights everywhere, norms and position bias tables too, so that no path is a lucky identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm_scale = "norm" in name and name.endswith("weight")
            fan_in = tensor[0].numel() if tensor.ndim > 1 and "table" not in name else 1
            tensor.copy_(1 + 0.2 * noise if is_norm_scale else noise * (fan_in**-0.5 if fan_in > 1 else 0.3))


def copy_encoder(encoder, swin: torch.nn.Module) -> None:
    """Copies the weights of a transformers SwinModel into a greenjax encoder, in place."""
    weights = {name: tensor.detach().numpy() for name, tensor in swin.state_dict().items()}

    def dense(layer, name):
        kernel = weights[f"{name}.weight"]
        layer.kernel[...] = jnp.asarray(kernel.reshape(len(kernel), -1).T)
        if layer.bias is not None:
            layer.bias[...] = jnp.asarray(weights[f"{name}.bias"])

    def norm(layer, name):
        layer.scale[...] = jnp.asarray(weights[f"{name}.weight"])
        layer.bias[...] = jnp.asarray(weights[f"{name}.bias"])

    # A convolution kernel is (out, in, row, column); ours takes a patch as (row, column, channel).
    projection = "embeddings.patch_embeddings.projection"
    weights[f"{projection}.weight"] = np.moveaxis(weights[f"{projection}.weight"], 1, -1)
    dense(encoder.patch_embed.proj, projection)
    norm(encoder.patch_embed.norm, "embeddings.norm")
    for i, stage in enumerate(encoder.stages):
        for j, block in enumerate(stage.blocks):
            name = f"encoder.layers.{i}.blocks.{j}"
            for part in ("weight", "bias"):
                fused = [weights[f"{name}.attention.{x}_proj.{part}"] for x in "qkv"]
                weights[f"{name}.attention.qkv.{part}"] = np.concatenate(fused)
            dense(block.attn.qkv, f"{name}.attention.qkv")
            dense(block.attn.proj, f"{name}.attention.o_proj")
            table = weights[f"{name}.attention.relative_position_bias.relative_position_bias_table"]
            block.attn.relative_position_bias_table[...] = jnp.asarray(table)
            norm(block.norm1, f"{name}.layernorm_before")
            norm(block.norm2, f"{name}.layernorm_after")
            dense(block.mlp.fc1, f"{name}.mlp.fc1")
            dense(block.mlp.fc2, f"{name}.mlp.fc2")
        if stage.downsample is not None:
            norm(stage.downsample.norm, f"encoder.layers.{i}.downsample.norm")
            dense(stage.downsample.reduction, f"encoder.layers.{i}.downsample.reduction")
    norm(encoder.norm, "layernorm")
