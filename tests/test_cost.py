"""FLOPs of a traced program, counted by hand and by XLA; the rates of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import small_config

import greenjax
from benchmarks.programs import compile_part, sized
from greenjax.backbones.geometry import make_planner
from greenjax.data.loader import blank_batch
from greenjax.runtime.cost import matmul_flops, peak_flops
from greenjax.tasks.pretrain import pretraining


def flops(f, *shapes):
    return matmul_flops(jax.make_jaxpr(f)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_are_counted_once_a_multiplication_and_once_an_addition():
    assert flops(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert flops(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (4, 3, 5), (4, 7, 5)) == 2 * 4 * 3 * 5 * 7
    assert flops(lambda x: jnp.exp(x) * x + x.sum(), (9, 9)) == 0


def test_gradients_loops_branches_and_recomputation():
    def f(a, b):
        return jnp.exp(jnp.dot(a, b)).sum()

    product = 2 * 3 * 5 * 7
    assert flops(jax.value_and_grad(f, (0, 1)), (3, 5), (5, 7)) == 3 * product
    assert flops(jax.value_and_grad(jax.checkpoint(f), (0, 1)), (3, 5), (5, 7)) == 4 * product
    assert flops(lambda x: jax.lax.scan(lambda c, _: (jnp.dot(c, c), None), x, length=6)[0], (4, 4)) == 6 * 2 * 4**3
    branches = (lambda x: x, lambda x: jnp.dot(jnp.dot(x, x), x), lambda x: jnp.dot(x, x))
    assert flops(lambda x: jax.lax.switch(x[0, 0].astype(int), branches, x), (4, 4)) == 2 * 2 * 4**3


def test_a_depth_wise_convolution_equals_xla_s_count():
    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6
        )

    arguments = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 1, 6))
    found = jax.jit(conv).lower(*arguments).cost_analysis()
    assert matmul_flops(jax.make_jaxpr(conv)(*arguments)) == found["flops"] == 2 * 2 * 6 * 6 * 6 * 9


def test_what_runs_on_every_device_counts_for_all():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    spec = jax.sharding.PartitionSpec("x")
    split = jax.shard_map(lambda a: jnp.einsum("bij,bjk->bik", a, a), mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops(split, (len(jax.devices()), 4, 4)) == len(jax.devices()) * 2 * 4**3


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA L40", "bfloat16", 181e12),
        ("NVIDIA L400", "bfloat16", None),
        ("NVIDIA GB200", "bfloat16", 2500e12),
        ("NVIDIA GH200 480GB", "bfloat16", 989e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_rates_are_told_where_they_are_known(kind, dtype, expected):
    assert peak_flops(kind, dtype) == expected


@pytest.mark.parametrize("family", ["swin", "twins", "pcpvt"])
def test_no_matrix_product_is_computed_again_in_the_backward_pass_unless_asked_for(family):
    """Forward + backward are three products for each one forward, but for the patch embedding, whose input has no
    gradient, and the small ones of the position bias; a checkpointed block that stores too little has more."""

    def ratio(**overrides):
        config = small_config(family, mask__groups=1, **overrides)
        params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(greenjax.build(config), nnx.Param)))
        plan, _ = make_planner(config).plans(0, 1)
        batch = blank_batch(config, plan)
        loss = pretraining(config).loss

        def of(params, batch):
            return loss(params, ((batch, None), None))[0]  # no weights, no drop-path

        forward, both = (matmul_flops(jax.make_jaxpr(f)(params, batch)) for f in (of, jax.value_and_grad(of)))
        return both / forward

    assert 2.9 < ratio() < 3.05
    assert ratio(model__remat=True) > ratio() + 0.1


def test_checkpointing_takes_memory_off_the_compiled_update():
    """By XLA's count. On the CPU it ignores what jax.checkpoint asks for; `checkpointed` makes it wait."""

    def of_a_block(**overrides):
        fewer, more = (
            compile_part(sized(small_config("swin", model__depths=(1, depth)), 48, **overrides), "backward").temporary
            for depth in (2, 4)
        )
        return (more - fewer) / 2

    assert 0 < of_a_block(model__remat=True) < 0.1 * of_a_block()
