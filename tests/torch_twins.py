"""Twins in PyTorch, written from its paper (arXiv 2104.13840): the reference of the parity tests.

It works on whole grids and on all tokens at once. Given visible tokens, it leaves masked ones out of every softmax
and hides them from the positional encoding; what it computes at masked places means nothing.
"""

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class Embed(nn.Module):
    """A convolution with kernel = stride, and a norm; also the sub-sampling of keys."""

    def __init__(self, side, inputs, outputs):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, side, side)
        self.norm = nn.LayerNorm(outputs, eps=1e-5)

    def forward(self, x):
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Local(nn.Module):
    def __init__(self, dim, heads, window, padded=False):
        """`padded`: zeros fill up grids to whole windows, behind the norm, and attend; all tokens are visible."""
        super().__init__()
        self.heads, self.window, self.padded = heads, window, padded
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, visible):
        if self.padded:
            return self.filled_up(x)
        h, w = x.shape[1:3]
        side = min(self.window, h, w)
        row, column = torch.meshgrid(torch.arange(h) // side, torch.arange(w) // side, indexing="ij")
        same = (row.flatten()[:, None] == row.flatten()) & (column.flatten()[:, None] == column.flatten())
        q, k, v = self.qkv(x).flatten(1, 2).chunk(3, dim=-1)
        return self.proj(attention(q, k, v, self.heads, same & visible.flatten())).view(x.shape)

    def filled_up(self, x):
        (h, w), side = x.shape[1:3], self.window
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))
        parts = rearrange(x, "b (y i) (x j) c -> (b y x) (i j) c", i=side, j=side)
        everywhere = torch.ones(side**2, side**2, dtype=torch.bool)
        parts = self.proj(attention(*self.qkv(parts).chunk(3, dim=-1), self.heads, everywhere))
        shape = dict(y=x.shape[1] // side, x=x.shape[2] // side, i=side)
        return rearrange(parts, "(b y x) (i j) c -> b (y i) (x j) c", **shape)[:, :h, :w]


class Global(nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr = Embed(ratio, dim, dim) if ratio > 1 else nn.Identity()

    def forward(self, x, visible):
        k, v = self.kv(self.sr(x)).flatten(1, 2).chunk(2, dim=-1)
        seen = visible[:: self.ratio, :: self.ratio].flatten()
        q = self.q(x).flatten(1, 2)
        return self.proj(attention(q, k, v, self.heads, seen.expand(q.shape[1], -1))).view(x.shape)


def attention(q, k, v, heads, allowed):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    logits = logits.masked_fill(~allowed, -1e30)  # not -inf: rows of masked tokens may allow nothing
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Peg(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x, visible):
        return x + self.proj((x * visible[..., None]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    def __init__(self, attn, dim, hidden):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim, eps=1e-6), attn, nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x, visible):
        x = x + self.attn(self.norm1(x), visible)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TorchTwins(nn.Module):
    """Without `window`: Twins-PCPVT."""

    def __init__(self, dims, depths, heads, mlp, ratios, window, patch=4, channels=3, padded=False):
        super().__init__()
        sides, inputs = (patch, *[2] * (len(dims) - 1)), (channels, *dims[:-1])
        self.embeds = nn.ModuleList(map(Embed, sides, inputs, dims))
        self.blocks = nn.ModuleList()
        for dim, depth, head, factor, ratio in zip(dims, depths, heads, mlp, ratios, strict=True):
            local = [window is not None and j % 2 == 0 for j in range(depth)]
            parts = [Local(dim, head, window, padded) if near else Global(dim, head, ratio) for near in local]
            self.blocks.append(nn.ModuleList(Block(part, dim, int(dim * factor)) for part in parts))
        self.pegs = nn.ModuleList(map(Peg, dims))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)

    def forward(self, x, visible):
        """Images [b, h, w, c] and visible units [uh, uw] -> the normed last map and every stage's, [b, h, w, c]."""
        stages = []
        for embed, blocks, peg in zip(self.embeds, self.blocks, self.pegs, strict=True):
            x = embed(x)
            seen = visible.repeat_interleave(x.shape[1] // visible.shape[0], 0)
            seen = seen.repeat_interleave(x.shape[2] // visible.shape[1], 1)
            for j, block in enumerate(blocks):
                x = block(x, seen)
                x = peg(x, seen) if j == 0 else x
            stages.append(x)
        return self.norm(x), stages


def copy_encoder(encoder, twins):
    """Copies a TorchTwins' weights into a greenjax encoder, in place."""
    copy_embed(encoder.patch_embed, twins.embeds[0])
    copy_norm(encoder.norm, twins.norm)
    for i, stage in enumerate(encoder.stages):
        if i:
            copy_embed(stage.patch_embed, twins.embeds[i])
        copy_convolution(stage.peg, twins.pegs[i].proj)
        for ours, theirs in zip(stage.blocks, twins.blocks[i], strict=True):
            copy_norm(ours.norm1, theirs.norm1)
            copy_attention(ours.attn, theirs.attn)
            copy_norm(ours.norm2, theirs.norm2)
            copy_dense(ours.mlp.fc1, theirs.fc1)
            copy_dense(ours.mlp.fc2, theirs.fc2)


def copy_attention(ours, theirs):
    for name in ("qkv", "q", "kv", "proj"):
        if hasattr(theirs, name):
            copy_dense(getattr(ours, name), getattr(theirs, name))
    if getattr(theirs, "ratio", 1) > 1:
        copy_embed(ours.sr, theirs.sr)


def copy_embed(ours, theirs):
    copy_norm(ours.norm, theirs.norm)
    if hasattr(ours, "kernel"):
        copy_convolution(ours, theirs.proj)
    else:  # the first one is a dense layer over (row, column, channel)
        weight = theirs.proj.weight.detach().numpy()
        ours.proj.kernel[...] = jnp.asarray(weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)))
        ours.proj.bias[...] = jnp.asarray(theirs.proj.bias.detach().numpy())


def copy_convolution(ours, theirs):
    ours.kernel[...] = jnp.asarray(theirs.weight.detach().numpy().transpose(2, 3, 1, 0))
    ours.bias[...] = jnp.asarray(theirs.bias.detach().numpy())


def copy_dense(ours, theirs):
    ours.kernel[...] = jnp.asarray(theirs.weight.detach().numpy().T)
    ours.bias[...] = jnp.asarray(theirs.bias.detach().numpy())


def copy_norm(ours, theirs):
    ours.scale[...] = jnp.asarray(theirs.weight.detach().numpy())
    ours.bias[...] = jnp.asarray(theirs.bias.detach().numpy())


def visible_tokens(grid, visible, stage):
    """Row and column of a stage's visible tokens, unit-major."""
    return np.concatenate(grid.coordinates(stage)[np.flatnonzero(visible)])
