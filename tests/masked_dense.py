"""Operations of backbones on whole grids [b, h, w, c], written down plainly: what visible tokens have to be equal to.

Masked tokens are never a key, and count as zeros under a kernel. `check` compares a model with such a network.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def moved(model):
    """The model with every parameter moved away from its initial constant, where it could hide a fault."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), nnx.state(model))
    nnx.update(model, state)
    return model


def pictures(count=2, size=32):
    return np.random.default_rng(1).normal(size=(count, size, size, 1)).astype(np.float32)


def check(model, reference, share, tolerance=1e-5):
    """Visible tokens and gradients are those of the masked dense network, which no masked pixel reaches.

    `reference`: (the encoder's parameters, images, the section model, its grid, visible units) -> the normed tokens of
    the last stage and the tokens of every stage, of visible and masked units alike. `tolerance`: as a share of the
    largest value of a stage, and of all gradients.
    """
    visible = np.random.default_rng(int(10 * share)).random(model.grid.units) < share
    weights = np.random.default_rng(2).normal(size=(2, *model.grid.units, model.latent_dim)).astype(np.float32)
    graphdef, state = nnx.split(model)

    def ours(state, images):
        out = nnx.merge(graphdef, state)(images, visible)
        return (out.latent * weights[:, visible]).sum(), (out.latent, out.stages)

    def theirs(state, images):
        params = nnx.to_pure_dict(state)["encoder"]
        latent, stages = reference(params, images, model.config.model, model.grid, visible)
        return (latent * weights)[:, visible].sum(), (latent, stages)

    images = pictures(size=model.grid.height)
    (_, found), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(state, images)
    with jax.numpy_rank_promotion("allow"):
        (_, wanted), expected = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(state, images)
    np.testing.assert_allclose(found[0], wanted[0][:, visible], atol=tolerance * abs(wanted[0]).max())
    for i, (tokens, grid) in enumerate(zip(found[1], wanted[1], strict=True)):
        largest = abs(grid).max()
        np.testing.assert_allclose(tokens, grid[:, seen_at(visible, model.grid.side(i))], atol=tolerance * largest)
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * largest)
    assert not np.asarray(gradients[1])[:, ~seen_at(visible, model.grid.unit)].any()


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0)


def norm(x, params, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + epsilon) * params["scale"] + params["bias"]


def mlp(x, params):
    return dense(jax.nn.gelu(dense(x, params["fc1"]), approximate=False), params["fc2"])


def blocks_joined(grid, side):
    """Blocks of side x side tokens as one token each: its channels by row, column, channel."""
    b, h, w, c = grid.shape
    blocks = grid.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
    return blocks.reshape(b, h // side, w // side, side * side * c)


def seen_at(visible, side):
    """The visible tokens [h, w] of a stage with side x side tokens a unit."""
    return np.kron(visible, np.ones((side, side), bool))


def offsets(shape, window, shift):
    """Which tokens share a window, and for each two tokens the offsets (dy, dx); tokens in raster order."""
    y, x = (axis.ravel() for axis in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    # A cyclic shift joins both ends of the grid in one window; its mask takes them apart again.
    y, x = (axis + -shift % window for axis in (y, x))
    same = (y[:, None] // window == y // window) & (x[:, None] // window == x // window)
    return same, y[:, None] - y, x[:, None] - x


def attention(q, k, v, bias, allowed):
    """softmax(q k^T + bias) v over the allowed keys. q, k, v [b, n, heads, d]; bias [n, n, heads] or 0."""
    logits = jnp.einsum("bikd,bjkd->bijk", q, k) + bias
    allowed = allowed | ~allowed.any(axis=1, keepdims=True)  # a token without a key: any finite row will do
    p = jax.nn.softmax(jnp.where(allowed[None, :, :, None], logits, -jnp.inf), axis=2)
    return jnp.einsum("bijk,bjkd->bikd", p, v)


def convolution(grid, kernel, bias, *, stride=1, padding=None, groups=None):
    """XLA's own, of [b, h, w, c] by kernel [k, k, c / groups, d], zeros beyond the border. Depth-wise by default."""
    pads = [(len(kernel) // 2 if padding is None else padding,) * 2] * 2
    groups = grid.shape[3] if groups is None else groups
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        grid, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups
    )
    return y + bias
