"""The fused attention, interpreted, is enter_groups, split_heads, attend, merge_heads and leave_groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from small import small_config

import greenjax
from greenjax.backbones import convolutions
from greenjax.backbones.layers import checkpointed
from greenjax.config import flatten, resolve
from greenjax.errors import InputError
from greenjax.interop import loading
from greenjax.interop.weights import flat_weights
from greenjax.models import build
from greenjax.ops import fused_attention, fused_attention_kernel
from greenjax.ops import group_attention as attention
from greenjax.ops.fused_attention import fused_group_attention
from greenjax.ops.group_attention import check_attention, group_attention
from greenjax.planning import Grouping, TokenGrid
from greenjax.planning.border import padded_grouping
from greenjax.planning.plan import Windows
from greenjax.tasks import run

interpreted = partial(fused_group_attention, interpret=True)
composed = partial(group_attention, "xla")


def grouping_of(rng, groups, slots, n):
    """n tokens in random slots, in up to three windows a group; padding elsewhere, with a position of nonsense."""
    slot = rng.permutation(groups * slots)[:n].astype(np.int32)
    token, window = (np.full(groups * slots, filler, np.int32) for filler in (n, -1))
    token[slot], window[slot] = np.arange(n), rng.integers(3, size=n)
    token, window = token.reshape(groups, slots), window.reshape(groups, slots)
    return Grouping(token, slot, window, rng.integers(100, size=window.shape).astype(np.int32))


def ungrouped(rng, n):
    return Grouping(None, None, *rng.integers(3, size=(2, 1, n)).astype(np.int32))


def inputs_of(rng, grouping, n, heads, biased=True, batch=3, width=16, lead=()):
    """qkv, bias and the gradient that arrives."""
    g, s = grouping.window.shape[-2:]
    shapes = (batch, n, 3 * heads * width), (g, heads, s, s), (batch, n, heads * width)
    qkv, bias, dy = (jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32) for shape in shapes)
    return qkv, bias if biased else None, dy


def both_ways(f, grouping, heads):
    """(qkv, bias, dy) -> values, gradients of qkv and bias."""

    def run(qkv, bias, dy):
        y, pull = jax.vjp(lambda qkv, bias: f(qkv, bias, grouping, heads), qkv, bias)
        return y, *pull(dy)

    return run


def assert_close(actual, expected, tolerance=2e-6):
    """As a share of the largest."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


CASES = [
    # groups, slots, tokens (None: one row without padding), heads, biased
    (2, 12, 20, 2, True),
    (3, 5, 11, 1, False),
    (1, 20, None, 2, True),
    (2, 70, 130, 1, True),  # tiles of 16 queries, and of 16 keys
    (1, 66, None, 1, False),
]


@pytest.mark.parametrize(("groups", "slots", "n", "heads", "biased"), CASES, ids=str)
def test_it_is_what_it_replaces(groups, slots, n, heads, biased):
    """In values and gradients, beside padding."""
    rng = np.random.default_rng(0)
    grouping = ungrouped(rng, slots) if n is None else grouping_of(rng, groups, slots, n)
    inputs = inputs_of(rng, grouping, n or slots, heads, biased)
    actual, expected = (jax.jit(both_ways(f, grouping, heads))(*inputs) for f in (interpreted, composed))
    assert_close(actual, expected)
    assert (actual[2] is None) == (not biased)


def test_one_bias_serves_all_groups():
    rng = np.random.default_rng(0)
    grouping = grouping_of(rng, 3, 5, 11)
    qkv, bias, dy = inputs_of(rng, grouping, 11, 2)
    fused, one = (jax.jit(both_ways(f, grouping, 2))(qkv, bias[:1], dy) for f in (interpreted, composed))
    repeated = jax.jit(both_ways(composed, grouping, 2))(qkv, bias[:1].repeat(3, axis=0), dy)
    assert_close(fused, one)
    assert_close(one, (*repeated[:2], repeated[2].sum(axis=0, keepdims=True)))


