"""Swin in PyTorch, written from its paper (arXiv 2103.14030): a reference whose weights have the official names.

Its state_dict is that of microsoft/Swin-Transformer, both buffers included. Unlike transformers' Swin it takes a window
larger than a stage's grid. Grids have to be multiples of their window, or, with `padded`, zeros fill them up
behind the norm and attend, as in the official detector: then windows keep their side on every grid.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class WindowAttention(nn.Module):
    """Section 3.2: attention inside windows, with a learnt bias for each relative position."""

    def __init__(self, dim, heads, side):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * side - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(side))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask):
        """x [b, windows, tokens, c]; `mask` [windows, tokens, tokens] is added to the logits."""
        q, k, v = rearrange(self.qkv(x), "b w n (three k d) -> three b w k n d", three=3, k=self.heads)
        bias = self.relative_position_bias_table[self.relative_position_index]
        logits = q @ k.mT / q.shape[-1] ** 0.5 + rearrange(bias, "q k heads -> heads q k")
        if mask is not None:
            logits = logits + mask[:, None]
        return self.proj(rearrange(logits.softmax(-1) @ v, "b w k n d -> b w n (k d)"))


def relative_position_index(side):
    """The row of the bias table for each query and key, both in raster order."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    rows, columns = (places[:, None] - places + side - 1).unbind(-1)
    return rows * (2 * side - 1) + columns


def shifted_mask(grid, side, shift):
    """0 where a query may see a key, else -100: a cyclic shift puts tokens from opposite borders into one window."""
    wrapped = [torch.arange(length) >= length - by for length, by in zip(grid, shift)]
    region = 2 * wrapped[0][:, None] + wrapped[1]
    region = windows(region[None, :, :, None], side)[0, :, :, 0]
    return (region[:, :, None] != region[:, None, :]) * -100.0


def windows(x, side):
    return rearrange(x, "b (y i) (x j) c -> b (y x) (i j) c", i=side, j=side)


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, hidden, heads, grid, window, shifted, padded, epsilon):
        super().__init__()
        fits = min(grid) > window  # otherwise one window covers the shorter side, and there is nothing to shift
        self.side = window if fits or padded else min(grid)
        moves = [shifted and (length > window if padded else fits) for length in grid]
        self.shift = [window // 2 if by else 0 for by in moves]
        self.beyond = [-length % self.side for length in grid]
        filled = [length + more for length, more in zip(grid, self.beyond)]
        self.norm1, self.norm2 = nn.LayerNorm(dim, epsilon), nn.LayerNorm(dim, epsilon)
        self.attn = WindowAttention(dim, heads, self.side)
        self.mlp = Mlp(dim, hidden)
        self.register_buffer("attn_mask", shifted_mask(filled, self.side, self.shift) if any(self.shift) else None)

    def forward(self, x):
        (rows, columns), (below, beside), side = x.shape[1:3], self.beyond, self.side
        seen = F.pad(self.norm1(x), (0, 0, 0, beside, 0, below)).roll([-by for by in self.shift], (1, 2))
        seen = self.attn(windows(seen, side), self.attn_mask)
        seen = rearrange(seen, "b (y x) (i j) c -> b (y i) (x j) c", y=(rows + below) // side, i=side)
        x = x + seen.roll(self.shift, (1, 2))[:, :rows, :columns]
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Section 3.1: the four tokens of a 2 x 2 block, down the left column and then down the right, become one."""

    def __init__(self, dim, epsilon):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, epsilon)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.reduction(self.norm(rearrange(x, "b (y i) (x j) c -> b y x (j i c)", i=2, j=2)))


class Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks, self.downsample = nn.Sequential(*blocks), downsample


class PatchEmbed(nn.Module):
    def __init__(self, patch, channels, dim, epsilon):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(channels, dim, patch, patch), nn.LayerNorm(dim, epsilon)

    def forward(self, images):
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class TorchSwin(nn.Module):
    """`size`: height and width in pixels. Without `classes` there is no head."""

    def __init__(
        self, size, dim, depths, heads, window, mlp=4, patch=4, channels=3, classes=0, epsilon=1e-5, padded=False
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(patch, channels, dim, epsilon)
        self.layers = nn.ModuleList()
        for i, (depth, head) in enumerate(zip(depths, heads, strict=True)):
            grid, width = [-(-(length // patch) // 2**i) for length in size], dim * 2**i
            shared = (width, int(width * mlp), head, grid, window)
            blocks = [Block(*shared, j % 2 == 1, padded, epsilon) for j in range(depth)]
            self.layers.append(Stage(blocks, Merging(width, epsilon) if i + 1 < len(depths) else None))
        self.norm = nn.LayerNorm(width, epsilon)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, images):
        """Images [b, c, h, w] -> the normed last map and every stage's before its merging, [b, h, w, c]."""
        x, stages = self.patch_embed(images), []
        for stage in self.layers:
            x = stage.blocks(x)
            stages.append(x)
            x = x if stage.downsample is None else stage.downsample(x)
        return self.norm(x), stages

    def logits(self, images):
        return self.head(self(images)[0].mean((1, 2)))
