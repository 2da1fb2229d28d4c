"""The programs of one update of greenjax - forward, forward + backward, the whole - and inputs to run them on."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from greenjax.backbones.geometry import make_planner, stage_channels, stage_specs, token_grid
from greenjax.config import flatten, resolve
from greenjax.data.loader import Batch, blank_batch
from greenjax.errors import InputError
from greenjax.planning import Plan, dense_plan
from greenjax.runtime.cost import matmul_flops
from greenjax.runtime.placement import Placement
from greenjax.tasks.pretrain import pretraining
from greenjax.training.optim import learning_rate
from greenjax.training.sharding import batch_shapes, make_mesh
from greenjax.training.state import State, abstract_state, init_state
from greenjax.training.step import make_update

PARTS = ("forward", "backward", "update")  # "backward" is forward + backward
LARGE = 64  # images on one device; from such a batch the slope of memory is taken towards a smaller one
STEPS = 1000  # length of the schedule of the learning rate
METHODS = {"green": "green", "dense": "simmim"}  # by their names in tables
ONE_DEVICE = {"mesh__data": 1, "mesh__fsdp": 1, "mask__groups": 1}  # for `sized`: one device, as PyTorch has, one mask


class Program(NamedTuple):
    """A compiled program and its costs: sizes in bytes, work in FLOPs of matrix products."""

    compiled: Any
    flops: int
    unpadded_flops: int  # without products between slots of different windows
    bytes_accessed: float  # by XLA's analysis
    temporary: int
    memory: int  # the most that one device needs: arguments, results, temporaries
    compile_seconds: float  # tracing included


def sized(config: ConfigDict, batch: int, **changes: Any) -> ConfigDict:
    """The configuration with this batch and one mask a device; `changes` by name, `model__window=14`."""
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    fixed = {"data.batch_size": batch, "mask.groups": jax.device_count(), "optim.accumulation": 1, "mesh.data": -1}
    if keys.get("method") == "simmim":  # whose decoder is one linear layer
        fixed |= {"decoder.fusion": False, "decoder.positions": "sincos"}
    return resolve(flatten(config) | fixed | keys)


def check_pretraining(config: ConfigDict) -> None:
    """Raises InputError where the task is another."""
    if config.task != "pretrain":
        raise InputError(f"task is {config.task!r}: expected 'pretrain'")


def check_devices(batch: int) -> None:
    """Raises InputError for a batch that the devices cannot share."""
    if batch % jax.device_count():
        raise InputError(f"--batch is {batch}: expected a multiple of the {jax.device_count()} devices")


def random_batch(config: ConfigDict, plan: Plan | None = None) -> Batch:
    """Noise under the masks of step 0, or under a plan for all mask groups."""
    if plan is None:
        plan, _ = make_planner(config).plans(0, config.mask.groups)
    batch = blank_batch(config, plan)
    noise = np.random.default_rng(0).integers(256, size=batch.images.shape, dtype=np.uint8)
    return batch._replace(images=noise.astype(batch.images.dtype))


def compile_part(
    config: ConfigDict, part: str, batch: Batch | None = None, devices: Sequence[Any] | None = None
) -> Program:
    """Compiles one of PARTS for batches like this one, by default a random one, and for these devices or those here."""
    batch = random_batch(config) if batch is None else batch
    start = time.perf_counter()
    traced = trace_part(config, part, batch, devices)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed", 0.0)  # unknown for absent devices
    flops = matmul_flops(traced.jaxpr)
    unpadded = flops - pair_products(config, part) * padding_flops(config, batch.plan)
    return Program(compiled, flops, unpadded, accessed, *memory_of(compiled), seconds)


def trace_part(config: ConfigDict, part: str, batch: Batch, devices: Sequence[Any] | None = None) -> jax.stages.Traced:
    """Traces what `compile_part` compiles."""
    mesh, task = make_mesh(config, devices), pretraining(config)
    state, shapes = abstract_state(config, mesh), batch_shapes(batch, mesh)
    if part == "update":
        return make_update(task, mesh, learning_rate(config, STEPS, 1)).trace(state, shapes)

    def mean_loss(params: Any, batch: Batch) -> jax.Array:
        return task.loss(params, task.inputs(batch, jnp.zeros((), jnp.int32)))[0]

    with jax.set_mesh(mesh):
        return jax.jit(mean_loss if part == "forward" else jax.value_and_grad(mean_loss)).trace(state.params, shapes)


def memory_slope(config: ConfigDict, update: Program, devices: Sequence[Any] | None = None) -> float:
    """Bytes of temporary memory that each further image takes; `update` is that of a configuration by `sized`.

    Measured towards a batch three times as large, or a fourth as large where a larger one need not fit.
    """
    batch, groups = config.data.batch_size, config.mask.groups
    other = batch // 4 // groups * groups if batch >= LARGE * groups else 3 * batch
    second = sized(config, other, mask__groups=groups, mesh__data=config.mesh.data)
    return (compile_part(second, "update", devices=devices).temporary - update.temporary) / (other - batch)


def memory_of(compiled: Any) -> tuple[int, int]:
    """Bytes of a program's temporaries, and of all that it needs; 0 where the backend does not tell."""
    found = compiled.memory_analysis()
    if found is None:
        return 0, 0
    outside = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes, outside + found.temp_size_in_bytes


def pair_products(config: ConfigDict, part: str) -> int:
    """Matrix products over pairs of slots in one attention: two forward, four backward, two of recomputation."""
    return 2 if part == "forward" else 6 + 2 * config.model.remat


def padding_flops(config: ConfigDict, plan: Plan) -> int:
    """FLOPs of one such product in every block, over pairs of slots that do not see each other.

    A block computes all pairs of a row, and needs those inside a window: w * w for w visible tokens. No other product
    has padding, because projections take the ungrouped tokens.
    """
    green = config.method == "green"
    # One plan for each mask group; the dense method has one for all images.
    windows = plan.windows if green else dense_plan(token_grid(config), stage_specs(config)).windows
    total = 0
    for spec, channels, groupings in zip(stage_specs(config), stage_channels(config), windows, strict=True):
        for of_blocks, grouping in zip(spec.windows, groupings, strict=True):
            ids = np.asarray(grouping.window)
            rows = ids.reshape(-1, ids.shape[-1])
            seen = sum(int((np.bincount(row[row >= 0]) ** 2).sum()) for row in rows)
            total += of_blocks.blocks * 2 * channels * (rows.size * rows.shape[1] - seen)
    return total * (config.data.batch_size // config.mask.groups if green else config.data.batch_size)


def runnable(
    config: ConfigDict, programs: dict[str, Program], batch: Batch | None = None, held: list[State] | None = None
) -> dict[str, Callable[[], Any]]:
    """Each program on a batch, noise by default, as a function without arguments.

    Every update goes on from the last one's state. `held` is a list of one state, for updates that share its memory.
    """
    placed = Placement(make_mesh(config))(random_batch(config) if batch is None else batch)
    held = [first_state(config)] if held is None else held

    def update() -> Any:
        held[0], metrics = programs["update"].compiled(held[0], placed)
        return metrics

    def part(program: Program) -> Callable[[], Any]:
        return lambda: program.compiled(held[0].params, placed)

    return {name: update if name == "update" else part(program) for name, program in programs.items()}


def first_state(config: ConfigDict) -> State:
    """The state before the first update."""
    return init_state(config, make_mesh(config))
