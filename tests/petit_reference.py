"""The masked dense self of the family of docs/new_backbone.md, on whole grids, and the check against it."""

import jax
import numpy as np
from flax import nnx

EPSILON = 1e-5


def norm(x, params):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + EPSILON) * params["scale"] + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def convolution(grid, params, product, stride=1):
    """Of [b, h, w, c] with zeros beyond the border. `product`: of tokens and the kernel at one tap."""
    side = len(params["kernel"])
    half = side // 2
    _, h, w, _ = grid.shape
    padded = np.pad(grid, ((0, 0), (half, half), (half, half), (0, 0)))
    read = [(padded[:, i : i + h : stride, j : j + w : stride], i, j) for i in range(side) for j in range(side)]
    return sum(product(x, params["kernel"][i, j]) for x, i, j in read) + params["bias"]


def attention(grid, visible, params, heads, window, shift):
    """Of all tokens to the visible ones of their window; the window of global attention is the whole grid."""
    b, h, w, c = grid.shape
    y, x = (axis.ravel() + -shift % window for axis in np.meshgrid(np.arange(h), np.arange(w), indexing="ij"))
    same = (y[:, None] // window == y // window) & (x[:, None] // window == x // window) & visible.ravel()
    same |= ~same.any(axis=1, keepdims=True)  # a window without a visible token: any finite row will do
    rows, columns = (axis[:, None] % window - axis % window + window - 1 for axis in (y, x))
    table = params.get("relative_position_bias_table", np.zeros(((2 * window - 1) ** 2, heads)))
    bias = np.where(same[..., None], table[rows * (2 * window - 1) + columns], -np.inf)
    q, k, v = np.moveaxis(dense(grid.reshape(b, h * w, c), params["qkv"]).reshape(b, h * w, 3, heads, -1), 2, 0)
    logits = np.einsum("bikd,bjkd->bijk", q, k) * (c // heads) ** -0.5 + bias
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    y = np.einsum("bijk,bjkd->bikd", p / p.sum(axis=2, keepdims=True), v)
    return dense(y.reshape(b, h, w, c), params["proj"])


def stages_of(model, images, visible):
    """The tokens [b, h, w, c] of every stage, of visible and masked units alike."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(model.encoder)))
    settings = model.config.model
    x, seen = images, np.kron(visible, np.ones((model.grid.unit,) * 2, bool))
    outputs = []
    for i, depth in enumerate(settings.depths):
        stage = params["stages"][i]
        embed, stride = (stage["embed"], 2) if i else (params["patch_embed"], settings.patch)
        x = convolution(x * seen[..., None], embed, np.matmul, stride)
        seen = np.kron(visible, np.ones((model.grid.side(i),) * 2, bool))
        x = x + convolution(x * seen[..., None], stage["conv"], lambda x, kernel: x * kernel[0])
        last = i + 1 == len(settings.depths)
        window = max(seen.shape) if last else min(settings.window, *seen.shape)
        for j in range(depth):
            block = stage["blocks"][j]
            shift = window // 2 if j % 2 and min(seen.shape) > window else 0
            x = x + attention(norm(x, block["norm1"]), seen, block["attn"], settings.num_heads[i], window, shift)
            hidden = dense(norm(x, block["norm2"]), block["mlp"]["fc1"])
            x = x + dense(np.asarray(jax.nn.gelu(hidden, approximate=False)), block["mlp"]["fc2"])
        outputs.append(x)
    return norm(x, params["norm"]), outputs


def check(model, again):
    """The model read back gives the same tokens, and visible tokens are those of the masked dense network."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 1)).astype(np.float32)
    everything = np.ones(model.grid.units, bool)
    np.testing.assert_array_equal(again(images, everything).latent, model(images, everything).latent)
    # Norms and biases leave 1 and 0, where they could hide a fault.
    state = nnx.state(model)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), state))
    for share in (0.2, 0.5, 1.0):
        visible = rng.random(model.grid.units) < share
        out = model(images, visible)
        latent, stages = stages_of(model, images, visible)
        np.testing.assert_allclose(out.latent, latent[:, visible], atol=1e-5)
        for i, (found, expected) in enumerate(zip(out.stages, stages, strict=True)):
            seen = np.kron(visible, np.ones((model.grid.side(i),) * 2, bool))
            np.testing.assert_allclose(found, expected[:, seen], atol=1e-5)
    print("equal to its masked dense self")
