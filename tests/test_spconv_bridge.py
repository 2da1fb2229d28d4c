"""The spconv backend with the real package: equal to native, under every transformation that training uses."""

import logging
import os
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sparse_cases import (
    SHAPE,
    STRIDED,
    arrays,
    assert_same,
    block_case,
    mask_groups,
    results,
    strided_case,
    submanifold_case,
)

import greenjax.ops
from greenjax.errors import InputError
from greenjax.ops.sparse_conv import check_backend, strided_conv, submanifold_conv
from greenjax.planning.sites import strided_index

pytestmark = pytest.mark.spconv

CALLBACKS = ["pure", "buffer"]
CHANNELS = [(1, 1), (3, 8), (16, 5)]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def torch_side():
    from greenjax.ops import spconv_torch

    return spconv_torch


@pytest.fixture
def calls(torch_side, monkeypatch):
    """The spconv tensors that come out of spconv, one a call."""
    made = []
    convolve = torch_side._convolve
    monkeypatch.setattr(torch_side, "_convolve", lambda *a, **k: made.append(convolve(*a, **k)) or made[-1])
    return made


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kernel", [3, 7])
def test_submanifold_spconv_is_native(kernel, channels, callback, calls):
    f, args, _ = submanifold_case(kernel, channels)
    assert_same(results(f, args, backend="spconv", callback=callback), results(f, args), 1e-5)
    assert len(calls) == 2  # spconv's own, forward and backward


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("kernel, stride, padding, stage", STRIDED)
def test_strided_spconv_is_native(kernel, stride, padding, stage, callback, calls):
    for channels in CHANNELS:
        f, args, index = strided_case(kernel, stride, padding, stage, channels)
        assert_same(results(f, args, backend="spconv", callback=callback), results(f, args), 1e-5)
    if kernel > stride:  # spconv reached other sites, which were dropped without a gradient
        assert len(calls[0].features) > 2 * len(index.outputs)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_block_conv_spconv_is_native(side):
    for channels in CHANNELS:
        f, args, _ = block_case(side, channels)
        assert_same(results(f, args, backend="spconv"), results(f, args), 1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        for f, args, _ in (submanifold_case(3, (3, 8)), strided_case(3, 2, 1, 1, (3, 8))):
            assert_same(results(f, args, backend="spconv"), results(f, args), 1e-12)


def test_bfloat16_is_computed_in_float32():
    f, (x, kernel, bias), _ = submanifold_case(3, (6, 4))
    x = x.astype(jnp.bfloat16)
    ours = results(f, (x, kernel, bias), backend="spconv")
    assert [a.dtype for a in ours] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    assert_same(ours, results(f, (x.astype(jnp.float32), kernel, bias)), 1e-2)


def test_rows_are_matched_by_index(torch_side, monkeypatch):
    """Whatever order spconv returns its rows in, the numbers are the same."""
    f, args, _ = strided_case(3, 2, 1, 1, (3, 8))
    expected = results(f, args)
    convolve = torch_side._convolve

    def shuffled(*args, **how):
        out = convolve(*args, **how)
        order = torch_side.torch.randperm(len(out.features))
        indices, out = out.indices[order], out.replace_feature(out.features[order])
        out.indices = indices
        return out

    monkeypatch.setattr(torch_side, "_convolve", shuffled)
    assert_same(results(f, args, backend="spconv"), expected, 1e-5)


def test_sites_without_a_row_are_zero():
    """Output sites that no token reaches, or that lie outside the grid: the bias alone, and no gradient."""
    index = strided_index(np.array([[0, 0]]), np.array([[0, 0], [3, 3], [9, 9]]), 2, 2)
    args = arrays(np.random.default_rng(0), (1, 1, 2), (2, 2, 2, 3), (3,))

    def f(*args, **how):
        return strided_conv(*args, index, stride=2, shape=(8, 8), **how)

    ours = results(f, args, backend="spconv")
    np.testing.assert_allclose(ours[0][0, 1:], np.stack([args[2]] * 2), rtol=1e-6)
    assert_same(ours, results(f, args), 1e-5)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_vmap_folds_mask_groups_into_one_call(callback, calls):
    args, index = mask_groups(3)

    def f(x, kernel, bias, **how):
        return jax.vmap(lambda x, i: submanifold_conv(x, kernel, bias, i, shape=SHAPE, **how))(x, index)

    assert_same(results(f, args, backend="spconv", callback=callback), results(f, args), 1e-5)
    assert [out.batch_size for out in calls] == [3 * 2, 2, 2, 2]  # forward: one call; backward: each kernel gradient


def test_vmap_over_kernels_and_twice():
    (x, kernel, bias), index = mask_groups(3)
    kernels = jnp.stack([kernel, -kernel, 2 * kernel])

    def f(x, kernels, **how):
        one = lambda x, kernel, i: submanifold_conv(x, kernel, None, i, shape=SHAPE, **how)  # noqa: E731
        by_mask = jax.vmap(one, in_axes=(0, None, 0))
        return jax.vmap(lambda k: by_mask(x, k, index))(kernels), jax.vmap(one)(x, kernels, index)

    def both(*args, **how):
        return jnp.concatenate([y.reshape(-1) for y in f(*args, **how)])

    assert_same(results(both, (x, kernels), backend="spconv"), results(both, (x, kernels)), 1e-5)

    def grads(backend):  # each mask group's own gradient of a shared kernel
        loss = lambda k, x, i: jnp.sin(submanifold_conv(x, k, bias, i, backend=backend, shape=SHAPE)).sum()  # noqa: E731
        return jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(kernel, x, index)

    assert_same([grads("spconv")], [grads("native")], 1e-5)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("remat", [False, True])
def test_accumulation_and_checkpointing(callback, remat):
    """Gradients summed by lax.scan over parts of the batch, activations computed again."""
    (x, kernel, bias), index = mask_groups(4)

    def grads(backend):
        def layer(x, kernel, bias, i):
            how = dict(backend=backend, callback=callback, shape=SHAPE)
            return submanifold_conv(jnp.sin(x), kernel, bias, i, **how)

        layer = jax.checkpoint(layer) if remat else layer

        def loss(params, part):
            x, i = part
            return jnp.square(jax.vmap(lambda x, i: layer(layer(x, *params, i), *params, i))(x, i)).mean()

        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)((kernel, bias), part)), None

        parts = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), (x, index))
        zeros = (jnp.zeros(()), (jnp.zeros_like(kernel), jnp.zeros_like(bias)))
        return jax.tree.leaves(jax.jit(lambda parts: jax.lax.scan(add, zeros, parts)[0])(parts))

    assert_same(grads("spconv"), grads("native"), 1e-5)


