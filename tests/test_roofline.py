"""The roofline by kernel: optimized programs read as text, profiles of a CPU and of a GPU, and the suite."""

import jax
import jax.numpy as jnp
import pytest
from small import small_config

from benchmarks import measure, roofline
from benchmarks.hlo import read_kernels
from benchmarks.profile import Event, profiled, read_events, shared_seconds, without_callers
from greenjax.errors import InputError
from greenjax.runtime.cost import matmul_flops

# As XLA writes it for a GPU, shortened: a product by cuBLAS, a fusion that takes rows of its first operand and copies
# its second, and a loop.
GPU_PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/site-packages/flax/nnx/nn/linear.py"
2 "/x/greenjax/backbones/layers.py"

FunctionNames
1 "Linear.__call__"
2 "Mlp.__call__"

FileLocations
1 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=PARENT1}
2 {file_location_id=2 parent_frame_id=PARENT2}

%fused_gather (p.0: bf16[100,8], p.1: f32[4], i: s32[3,1]) -> (bf16[3,8], f32[4]) {
  %p.0 = bf16[100,8]{1,0} parameter(0)
  %p.1 = f32[4]{0} parameter(1)
  %i = s32[3,1]{1,0} parameter(2)
  %b = bf16[100,8]{1,0} bitcast(%p.0)
  %g = bf16[3,8]{1,0} gather(%b, %i), offset_dims={1}, slice_sizes={1,8}
  %c = f32[4]{0} negate(%p.1)
  ROOT %t = (bf16[3,8]{1,0}, f32[4]{0}) tuple(%g, %c)
}

%body (s.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s.1 = (s32[], f32[4]{0}) parameter(0)
  %x.1 = f32[4]{0} get-tuple-element(%s.1), index=1
  ROOT %loop_fusion.7 = f32[4]{0} add(%x.1, %x.1)
}

