"""Products in bfloat16: right to the type's own rounding, and by the instructions that the processor has."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greenjax import main
from greenjax.ops import primitives
from greenjax.ops.group_attention import attend
from greenjax.ops.primitives import matmul
from greenjax.runtime import processor

ROUNDING = 2.0**-8  # the most by which one rounding to bfloat16 changes a number, relative to it


def with_gradients(f):
    return jax.jit(lambda dy, *args: (f(*args), *jax.vjp(f, *args)[1](dy)))


def widened(arrays):
    return [array.astype(jnp.float32) for array in arrays]


def drawn(*shapes):
    return [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("n", "c", "d"), [(1, 1, 1), (1, 3, 2), (2, 2, 2), (3, 1, 5), (8, 16, 6)])
def test_a_product_and_its_gradients_are_rounded_once(n, c, d):
    """Against float64 sums of the same numbers; the narrowest shapes have no kernel of XLA's library.

    A processor without bfloat16 products rounds x @ kernel and the bias, then their sum.
    """
    arrays = *drawn((n, d), (n, c), (c, d)), jax.random.normal(jax.random.key(3), (d,))  # biases are float32

    def exact(dy, x, kernel, bias):
        return x @ kernel + bias, dy @ kernel.T, x.T @ dy, dy.sum(axis=0)

    wide = [np.asarray(array, np.float64) for array in arrays]
    types = 3 * [jnp.bfloat16] + [jnp.float32]
    first_rounding = 0 if processor.multiplies_bfloat16() else ROUNDING * (abs(wide[1] @ wide[2]) + abs(wide[3]))
    for found, wanted, size, dtype, before in zip(
        with_gradients(matmul)(*arrays), exact(*wide), exact(*map(abs, wide)), types, (first_rounding, 0, 0, 0)
    ):
        assert found.dtype == dtype
        bound = ROUNDING * (abs(wanted) + before) + before + 1e-6 * size
        assert (abs(np.asarray(found, np.float64) - wanted) <= bound).all()


def test_attention_is_near_that_of_float32():
    """Probabilities, their gradients and each result are rounded: at most ROUNDING of the largest value each time."""
    dy, q, k, v = drawn(*4 * [(2, 2, 2, 5, 4)])
    attention = with_gradients(lambda q, k, v: attend(q, k, v, None, None))
    for found, wanted in zip(attention(dy, q, k, v), attention(*widened((dy, q, k, v))), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=3 * ROUNDING * float(abs(wanted).max()))


@pytest.mark.parametrize("function", ["matmul", "attend"])
def test_the_processor_s_instructions_take_the_products(function, monkeypatch):
    """greenjax asks XLA for float32 results, without which XLA widens bfloat16 operands. The compiled program then
    multiplies bfloat16 numbers where the processor can; without the request, those of `matmul` are widened."""
    if function == "matmul":
        f, arrays = matmul, drawn((64, 32), (64, 48), (48, 32))
    else:
        f, arrays = lambda q, k, v: attend(q, k, v, None, None), drawn(*4 * [(2, 3, 4, 16, 32)])
    if processor.multiplies_bfloat16():
        assert operand_types(f, arrays) == {"bf16"}
    monkeypatch.setattr(primitives, "multiplies_bfloat16", lambda: True)
    assert requested_types(f, arrays) == {("bf16", "bf16", "f32")}
    monkeypatch.setattr(primitives, "multiplies_bfloat16", lambda: False)
    if function == "matmul":
        assert operand_types(f, arrays) == {"f32"}


def requested_types(f, arrays):
    """The types of operands and result of each product, before XLA compiles it."""
    jax.clear_caches()
    text = with_gradients(f).lower(*arrays).as_text()
    found = re.findall(r"dot_general .*: \(tensor<[\dx]+x(\w+)>, tensor<[\dx]+x(\w+)>\) -> tensor<[\dx]+x(\w+)>", text)
    assert len(found) >= 3
    return set(found)


def operand_types(f, arrays):
    jax.clear_caches()
    text = with_gradients(f).lower(*arrays).compile().as_text()
    found = re.findall(r"= \w+\[[^\]]*\]\S* dot\(%?([\w.\-]+), %?([\w.\-]+)\)", text)
    names = {name for pair in found for name in pair}
    assert len(found) >= 3
    return {kind for name, kind in re.findall(r"%?([\w.\-]+) = (\w+)\[", text) if name in names}


@pytest.mark.parametrize(
    ("flags", "multiplies", "xla_flags"),
    [
        ("fpu avx2 avx512f", False, "--some=1"),
        ("fpu avx512_bf16", True, "--some=1"),
        ("fpu avx512_bf16 amx_bf16", True, "--some=1 --xla_cpu_max_isa=AMX_FP16"),
    ],
)
def test_instructions_are_read_from_the_processor(flags, multiplies, xla_flags, tmp_path, monkeypatch):
    said = read(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n", tmp_path, monkeypatch)
    monkeypatch.setenv("XLA_FLAGS", "--some=1")
    processor.allow_amx()
    assert processor.multiplies_bfloat16() == multiplies and os.environ["XLA_FLAGS"] == xla_flags
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    processor.allow_amx()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"  # the user's own
    main.warn_of_bfloat16("bfloat16")
    main.warn_of_bfloat16("float32")
    assert len(said) == (not multiplies) and all(line.startswith("model.dtype is bfloat16") for line in said)


def read(cpuinfo, folder, monkeypatch):
    """Puts a processor in the place of this one. Returns the list of warnings to come."""
    (folder / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr(processor, "features", processor.features.__wrapped__)
    said = []
    monkeypatch.setattr(main, "warn", said.append)
    return said