def test_spconv_runs_in_one_thread_and_torch_keeps_its_threads(torch_side, monkeypatch):
    torch, convolve, threads = torch_side.torch, torch_side._convolve, []
    monkeypatch.setattr(
        torch_side, "_convolve", lambda *a, **how: threads.append(torch.get_num_threads()) or convolve(*a, **how)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    f, args, _ = submanifold_case(3, (3, 4))
    results(f, args, backend="spconv")
    torch.set_num_threads(before)
    assert threads == [1, 1] and before == torch.get_num_threads()


def mesh_of_8():
    return jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("entered", ["use_abstract_mesh", "set_mesh"])
def test_every_device_of_a_mesh_convolves_its_own_mask_groups(callback, entered, calls, monkeypatch):
    from greenjax.ops import spconv_bridge

    monkeypatch.setattr(spconv_bridge, "_pure_would_hang", lambda devices: False)  # it does not, with small arrays
    mesh, ((x, kernel, bias), index) = mesh_of_8(), mask_groups(8)

    def loss(kernel, bias, x, index, **how):
        one = lambda x, i: jnp.sin(submanifold_conv(x, kernel, bias, i, shape=SHAPE, **how)).sum()  # noqa: E731
        return jax.vmap(one, spmd_axis_name=("data", "fsdp"))(x, index).mean()

    def on_mesh(*args):
        with nullcontext() if entered == "set_mesh" else jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(partial(loss, backend="spconv", callback=callback), (0, 1, 2))(*args)

    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(("data", "fsdp")))
    args = (*jax.device_put((kernel, bias), everywhere), *jax.device_put((x, index), split))
    with jax.set_mesh(mesh) if entered == "set_mesh" else nullcontext():
        compiled = jax.jit(on_mesh).lower(*args).compile()
    program = compiled.as_text()
    assert "all-gather" not in program and "all-to-all" not in program
    ours, expected = compiled(*args), jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(kernel, bias, x, index)
    assert_same(jax.tree.leaves(ours), jax.tree.leaves(expected), 1e-5)
    assert [out.batch_size for out in calls] == [2] * 16  # forward and backward, on each device
    assert ours[1][2].sharding.spec == P(("data", "fsdp"))


