"""Sparse convolution: the index, native against masked and against the definition, in float64."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sparse_cases import (
    SHAPE,
    STRIDED,
    arrays,
    assert_same,
    block_case,
    directly,
    mask_groups,
    random_tokens,
    results,
    strided_case,
    submanifold_case,
    visible_tokens,
)

from greenjax.errors import InputError
from greenjax.ops.sparse_conv import (
    block_conv,
    check_backend,
    strided_conv,
    submanifold_conv,
)
from greenjax.planning.sites import ConvIndex, strided_index, submanifold_index

CHANNELS = [(1, 1), (3, 8), (16, 5)]
SUBMANIFOLD = [(k, c, 1) for k in (3, 7) for c in CHANNELS] + [(3, (6, 6), 6), (7, (6, 6), 6), ((1, 5), (6, 4), 2)]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_taps_name_what_the_kernel_reads():
    sites = random_tokens(np.random.default_rng(1))
    index = submanifold_index(sites, SHAPE, (3, 5))
    for n, (row, column) in enumerate(sites):
        for tap, (i, j) in enumerate(np.ndindex(3, 5)):
            at = np.flatnonzero((sites == (row + i - 1, column + j - 2)).all(axis=1))
            assert index.taps[n, tap] == (at[0] if at.size else len(sites))


@pytest.mark.parametrize("kernel, stride, padding, stage", STRIDED)
def test_uses_are_the_inverse_of_taps(kernel, stride, padding, stage):
    rng = np.random.default_rng(2)
    fine, coarse = visible_tokens(rng, (0, stage))
    for index in (strided_index(fine, coarse, kernel, stride, padding), submanifold_index(fine, SHAPE, 3)):
        n_in, n_out = len(index.inputs), len(index.outputs)
        read = {(n, tap, int(t)) for (n, tap), t in np.ndenumerate(index.taps) if t < n_in}
        used = {(int(n), tap, t) for (t, tap), n in np.ndenumerate(index.uses) if n < n_out}
        assert read == used and read
        assert all(leaf.dtype == np.int32 for leaf in index)


def test_submanifold_uses_are_mirrored_taps():
    """So a plan may hold the taps alone."""
    f, (x, kernel, bias), index = submanifold_case((3, 5), (3, 4))
    lean = ConvIndex(index.taps, None, None, None)
    np.testing.assert_array_equal(index.uses, strided_index(index.inputs, index.outputs, (3, 5), 1, (1, 2)).uses)
    assert_same(results(lambda *a: submanifold_conv(*a, lean), (x, kernel, bias)), results(f, (x, kernel, bias)), 0)


@pytest.mark.parametrize("kernel, channels, groups", SUBMANIFOLD)
def test_submanifold_native_is_masked(kernel, channels, groups):
    f, args, index = submanifold_case(kernel, channels, groups)
    native = results(f, args, backend="native")
    assert_same(native, results(f, args, backend="masked"), 1e-12)
    padding = [side // 2 for side in args[1].shape[:2]]
    assert_same(native[:1], [directly(*args, index, padding=padding, groups=groups)], 1e-12)


@pytest.mark.parametrize("kernel, stride, padding, stage", STRIDED)
@pytest.mark.parametrize("channels, groups", [((1, 1), 1), ((3, 8), 1), ((6, 4), 2), ((6, 6), 6)])
def test_strided_native_is_masked(kernel, stride, padding, stage, channels, groups):
    f, args, index = strided_case(kernel, stride, padding, stage, channels, groups)
    native = results(f, args, backend="native")
    assert_same(native, results(f, args, backend="masked"), 1e-12)
    assert_same(native[:1], [directly(*args, index, stride, padding, groups)], 1e-12)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", CHANNELS)
def test_block_conv_is_a_matrix_product(side, channels):
    f, args, index = block_case(side, channels)
    native = results(f, args, backend="native")
    assert_same(native, results(f, args, backend="masked"), 1e-12)
    assert_same(native, results(lambda *a: strided_conv(*a, index, stride=side), args), 1e-12)


@pytest.mark.parametrize("backend", ["native", "masked"])
def test_a_site_that_reads_nothing_convolves_to_the_bias(backend):
    """A kernel may lie between visible tokens; nothing becomes NaN or infinite."""
    index = strided_index(np.array([[0, 0]]), np.array([[0, 0], [3, 3]]), 2, 2)
    args = arrays(np.random.default_rng(0), (1, 1, 2), (2, 2, 2, 3), (3,))
    how = dict(stride=2, shape=(8, 8), backend=backend)
    y, dx, *_ = results(lambda *a: strided_conv(*a, index, **how), args)
    np.testing.assert_allclose(y[0, 1], args[2], rtol=1e-12)
    assert np.isfinite(dx).all()


def native_layers():
    depthwise, args, _ = submanifold_case(3, (6, 6), 6)
    dense, dense_args, _ = submanifold_case(3, (6, 4))
    strided, strided_args, _ = strided_case(3, 2, 1, 1, (6, 4))
    block, block_args, _ = block_case(4, (6, 4))
    layers = {"depthwise": (depthwise, args), "dense": (dense, dense_args), "strided": (strided, strided_args)}
    return layers | {"block": (block, block_args)}


@pytest.mark.parametrize("name", ["depthwise", "dense", "strided", "block"])
def test_native_only_gathers(name):
    """Values and gradients, in what JAX asks for and in what XLA makes of it."""
    f, args = native_layers()[name]
    grad = jax.jit(jax.value_and_grad(lambda *a: jnp.sin(f(*a)).sum(), argnums=tuple(range(len(args)))))
    traced = grad.trace(*args)
    for program in (str(traced.jaxpr), traced.lower().compile().as_text()):
        assert not re.search(r"scatter[-\w]*[\[(]", program)
    if name != "block":
        assert "gather" in str(traced.jaxpr)


def test_native_over_mask_groups():
    """vmap over masks, the kernel shared, is the loop over masks."""
    args, stacked = mask_groups(3)

    def by_vmap(x, kernel, bias):
        return jax.vmap(lambda x, index: submanifold_conv(x, kernel, bias, index))(x, stacked)

    def by_loop(x, kernel, bias):
        one = lambda m: submanifold_conv(x[m], kernel, bias, jax.tree.map(lambda leaf: leaf[m], stacked))  # noqa: E731
        return jnp.stack([one(m) for m in range(3)])

    assert_same(results(by_vmap, args), results(by_loop, args), 1e-12)


@pytest.mark.parametrize("channels, groups", [((6, 4), 1), ((6, 6), 6)])
def test_bfloat16_sums_in_float32(channels, groups):
    """Only rounding of inputs and results is left; kernels keep float32 gradients."""
    f, (x, kernel, bias), _ = submanifold_case(3, channels, groups)
    x, kernel, bias = x.astype(jnp.bfloat16), kernel.astype(jnp.float32), bias.astype(jnp.float32)
    results_bf16 = results(f, (x, kernel, bias))
    assert [r.dtype for r in results_bf16] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    assert_same(results_bf16, results(f, tuple(a.astype(jnp.float64) for a in (x, kernel, bias))), 2e-2)


def test_depthwise_stays_native_under_spconv():
    """spconv has no groups: with groups > 1, and for 1 x 1 kernels, its backend is native, even without spconv."""
    for kernel, channels, groups in ((3, (6, 6), 6), (3, (6, 4), 2), (1, (6, 4), 1)):
        f, args, _ = submanifold_case(kernel, channels, groups)
        native, spconv = (str(jax.make_jaxpr(partial(f, backend=name))(*args)) for name in ("native", "spconv"))
        assert native == spconv and "callback" not in spconv


def test_wrong_uses_are_refused():
    f, (x, kernel, bias), index = submanifold_case(3, (6, 4))
    fine = visible_tokens(np.random.default_rng(0))[0]
    with pytest.raises(InputError, match=r"model.sparse_conv is 'dense': expected native or spconv or masked"):
        f(x, kernel, bias, backend="dense")
    with pytest.raises(InputError, match="'dense': expected native or spconv or masked"):
        check_backend("dense")
    with pytest.raises(InputError, match=r"kernel is \(3, 3, 6, 4\) with groups 2"):
        submanifold_conv(x, kernel, bias, index, groups=2)
    with pytest.raises(InputError, match="expected odd sides"):
        submanifold_index(fine, SHAPE, 4)
    with pytest.raises(InputError, match="expected odd sides"):
        submanifold_conv(x, kernel[:2], bias, index)
    with pytest.raises(InputError, match=r"kernel is \(5, 5, 6, 4\): expected the 9 taps of its index"):
        submanifold_conv(x, jnp.ones((5, 5, 6, 4)), bias, index)
    with pytest.raises(InputError, match="shape is None"):
        submanifold_conv(x, kernel, bias, index, backend="masked")
    with pytest.raises(InputError, match="uses is None"):
        strided_conv(x, kernel, bias, index._replace(uses=None), stride=2)
    with pytest.raises(InputError, match="expected a square, a power of two"):
        block_conv(x, kernel, bias)
    with pytest.raises(InputError, match="sites is None: the masked backend"):
        block_conv(x, kernel[:2, :2], bias, backend="masked")
