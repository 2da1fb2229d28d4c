"""Layers with gradients of their own against JAX's, in float64."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from greenjax.backbones import initial
from greenjax.backbones.layers import Keys, checkpointed, drop_path, traced_once
from greenjax.ops.primitives import gelu, gelu_matmul, layer_norm, permute


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def assert_same_function(ours, reference, *args):
    """Equal values and equal gradients of a random projection."""
    weight = jax.random.normal(jax.random.key(9), jax.eval_shape(reference, *args).shape, jnp.float64)
    everything = tuple(range(len(args)))

    def values(f):
        return jax.value_and_grad(lambda *a: (f(*a) * weight).sum(), argnums=everything)(*args)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), values(ours), values(reference))


def test_layer_norm():
    keys = jax.random.split(jax.random.key(0), 3)
    x, scale, bias = (jax.random.normal(k, s, jnp.float64) for k, s in zip(keys, ((2, 5, 7), (7,), (7,)), strict=True))

    def reference(x, scale, bias):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale[None, None] + bias[None, None]

    assert_same_function(lambda x, s, b: layer_norm(x, s, b, 1e-5), reference, 3 * x + 1, scale, bias)


def test_gelu():
    x = jnp.linspace(-8, 8, 60).reshape(2, 5, 6)
    assert_same_function(gelu, lambda x: jax.nn.gelu(x, approximate=False), x)


@pytest.mark.parametrize("bias", [True, False])
def test_gelu_matmul(bias):
    shapes = ((2, 5, 6), (6, 3), (3,))[: 3 if bias else 2]
    operands = [jax.random.normal(jax.random.key(i), shape, jnp.float64) for i, shape in enumerate(shapes)]

    def reference(x, kernel, bias=None):
        y = jax.nn.gelu(x, approximate=False) @ kernel
        return y if bias is None else y + bias[None, None]

    assert_same_function(gelu_matmul, reference, *operands)


def test_permute_into_padded_slots_and_back():
    x = jax.random.normal(jax.random.key(1), (2, 4, 3), jnp.float64)
    index, inverse = jnp.array([2, 4, 0, 3, 4, 1]), jnp.array([2, 5, 0, 3])
    padded = jnp.concatenate([x, jnp.zeros((2, 1, 3))], axis=1)
    np.testing.assert_array_equal(permute(x, index, inverse), padded[:, index])
    assert_same_function(
        lambda x: permute(x, index, inverse), lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, index], x
    )
    y = jax.random.normal(jax.random.key(2), (2, 6, 3), jnp.float64)
    assert_same_function(lambda y: permute(y, inverse, index), lambda y: y[:, inverse], y)


def test_drop_path_keeps_the_expectation_and_whole_images():
    x = jnp.ones((20_000, 2, 3))
    out = np.asarray(drop_path(x, 0.3, jax.random.key(0)))
    assert set(np.unique(out.round(6))) == {0.0, round(1 / 0.7, 6)}
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(out.mean(), 1, atol=0.02)
    assert drop_path(x, 0.3, None) is x


class Counted(nnx.Module):
    """Counts how often it is traced, by kind."""

    seen: ClassVar[dict[str, int]] = {}

    def __init__(self, kind, seed):
        self.kind, self.kernel = kind, nnx.Param(jax.random.normal(jax.random.key(seed), (3, 3), jnp.float64))

    def __call__(self, x, where, key):
        self.seen[self.kind] = self.seen.get(self.kind, 0) + 1
        return jnp.tanh(x @ self.kernel[...])[:, where] if key is None else x


@pytest.mark.parametrize("how", [traced_once, checkpointed])
def test_equal_modules_are_traced_once(how):
    """Forward, backward and under vmap; a module with another attribute is another; values and gradients stay."""
    graphdefs, params = zip(*(nnx.split(Counted(kind, seed)) for seed, kind in enumerate(("a", "a", "b", "a"))))

    def chain(run, params, x):
        for graphdef, mine in zip(graphdefs, params):
            x = run(nnx.merge(graphdef, mine))(x, np.array([2, 0, 1]), None)
        return x

    def values(run):
        def loss(params, x):
            return jax.vmap(lambda x: chain(run, params, x))(x).sum()

        Counted.seen = {}
        return jax.value_and_grad(loss, argnums=(0, 1))(params, jax.random.normal(jax.random.key(9), (2, 4, 3)))

    jax.clear_caches()  # of what the other case traced
    expected = values(lambda module: module)
    assert Counted.seen == {"a": 3, "b": 1}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), values(how), expected)
    # checkpointed: once forward, once backward; by JAX 0.12 once for both
    assert Counted.seen in [{"a": times, "b": times} for times in ((1,) if how is traced_once else (1, 2))]


def test_keys_are_those_of_flax():
    def several(rngs):
        return jnp.stack([jax.random.key_data(rngs.params()) for _ in range(5)])

    for draw in (lambda: several(Keys(3)), jax.jit(lambda: several(Keys(3)))):
        np.testing.assert_array_equal(draw(), several(nnx.Rngs(3)))


@pytest.mark.parametrize("shape", [(7, 9), (48, 128), (1000, 300)])
@pytest.mark.parametrize("name", ["xavier", "small_normal"])
def test_initial_values_are_those_of_the_initializers_bit_for_bit(name, shape):
    """Smaller and larger than a chunk; where the key is traced, too."""
    ours = getattr(initial, name)
    reference = {
        "xavier": nnx.initializers.xavier_uniform(),
        "small_normal": nnx.initializers.truncated_normal(0.02, lower=-initial.FAR, upper=initial.FAR),
    }[name]
    key = jax.random.fold_in(jax.random.key(5), 3)
    with jax.enable_x64(False):
        expected = jax.jit(lambda key: reference(key, shape, jnp.float32))(key)  # op by op, XLA rounds otherwise
        np.testing.assert_array_equal(ours(key, shape, jnp.float32), expected)
        np.testing.assert_array_equal(jax.jit(lambda key: ours(key, shape, jnp.float32))(key), expected)