def run_python(code, timeout=120):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    run = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(run, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.mark.parametrize("devices", [1, 2])
def test_large_arrays_do_not_hang(devices):
    """With one core, pure_callback's transfers find no thread: several steps in the queue, then the answer."""
    done = run_python(f"""
        import os
        os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={devices}"
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from sparse_cases import SHAPE, mask_groups
        from greenjax.ops.sparse_conv import submanifold_conv

        (x, kernel, bias), index = mask_groups({devices}, channels=64)
        mesh = jax.make_mesh(({devices},), ("data",), (AxisType.Auto,))
        x, index = jax.device_put((x, index), NamedSharding(mesh, P("data")))
        kernel, bias = jax.device_put((kernel, bias), NamedSharding(mesh, P()))

        @jax.jit
        @jax.value_and_grad
        def loss(kernel, bias, x, index):
            def one(x, i):
                for _ in range(3):
                    x = submanifold_conv(x, kernel, bias, i, backend="spconv", shape=SHAPE) / 25
                return x.sum()
            return jax.vmap(one, spmd_axis_name="data")(x, index).mean()

        with jax.set_mesh(mesh):
            for _ in range(4):
                value, grad = loss(kernel, bias, x, index)
                kernel = kernel - 0 * grad
        print("finished", np.isfinite(value))
    """)
    assert done.returncode == 0, done.stderr
    assert "finished True" in done.stdout


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("devices", [1, 2])
def test_an_error_inside_spconv_ends_the_process_with_its_message(devices, callback):
    """On a mesh one device fails, and the other waits for it in the sum of the gradients."""
    ended = run_python(f"""
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={devices}"
        import jax
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from sparse_cases import SHAPE, mask_groups
        from greenjax.ops import spconv_bridge
        from greenjax.ops.sparse_conv import submanifold_conv

        spconv_bridge.GRACE = 2.0
        (x, kernel, bias), index = mask_groups({devices})
        index = index._replace(inputs=index.inputs.at[0, 0].set(99))
        mesh = jax.make_mesh(({devices},), ("data",), (AxisType.Auto,))
        x, index = jax.device_put((x, index), NamedSharding(mesh, P("data")))
        kernel = jax.device_put(kernel, NamedSharding(mesh, P()))

        def loss(kernel, x, index):
            how = dict(backend="spconv", shape=SHAPE, callback="{callback}")
            one = lambda x, i: submanifold_conv(x, kernel, None, i, **how).sum()
            return jax.vmap(one, spmd_axis_name="data")(x, index).mean()

        with jax.set_mesh(mesh):
            gradient = jax.block_until_ready(jax.jit(jax.grad(loss))(kernel, x, index))
        print("the gradient is", gradient)
    """)
    assert ended.returncode != 0
    assert "lie outside the grid (24, 32) of the sparse convolution" in ended.stderr
    assert "the gradient is" not in ended.stdout


def test_the_missing_package_is_named(monkeypatch):
    for name in ("greenjax.ops.spconv_bridge", "greenjax.ops.spconv_torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(greenjax.ops, name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(InputError, match=r"model.sparse_conv is 'spconv'.*spconv.*install.*set model.sparse_conv to"):
        check_backend("spconv")
    f, args, _ = submanifold_case(3, (3, 4))
    with pytest.raises(InputError, match=r"model.sparse_conv"):
        f(*args, backend="spconv")


def test_buffer_falls_away_where_jax_lacks_it(monkeypatch):
    from greenjax.ops import spconv_bridge

    check_backend("spconv", "buffer")
    monkeypatch.setattr(spconv_bridge, "buffer_callback", None)
    check_backend("spconv", "pure")
    with pytest.raises(InputError, match=r"model.spconv_callback is 'buffer', but jax .* set it to 'pure'"):
        check_backend("spconv", "buffer")
    with pytest.raises(InputError, match=r"model.spconv_callback is 'direct': expected pure or buffer"):
        check_backend("spconv", "direct")


def test_two_packages_of_spconv_are_told(torch_side, caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        torch_side.warn_of_two_packages(["numpy", "spconv", "torch"])
        assert not caplog.messages
        torch_side.warn_of_two_packages(["spconv-cu118", "numpy", "spconv"])
    assert caplog.messages == [
        "spconv and spconv-cu118 are installed into the same folders: uninstall all, then install one"
    ]