def test_in_half_precision_it_rounds_where_the_other_does():
    rng = np.random.default_rng(0)
    grouping = grouping_of(rng, 2, 12, 20)
    qkv, bias, dy = inputs_of(rng, grouping, 20, 2)
    for dtype, step in (("bfloat16", 2**-8), ("float16", 2**-11)):
        inputs = qkv.astype(dtype), bias, dy.astype(dtype)
        actual, expected = (jax.jit(both_ways(f, grouping, 2))(*inputs) for f in (interpreted, composed))
        assert_close(actual, expected, 2 * step)


@pytest.mark.parametrize(("slots", "n"), [(12, 20), (66, 100)], ids=["one tile", "several"])
def test_padding_reaches_nothing(slots, n):
    """Whatever the bias holds there; and it gets no gradient."""
    rng = np.random.default_rng(0)
    grouping = grouping_of(rng, 2, slots, n)
    qkv, bias, dy = inputs_of(rng, grouping, n, 1, batch=2)
    padding = (grouping.window < 0)[:, None, :, None] | (grouping.window < 0)[:, None, None, :]
    assert padding.any() and not padding.all()
    run = jax.jit(both_ways(interpreted, grouping, 1))
    clean = run(qkv, bias, dy)
    for filler in (np.nan, np.inf, 1e30):
        jax.tree.map(np.testing.assert_array_equal, run(qkv, jnp.where(padding, filler, bias), dy), clean)
    assert not np.asarray(clean[2])[padding].any()


@pytest.mark.parametrize("side", [4, 9], ids=["one tile", "several"])
def test_rows_of_tokens_that_do_not_exist_are_written(side):
    """Of an odd grid that zeros fill up. The interpreter, as a GPU's memory, has nonsense where nobody writes."""
    grid = TokenGrid(12, 10, patch=2, stages=2, padded=True)
    grouping, exists = padded_grouping(grid, 0, Windows(side, side, (1, 1))), grid.exists(0).ravel()
    n = len(grouping.slot)
    exists = np.append(exists, np.full(n - exists.size, True))  # and the zeros beyond the border
    qkv, bias, dy = inputs_of(np.random.default_rng(0), grouping, n, 1, batch=2)
    dy = dy * exists[None, :, None]  # nobody reads the others
    actual, expected = (jax.jit(both_ways(f, grouping, 1))(qkv, bias, dy) for f in (interpreted, composed))
    assert not exists.all() and np.isfinite(actual[0]).all()
    assert_close((actual[0][:, exists], *actual[1:]), (expected[0][:, exists], *expected[1:]))
    assert not np.asarray(actual[1])[:, ~exists].any()


def test_images_of_one_program_share_its_bias(monkeypatch):
    """Several images in a program, and fewer in the last: the bias's gradient is summed inside and outside."""
    monkeypatch.setattr(fused_attention_kernel, "WARPS", 6)
    rng = np.random.default_rng(0)
    grouping = grouping_of(rng, 2, 12, 20)
    inputs = inputs_of(rng, grouping, 20, 1, batch=7)  # two groups: 7 * 2 // 6 = 2 images a program
    actual, expected = (jax.jit(both_ways(f, grouping, 1))(*inputs) for f in (interpreted, composed))
    assert_close(actual, expected)


MESH = ((2, 1), ("data", "fsdp"), (AxisType.Auto,) * 2)


