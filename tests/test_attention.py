"""Grouped attention on visible tokens is dense attention over the whole grid with masked keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from greenjax.backbones.attention import WindowAttention
from greenjax.backbones.family import square_windows
from greenjax.ops.group_attention import attend, relative_position_bias
from greenjax.planning.layout import choose_layouts, exact_plan
from greenjax.planning.plan import GroupLayout, StageSpec, WindowPartition, Windows, make_plan, partitions_of
from greenjax.planning.tokens import TokenGrid


def shifted_windows(grid, window):
    """Regular and shifted windows in every stage."""
    return [StageSpec(square_windows(window, grid.shape(i), 2, shifted=True)) for i in range(grid.stages)]


def dense_reference(attention, x, visible, window, shift):
    """Attention over the full grid [b, h, w, c] in raster order: window rule, keys and bias token by token."""
    b, h, w, c = x.shape
    heads = attention.num_heads
    offset = window - shift if shift else 0
    y, z = (axis.ravel() + offset for axis in np.meshgrid(np.arange(h), np.arange(w), indexing="ij"))
    same = (y[:, None] // window == y[None] // window) & (z[:, None] // window == z[None] // window)
    allowed = same & visible.ravel()[None]
    allowed |= ~allowed.any(axis=1, keepdims=True)  # windows without a visible token: any finite row will do
    rows, columns = (axis[:, None] % window - axis[None] % window + window - 1 for axis in (y, z))
    bias = attention.relative_position_bias_table[...][rows * (2 * window - 1) + columns]  # [n, n, heads]
    qkv = attention.qkv(x.reshape(b, h * w, c)).reshape(b, h * w, 3, heads, c // heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    logits = jnp.einsum("bikd,bjkd->bijk", q, k) * (c // heads) ** -0.5 + bias[None]
    p = jax.nn.softmax(jnp.where(allowed[None, :, :, None], logits, -jnp.inf), axis=2)
    return attention.proj(jnp.einsum("bijk,bjkd->bikd", p, v).reshape(b, h * w, c)).reshape(b, h, w, c)


CASES = [
    # height, width in pixels (patch 4, three stages: units of 16), window, share of units visible
    (112, 112, 7, 0.25),
    (112, 112, 14, 0.25),
    (112, 112, 7, 0.6),
    (112, 64, 7, 0.3),  # not square
    (64, 112, 14, 0.5),
    (80, 112, 6, 0.1),  # border windows are cut
]


@pytest.mark.parametrize("shifted", [False, True], ids=["regular", "shifted"])
@pytest.mark.parametrize(("height", "width", "window", "share"), CASES, ids=str)
def test_grouped_attention_equals_dense_masked_attention(height, width, window, share, shifted):
    grid = TokenGrid(height, width, patch=4, stages=3)
    rng = np.random.default_rng(0)
    visible = rng.random(grid.units) < share
    visible.flat[rng.integers(visible.size)] = True
    plan = exact_plan(grid, shifted_windows(grid, window), visible[None])
    grouping = jax.tree.map(lambda leaf: leaf[0], plan.windows[0][shifted])

    attention = WindowAttention(8, window, 2, dtype="float32", rngs=nnx.Rngs(1))
    attention.relative_position_bias_table[...] *= 20
    graphdef, params = nnx.split(attention)
    h, w = grid.shape(0)
    image = jnp.asarray(rng.normal(size=(2, h, w, 8)), jnp.float32)
    row, column = np.moveaxis(grid.coordinates(0)[visible.ravel()].reshape(-1, 2), 1, 0)
    weight = jnp.asarray(rng.normal(size=(2, len(row), 8)), jnp.float32)

    def grouped(params, image):
        out = nnx.merge(graphdef, params)(image[:, row, column], grouping)
        return (out * weight).sum(), out

    def dense(params, image):
        tokens = np.kron(visible, np.ones((4, 4), bool))
        out = dense_reference(nnx.merge(graphdef, params), image, tokens, window, shifted * (window // 2))
        return (out[:, row, column] * weight).sum(), out[:, row, column]

    def values_and_grads(f):
        return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, image)

    (_, actual), actual_grads = values_and_grads(grouped)
    (_, expected), expected_grads = values_and_grads(dense)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for ours, reference in zip(jax.tree.leaves(actual_grads), jax.tree.leaves(expected_grads), strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(ours / scale, reference / scale, atol=1e-5)


@pytest.mark.parametrize("visible", [1, 3, 8])
def test_padding_never_reaches_a_visible_token(visible):
    """Whatever sits in the padded slots, visible outputs and gradients stay the same."""
    grid = TokenGrid(48, 48, patch=4, stages=3)  # 3 x 3 units of 4 x 4 tokens
    mask = np.zeros(grid.units, bool)
    mask.flat[np.random.default_rng(visible).permutation(9)[:visible]] = True
    partition = WindowPartition(grid, 0, Windows(4, 4, (2, 2)))
    plan = make_plan(mask, ((partition,),), ((GroupLayout(slots=24, groups=2 * visible),),))
    assert plan is not None
    (grouping,) = plan.windows[0]
    padding = jnp.asarray(grouping.window < 0)[None, :, None, :, None]
    assert padding.any()
    g, s = grouping.window.shape
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, (2, g, 2, s, 3)) for key in keys)
    table = jax.random.normal(keys[0], (49, 2))
    weight = jnp.where(padding, 0.0, weight)

    def loss(q, k, v, table, filler):
        q, k, v = (jnp.where(padding, filler, x) for x in (q, k, v))
        bias = relative_position_bias(table, jnp.asarray(grouping.position))
        out = attend(q, k, v, bias, jnp.asarray(grouping.window))
        out = jnp.where(padding, 0.0, out)
        return (out * weight).sum(), out

    results = [
        jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, table, filler)
        for filler in (0.0, 1e30, -1e30)
    ]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])


def test_static_layouts_equal_the_exact_plan():
    """The padded layouts of a run and the layouts made for one mask give the same attention."""
    grid = TokenGrid(112, 112, patch=4, stages=3)
    partitions = partitions_of(grid, shifted_windows(grid, 7))
    rng = np.random.default_rng(0)
    masks = np.stack([rng.permutation(49).reshape(7, 7) < 12 for _ in range(50)])
    layouts = choose_layouts(partitions, masks, tolerance=0.0)
    attention = WindowAttention(8, 7, 2, dtype="float32", rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(attention)
    attend_in = jax.jit(lambda x, grouping: nnx.merge(graphdef, params)(x, grouping))
    x = jnp.asarray(rng.normal(size=(1, 12 * 16, 8)), jnp.float32)
    static = make_plan(masks[0], partitions, layouts)
    exact = exact_plan(grid, shifted_windows(grid, 7), masks[:1])
    assert static is not None
    for padded, fitting in zip(static.windows[0], exact.windows[0], strict=True):
        fitting = jax.tree.map(lambda leaf: leaf[0], fitting)
        assert padded.window.shape != fitting.window.shape
        np.testing.assert_allclose(attend_in(x, padded), attend_in(x, fitting), atol=1e-6)


@pytest.mark.parametrize("window", [2, 5, 7])
def test_bias_gradient_is_the_scatter_it_replaces(window):
    rng = np.random.default_rng(0)
    position = jnp.asarray(rng.integers(window**2, size=(3, 11)), jnp.int32)
    table = jnp.asarray(rng.normal(size=((2 * window - 1) ** 2, 2)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(3, 2, 11, 11)), jnp.float32)

    def by_index(table):
        y, x = position // window, position % window
        dy, dx = (axis[:, :, None] - axis[:, None] + window - 1 for axis in (y, x))
        return (jnp.moveaxis(table[dy * (2 * window - 1) + dx], 3, 1) * weight).sum()

    value, grad = jax.value_and_grad(lambda t: (relative_position_bias(t, position) * weight).sum())(table)
    expected_value, expected = jax.value_and_grad(by_index)(table)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(grad, expected, atol=1e-5)
