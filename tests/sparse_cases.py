"""Sparse convolutions on random visible sets, for the tests of the backends."""

import jax
import jax.numpy as jnp
import numpy as np

from greenjax.ops.sparse_conv import block_conv, strided_conv, submanifold_conv
from greenjax.planning.sites import ConvIndex, pair, strided_index, submanifold_index
from greenjax.planning.tokens import TokenGrid

GRID = TokenGrid(24, 32, patch=1, stages=4)  # 3 x 4 units of 8 x 8 tokens
SHAPE = GRID.shape(0)

# (kernel, stride, padding, stage of the output sites)
STRIDED = [(2, 2, 0, 1), (4, 4, 0, 2), (8, 8, 0, 3), (3, 2, 1, 1)]


def random_tokens(rng, count=80):
    """Any tokens of the grid in any order, not whole units."""
    return np.stack(np.unravel_index(rng.permutation(SHAPE[0] * SHAPE[1])[:count], SHAPE), axis=-1)


def visible_tokens(rng, stages=(0,), units=5):
    """The tokens of random units, unit-major, at each of the stages."""
    visible = np.sort(rng.permutation(12)[:units])
    return [GRID.coordinates(stage)[visible].reshape(-1, 2) for stage in stages]


def arrays(rng, *shapes, dtype=None):
    dtype = dtype or (jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def submanifold_case(kernel, channels, groups=1, seed=0):
    """f(x, kernel, bias, **how), its arguments and its index: a submanifold convolution of random tokens."""
    rng = np.random.default_rng(seed)
    index = submanifold_index(random_tokens(rng), SHAPE, kernel)
    cin, cout = channels
    args = arrays(rng, (2, len(index.taps), cin), (*pair(kernel), cin // groups, cout), (cout,))

    def f(x, kernel, bias, **how):
        return submanifold_conv(x, kernel, bias, index, groups=groups, shape=SHAPE, **how)

    return f, args, index


def strided_case(kernel, stride, padding, stage, channels, groups=1, seed=0):
    """The same for a convolution from the tokens of random units to the coarse tokens of these units."""
    rng = np.random.default_rng(seed)
    index = strided_index(*visible_tokens(rng, (0, stage)), kernel, stride, padding)
    cin, cout = channels
    args = arrays(rng, (2, len(index.uses), cin), (kernel, kernel, cin // groups, cout), (cout,))

    def f(x, kernel, bias, **how):
        how = dict(how, groups=groups, shape=SHAPE, stride=stride, padding=padding)
        return strided_conv(x, kernel, bias, index, **how)

    return f, args, index


def block_case(side, channels, seed=0):
    """The same for kernel == stride, by block_conv: its index is for comparison."""
    rng = np.random.default_rng(seed)
    fine, coarse = visible_tokens(rng, (0, side.bit_length() - 1))
    cin, cout = channels
    args = arrays(rng, (2, len(fine), cin), (side, side, cin, cout), (cout,))
    return (
        lambda x, kernel, bias, **how: block_conv(x, kernel, bias, fine, shape=SHAPE, **how),
        args,
        strided_index(fine, coarse, side, side),
    )


def mask_groups(m, channels=4, seed=5):
    """x [m, b, n, c], a kernel and a bias; and the index of m masks, with a leading axis."""
    rng = np.random.default_rng(seed)
    indices = [submanifold_index(*visible_tokens(rng), SHAPE, 3) for _ in range(m)]
    stacked = ConvIndex(*(jnp.stack(leaves) for leaves in zip(*indices)))
    n = stacked.taps.shape[1]
    return arrays(rng, (m, 2, n, channels), (3, 3, channels, channels), (channels,)), stacked


def directly(x, kernel, bias, index: ConvIndex, stride=1, padding=0, groups=1):
    """The definition of a convolution, site by site, in NumPy; it does not look at the taps."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    token = {tuple(site): i for i, site in enumerate(index.inputs.tolist())}
    y = np.tile(bias, (x.shape[0], len(index.outputs), 1))
    (sy, sx), (py, px) = np.broadcast_to(stride, 2), np.broadcast_to(padding, 2)
    of_group = np.split(np.arange(kernel.shape[3]), groups), np.split(np.arange(x.shape[2]), groups)
    for n, (row, column) in enumerate(index.outputs.tolist()):
        for i, j in np.ndindex(kernel.shape[:2]):
            read = token.get((row * sy - py + i, column * sx - px + j))
            if read is not None:
                for outs, ins in zip(*of_group):
                    y[:, n, outs] += x[:, read, ins] @ kernel[i, j][:, outs]
    return y


def results(f, args, **how):
    """Values, and the gradients of a random projection with respect to all arguments."""
    shape = jax.eval_shape(lambda *a: f(*a, **how), *args).shape
    weight = np.random.default_rng(9).normal(size=shape).astype(args[0].dtype)

    def loss(*args):
        y = f(*args, **how)
        return (y * weight).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(args))), has_aux=True))(*args)
    return y, *grads


def assert_same(ours, reference, tolerance):
    """Equal up to a share of the largest value of each array."""
    for a, b in zip(ours, reference, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