@pytest.mark.parametrize(("slots", "split"), [(12, False), (66, True)], ids=["", "split"])
def test_by_mask_group(slots, split):
    """As a training step calls it: jax.vmap over mask groups, recomputed backward, split over devices."""
    rng = np.random.default_rng(0)
    n, masks = 2 * slots - 5, 2
    grouping = jax.tree.map(lambda *leaves: np.stack(leaves), *(grouping_of(rng, 2, slots, n) for _ in range(masks)))
    qkv, bias, dy = inputs_of(rng, grouping, n, 1, batch=2, lead=(masks,))
    bias = bias[0]  # all masks share it

    def by_group(f):
        def loss(qkv, bias, dy):
            one = jax.checkpoint(lambda qkv, bias, grouping: f(qkv, bias, grouping, 1))
            y = jax.vmap(one, in_axes=(0, None, 0), spmd_axis_name=("data", "fsdp"))(qkv, bias, grouping)
            return (y * dy).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

    expected = by_group(composed)(qkv, bias, dy)
    if not split:
        assert_close(by_group(interpreted)(qkv, bias, dy), expected)
        return
    with jax.set_mesh(jax.make_mesh(*MESH, devices=jax.devices()[:2])):
        qkv, dy = (jax.device_put(x, P(("data", "fsdp"))) for x in (qkv, dy))
        compiled = by_group(interpreted).lower(qkv, bias, dy).compile()
        assert_close(compiled(qkv, bias, dy), expected)
    assert "all-gather" not in compiled.as_text()


def test_images_split_over_devices():
    """As fine-tuning calls it. What does not divide by the devices every one of them computes."""
    rng = np.random.default_rng(0)
    grouping = grouping_of(rng, 2, 12, 20)
    for batch in (4, 3):
        inputs = inputs_of(rng, grouping, 20, 1, batch=batch)
        expected = jax.jit(both_ways(composed, grouping, 1))(*inputs)
        with jax.set_mesh(jax.make_mesh(*MESH, devices=jax.devices()[:2])):
            spec = P(("data", "fsdp")) if batch == 4 else P()
            split = jax.device_put(inputs, (spec, P(), spec))
            compiled = jax.jit(both_ways(interpreted, grouping, 1)).lower(*split).compile()
            assert_close(compiled(*split), expected)
        assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("family", ["swin", "twins"])
def test_models_take_it(monkeypatch, family):
    """All of their attention inside windows, with the same values and gradients where they are computed again."""
    wide = dict(model__embed_dim=32) if family == "swin" else dict(model__embed_dims=(32, 64))
    model = greenjax.build(small_config(family, **wide, model__attention="pallas"), seed=0)
    blocks = [block.attn for stage in model.encoder.stages for block in stage.blocks]
    assert [getattr(attn, "attention", None) for attn in blocks] == [
        "pallas",
        "pallas" if family == "swin" else None,
    ] * 2
    rng = np.random.default_rng(0)
    where = grouping_of(rng, 2, 12, 20)._replace(position=rng.integers(16, size=(2, 12)).astype(np.int32))
    x, dy = (jnp.asarray(rng.normal(size=(2, 20, 32)), jnp.float32) for _ in range(2))

    def both_ways(kind):
        blocks[0].attention = kind
        graphdef, params = nnx.split(blocks[0])

        def loss(params, x, where):
            return (checkpointed(nnx.merge(graphdef, params))(x, where) * dy).sum()

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x, where))

    expected = both_ways("xla")
    with pytest.raises(InputError, match="it needs an NVIDIA GPU, found cpu; set it to 'xla'"):
        monkeypatch.setattr(attention, "device_kind", lambda: "cpu")
        both_ways("pallas")
    monkeypatch.setattr(attention, "device_kind", lambda: "NVIDIA H200")
    monkeypatch.setattr(fused_attention, "fused_group_attention", interpreted)
    assert_close(both_ways("pallas"), expected, 1e-5)


