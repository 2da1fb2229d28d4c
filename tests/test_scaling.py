"""What the devices of a compiled step exchange: parameters and their gradients, never activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from small import small_config

import greenjax
from benchmarks.scaling import Collective, collectives, compile_for, run, sent, text
from greenjax.errors import InputError

BASE = dict(model__depths=(1, 1))
TWINS = dict(family="twins", model__depths=(2, 1))


@pytest.mark.parametrize(("settings", "fsdp"), [(BASE, 1), (BASE, 2), (TWINS, 1), (TWINS, 8)], ids=str)
def test_devices_exchange_parameters_and_gradients_alone(settings, fsdp):
    config = small_config(**settings)
    program = compile_for(config, fsdp)
    assert {each.what for each in program.collectives} == {"parameters", "numbers"}
    params = parameters_of(config)
    reduced = [each for each in program.collectives if each.kind == "all-reduce" and each.what == "parameters"]
    # Every gradient once, each in float32.
    assert sum(each.bytes for each in reduced) == 4 * sum(size for size in params if size > 1)
    gathered = [each for each in program.collectives if each.kind == "all-gather"]
    assert bool(gathered) == (fsdp > 1)
    assert {each.kind for each in program.collectives} <= {"all-reduce", "all-gather"}


def parameters_of(config):
    return [leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(greenjax.build(config))))]


def test_fsdp_divides_the_state():
    config = small_config(**BASE)
    whole, split = (compile_for(config, fsdp) for fsdp in (1, 2))
    assert whole.flops == split.flops > 0
    assert 0.5 * whole.state < split.state < 0.62 * whole.state  # vectors are on every device
    printed = text(config, [whole, split], 8)
    assert "512" in printed and "activations" not in printed


def lowered(f, *shapes, spec):
    mesh = Mesh(np.array(jax.devices()), "x")
    out = NamedSharding(mesh, P())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape in shapes]
    return jax.jit(f, out_shardings=out).lower(*arguments).compile().as_text()


def test_activations_are_seen_where_they_are_exchanged():
    devices = len(jax.devices())
    program = lowered(lambda x: jnp.tanh(x), (devices, 5), spec=P("x"))
    assert list(collectives(program, set())) == [
        Collective("all-gather", "activations", f"f32[{devices},5]", 1, 4 * 5 * devices)
    ]
    assert [each.what for each in collectives(program, {(5, devices)})] == ["parameters"]


def test_a_loop_counts_as_often_as_it_runs():
    def f(x):
        return jax.lax.scan(lambda c, _: (c + jnp.tanh(x + c.sum()).sum(axis=0), None), jnp.zeros(3), length=7)[0]

    program = lowered(f, (2 * len(jax.devices()), 3), spec=P("x"))
    (each,) = collectives(program, set())
    assert (each.kind, each.shape, each.times, each.bytes) == ("all-reduce", "f32[3]", 7, 7 * 12)


def test_bytes_around_a_ring():
    whole = Collective("all-reduce", "parameters", "f32[100]", 1, 400)
    assert sent(whole, 8) == 2 * 7 / 8 * 400
    assert sent(whole._replace(kind="all-gather"), 8) == 7 / 8 * 400
    assert sent(whole._replace(kind="reduce-scatter", bytes=50), 8) == 7 * 50


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(InputError, match="fsdp is 3: expected a divisor of the 8 devices"):
        run(small_config(**BASE), devices=8, fsdp=[1, 3])
    with pytest.raises(InputError, match="fsdp is 0: expected a divisor of the 8 devices"):
        run(small_config(**BASE), devices=8, fsdp=[0])
    with pytest.raises(InputError, match="task is 'finetune'"):
        compile_for(small_config(**BASE, task="finetune", model__num_classes=3), 1)