%condition (s.2: (s32[], f32[4])) -> pred[] {
  %s.2 = (s32[], f32[4]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main.5 (a: bf16[64,32], w: bf16[32,16], r: bf16[100,8], i: s32[3,1], v: f32[4]) -> bf16[64,16] {
  %a = bf16[64,32]{1,0} parameter(0), metadata={op_name="a"}
  %w = bf16[32,16]{1,0} parameter(1)
  %r = bf16[100,8]{1,0} parameter(2)
  %v = f32[4]{0} parameter(3)
  %at = s32[3,1]{1,0} parameter(4)
  %cublas-gemm.1 = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%a, %w), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/jvp(vmap())/dot_general" stack_frame_id=2}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %loop_gather_fusion.2 = (bf16[3,8]{1,0}, f32[4]{0}) fusion(%r, %v, /*index=2*/%at), kind=kLoop, calls=%fused_gather
  %while.3 = (s32[], f32[4]{0}) while(%v), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  ROOT %gemm = bf16[64,16]{1,0} get-tuple-element(%cublas-gemm.1), index=0
}
"""  # noqa: E501


def gpu_program(surplus=1):
    return GPU_PROGRAM.replace("PARENT1", str(surplus)).replace("PARENT2", str(1 + surplus))


def test_what_kernels_compute_and_move_is_read_from_a_gpu_s_program():
    kernels = read_kernels(gpu_program())
    assert set(kernels) == {"cublas-gemm.1", "loop_gather_fusion.2", "while.3", "loop_fusion.7"}
    product = kernels["cublas-gemm.1"]
    assert product.flops == 2 * 64 * 32 * 16
    assert product.bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)  # not the library's scratch space
    moved = kernels["loop_gather_fusion.2"].bytes  # three rows read and written, not a hundred read
    assert moved == 2 * 3 * 8 * 2 + 2 * 4 * 4 + 3 * 4
    assert "loop_fusion.7" in kernels["while.3"].calls
    assert (kernels["loop_fusion.7"].runs, kernels["loop_fusion.7"].bytes) == (6, 2 * 16)  # an operand counts once


def test_an_array_that_a_kernel_completes_in_place_counts_where_it_was_begun():
    program = """ENTRY %main (a: bf16[64,32], b: bf16[64,16]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[64,16]{1,0} parameter(1)
  ROOT %k = bf16[64,32]{1,0} custom-call(%a, %b), custom_call_target="TARGET", output_to_operand_aliasing={{}: (0, {})}
}
"""
    ours, others = (
        read_kernels(program.replace("TARGET", target))["k"].bytes for target in ("__gpu$xla.gpu.triton", "other")
    )
    assert ours == 2 * 64 * 16
    assert others == 2 * (2 * 64 * 32 + 64 * 16)


@pytest.mark.parametrize("surplus", [0, 1])
def test_stacks_are_read_as_either_way_of_printing_them(surplus):
    stack = read_kernels(gpu_program(surplus))["cublas-gemm.1"].stack
    assert stack == (
        "/x/site-packages/flax/nnx/nn/linear.py:Linear.__call__",
        "/x/greenjax/backbones/layers.py:Mlp.__call__",
    )
    kernel = read_kernels(gpu_program(surplus))["cublas-gemm.1"]
    assert roofline.part(kernel) == "projections and MLPs"
    assert roofline.kind("cublas-gemm.1", kernel) == ("cublas-gemm", "Mlp", "forward dot_general")


def test_flops_of_a_compiled_program_are_those_of_its_products():
    def f(a, b, image, kernel):
        c = jnp.einsum("bij,bjk->bik", a, jnp.exp(b)) + 1
        y = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (jnp.tanh(c) @ c[0].T).sum() + y.sum()

    shapes = (4, 24, 48), (4, 48, 16), (1, 8, 8, 3), (3, 3, 3, 5)
    arguments = [jnp.ones(shape) for shape in shapes]
    traced = jax.jit(jax.grad(f)).trace(*arguments)
    kernels = read_kernels(traced.lower().compile().as_text())
    found = sum(kernel.flops * kernel.runs for kernel in kernels.values())
    forward = 2 * 4 * 24 * 48 * 16 + 2 * 4 * 24 * 16 * 24
    assert forward < found <= matmul_flops(traced.jaxpr)  # XLA drops what no result needs


def xspace(plane, lines, stats=("hlo_op", "device_ordinal")):
    """A profile as XLA writes it: lines of (event, start, duration in ns, {stat: value})."""
    names = sorted({event[0] for events in lines.values() for event in events})

    def stat(name, value):
        field = f"int64_value: {value}" if isinstance(value, int) else f'str_value: "{value}"'
        return f"stats {{ metadata_id: {stats.index(name) + 1} {field} }}"

    def event(name, start, duration, values):
        inner = " ".join(stat(*item) for item in values.items())
        place = f"offset_ps: {start * 1000} duration_ps: {duration * 1000}"
        return f"events {{ metadata_id: {names.index(name) + 1} {place} {inner} }}"

    text = f'planes {{ id: 1 name: "{plane}" '
    for number, (line, events) in enumerate(lines.items()):
        text += f'lines {{ id: {number} name: "{line}" {" ".join(event(*each) for each in events)} }} '
    for kind, known in (("event_metadata", names), ("stat_metadata", stats)):
        for number, name in enumerate(known, 1):
            text += f'{kind} {{ key: {number} value {{ id: {number} name: "{name}" }} }} '
    return text + "} "


def read(text, names):
    serialized = jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
    events = read_events(jax.profiler.ProfileData.from_serialized_xspace(serialized), names)
    return [(event.name, round(event.start * 1e9), round(event.end * 1e9)) for event in events]


def test_kernels_of_a_gpu_are_those_of_its_streams():
    """Instructions stand in a statistic; sums of other lines, other devices and the host do not count."""
    streams = {
        "Stream #13(Compute)": [
            ("nvjet_hsh", 100, 50, {"hlo_op": "cublas-gemm.1"}),
            ("splitKreduce", 150, 10, {"hlo_op": "cublas-gemm.1"}),
            ("loop_gather", 170, 5, {"hlo_op": "loop_gather_fusion.2"}),
        ],
        "Stream #14(MemcpyD2D)": [("MemcpyD2D", 90, 5, {})],
        "XLA Ops": [("cublas-gemm.1", 100, 60, {"hlo_op": "cublas-gemm.1"})],
    }
    text = xspace("/device:GPU:0", streams) + xspace("/device:GPU:1", streams)
    text += xspace("/host:CPU", {"python": [("cublas-gemm.1", 0, 1000, {})]})
    expected = [("MemcpyD2D", 90, 95), ("cublas-gemm.1", 100, 150), ("cublas-gemm.1", 150, 160)]
    assert read(text, {"cublas-gemm.1"}) == [*expected, ("loop_gather_fusion.2", 170, 175)]
    without = {"Steps": [("1", 0, 500, {})], "XLA Ops": streams["XLA Ops"]}
    assert read(xspace("/device:GPU:0", without), ()) == [("cublas-gemm.1", 100, 160)]


def test_kernels_of_a_cpu_end_where_their_last_thread_does():
    threads = {
        "main": [
            ("dot.1", 10, 5, {"hlo_op": "dot.1", "device_ordinal": 0}),
            ("add.2", 40, 5, {"hlo_op": "add.2", "device_ordinal": 0}),
            ("dot.1", 60, 5, {"hlo_op": "dot.1", "device_ordinal": 0}),
            ("ThunkExecutor::Execute", 0, 100, {}),
        ],
        "worker": [("end: dot.1", 30, 1, {}), ("end: add.2", 44, 0, {}), ("end: dot.1", 70, 1, {})],
    }
    expected = [("dot.1", 10, 31), ("add.2", 40, 45), ("dot.1", 60, 71)]
    assert read(xspace("/host:CPU", threads), {"dot.1", "add.2"}) == expected
    assert read(xspace("/host:other", threads), {"dot.1", "add.2"}) == []


def test_kernels_that_run_at_once_share_the_time():
    events = [Event("a", 0.0, 4.0), Event("b", 2.0, 4.0), Event("c", 5.0, 6.0), Event("d", 5.0, 5.0)]
    assert shared_seconds(events) == [3.0, 1.0, 1.0, 0.0]
    nested = [Event("while", 0.0, 9.0), Event("body", 1.0, 2.0), Event("call", 9.0, 10.0)]
    assert without_callers(nested, {"while": ("body",), "call": ("inner",)}) == nested[1:]


def test_an_instruction_that_starts_two_kernels_computes_once_and_a_loop_as_often_as_it_runs():
    kernels = read_kernels(gpu_program())
    events = [Event("cublas-gemm.1", 0.0, 2.0), Event("cublas-gemm.1", 2.0, 3.0), Event("memset", 3.0, 4.0)]
    events += [Event("loop_fusion.7", 4.0 + i, 5.0 + i) for i in range(6)]
    costs = roofline.kernel_costs(events, kernels, (2.0, 1e9))
    assert costs["cublas-gemm.1"][:3] == (2, 3.0, kernels["cublas-gemm.1"].flops)
    assert costs["cublas-gemm.1"].roofline_seconds == kernels["cublas-gemm.1"].flops / 2
    assert costs["loop_fusion.7"][:4] == (6, 6.0, 0, 6 * 32)
    assert costs["memset"] == (1, 1.0, 0, 0, 0.0)


def test_a_profile_has_every_kernel_of_a_program():
    a = jnp.ones((256, 256))
    program = jax.jit(lambda a: jnp.tanh(a @ a) @ a).lower(a).compile()
    kernels = read_kernels(program.as_text())
    events, seconds = profiled(lambda: program(a), kernels)
    assert {event.name for event in events} == set(kernels)
    assert 0 < sum(shared_seconds(events)) <= seconds


def test_a_profile_without_kernels_is_refused():
    with pytest.raises(InputError, match="has no kernels"):
        roofline.least_disturbed(lambda: jnp.zeros(()), {}, repeats=1)


@pytest.fixture
def compiled_from_these_sources():
    """The cache of the tests may hold equal programs whose kernels name functions of older sources."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.mark.usefixtures("compiled_from_these_sources")
@pytest.mark.parametrize("method", ["green", "simmim"])
def test_the_suite_explains_an_update(monkeypatch, capsys, method):
    monkeypatch.setattr(measure, "SIDES", {"cpu": 64})
    monkeypatch.setattr(measure, "COPIED", {"cpu": 2**20})
    report = roofline.run(small_config(model__depths=(1, 1), method=method), batch=4, repeats=1)
    parts, whole = {row["part"]: row for row in report["parts"]}, report["kernels"]
    expected = {"projections and MLPs", "norms", "activation functions", "attention", "optimizer"}
    assert expected < set(parts) and ("decoder" in parts) == (method == "green")
    products = ("projections and MLPs", "attention", "decoder")
    # A fusion counts where its last operation was, which for a few is behind a product.
    assert sum(parts[name]["flops"] for name in products if name in parts) > 0.9 * whole["flops"]
    for key in ("runs", "seconds", "flops", "bytes"):
        for rows in (report["parts"], report["kinds"]):
            assert sum(row[key] for row in rows) == pytest.approx(whole[key])
    assert report["program_flops"] * 0.9 < whole["flops"] <= report["program_flops"]
    assert whole["not_in_program"] == 0 and parts.get("other", {"bytes": 0})["bytes"] < 0.1 * whole["bytes"]
    assert report["share_of_roofline"] * report["update_seconds"] == pytest.approx(whole["roofline_seconds"])
    assert 0 < report["share_of_roofline_capped"] <= report["share_of_roofline"]
    assert f"share of the roofline: {report['share_of_roofline']:.2f}" in capsys.readouterr().out