def test_what_it_does_not_take(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="a group has 257 slots: expected at most 256"):
        fused_group_attention(jnp.zeros((1, 257, 48)), None, ungrouped(rng, 257), 1)
    with pytest.raises(InputError, match=r"a head has 24 channels: expected one of \(16, 32, 64, 128\)"):
        fused_group_attention(jnp.zeros((1, 9, 72)), None, ungrouped(rng, 9), 1)
    with pytest.raises(InputError, match="a head has 4 channels"):
        small_config(model__attention="pallas")
    with pytest.raises(InputError, match=r"model.attention is 'pallas': expected xla for pcpvt_s"):
        small_config("pcpvt", model__attention="pallas")
    with pytest.raises(InputError, match="found AMD Instinct MI300X"), monkeypatch.context() as patched:
        patched.setattr(attention, "device_kind", lambda: "AMD Instinct MI300X")
        check_attention("pallas")
    check_attention("xla")
    monkeypatch.setattr(attention, "device_kind", lambda: "cpu")
    with pytest.raises(InputError, match=r"model.attention is 'pallas': it needs an NVIDIA GPU.*found cpu"):
        run(small_config(model__attention="pallas", model__embed_dim=32), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_elsewhere_a_run_by_the_kernel_is_loaded_for_xla(monkeypatch):
    config = small_config(model__attention="pallas", model__embed_dim=32)
    weights = flat_weights(build(config, 1))
    monkeypatch.setattr(loading, "read_run", lambda *_: (weights, config, 3))
    for device, expected in (("cpu", "xla"), ("NVIDIA H200", "pallas")):
        monkeypatch.setattr(attention, "device_kind", lambda device=device: device)
        model, step = loading.load_run("run")
        assert model.encoder.stages[0].blocks[0].attn.attention == expected and step == 3
        jax.tree.map(np.testing.assert_array_equal, flat_weights(model), weights)


def test_elsewhere_a_run_by_spconv_is_loaded_for_native(monkeypatch):
    """The package is that of the machine of the training."""

    def missing(backend, callback):
        if backend == "spconv":
            raise InputError("model.sparse_conv is 'spconv', which does not import")

    monkeypatch.setattr(convolutions, "check_backend", missing)
    config = small_config("twins", model__sparse_conv="spconv", image_size=16)
    weights = flat_weights(build(resolve(flatten(config) | {"model.sparse_conv": "native"}), 1))
    monkeypatch.setattr(loading, "read_run", lambda *_: (weights, config, 3))
    model, _ = loading.load_run("run")
    assert model.config.model.sparse_conv == "native"
    jax.tree.map(np.testing.assert_array_equal, flat_weights(model), weights)


@pytest.mark.parametrize(("slots", "biased"), [(56, True), (56, False), (216, True)])
def test_it_lowers_for_nvidia(slots, biased):
    """To Triton's language, by mask group too, on a machine that has no GPU."""
    rng = np.random.default_rng(0)
    n, masks = 4 * slots - 3, 2
    grouping = grouping_of(rng, 4, slots, n)
    qkv, bias, dy = inputs_of(rng, grouping, n, 4, biased, batch=2, width=32, lead=(masks,))
    inputs = qkv.astype(jnp.bfloat16), bias, dy.astype(jnp.bfloat16)
    program = jax.jit(jax.vmap(both_ways(fused_group_attention, grouping, 4)))
    card = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")  # JAX 0.12 asks for the card, older ones do not
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
        text = program.trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    kernels = (
        ("_forward_kernel", "_whole_kernel") if slots == 56 else ("_forward_kernel", "_queries_kernel", "_keys_kernel")
    )
    assert all(name in text for name in kernels) and text.count("xla.gpu.triton") == len(kernels)


@pytest.mark.gpu
@pytest.mark.parametrize("slots", [12, 56, 120, 216])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float32", 0.0125)])
def test_on_a_gpu_it_is_what_it_replaces(slots, dtype, tolerance):
    """References in float32. Of factors in float32 the kernel's products read TF32: three bits more than of bfloat16,
    cut off instead of rounded, so errors are a quarter as large."""
    rng = np.random.default_rng(0)
    n = 3 * slots - 5
    grouping = grouping_of(rng, 3, slots, n)
    inputs = inputs_of(rng, grouping, n, 4, batch=32, width=32)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(both_ways(composed, grouping, 4))(*inputs)
    qkv, bias, dy = inputs
    actual = jax.jit(both_ways(fused_group_attention, grouping, 4))(qkv.astype(dtype), bias, dy.astype(dtype))
    assert_close(jax.tree.map(lambda x: x.astype(jnp.float32), actual), expected, tolerance)
