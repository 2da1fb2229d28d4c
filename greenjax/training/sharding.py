"""One mesh: batches are split over all its devices by mask group, the state is replicated or split over `fsdp`."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from greenjax.errors import InputError

BATCH_AXES = ("data", "fsdp")


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of `config.mesh`; data = -1 takes all devices. Raises InputError where the numbers do not fit."""
    if jax.process_count() > 1:
        raise InputError(f"{jax.process_count()} JAX processes: expected one, with any number of devices")
    devices, data, fsdp = jax.device_count(), config.mesh.data, config.mesh.fsdp
    if devices % fsdp:
        raise InputError(f"mesh.fsdp is {fsdp}: expected a divisor of the {devices} devices")
    data = devices // fsdp if data == -1 else data
    if data * fsdp > devices:
        raise InputError(f"mesh.data is {data}: expected at most {devices // fsdp}, for {devices} devices")
    parts = data * fsdp * config.optim.accumulation
    if config.task != "pretrain" and config.data.batch_size % parts:
        raise InputError(
            f"data.batch_size is {config.data.batch_size}: expected a multiple of devices * optim.accumulation, {parts}"
        )
    if config.task == "pretrain" and config.mask.groups % parts:
        raise InputError(
            f"mask.groups is {config.mask.groups}: expected a multiple of devices * optim.accumulation, {parts}"
        )
    # Auto axes: with Explicit ones a callback inside shard_map inside vmap fails.
    return jax.make_mesh((data, fsdp), BATCH_AXES, (AxisType.Auto,) * 2, devices=jax.devices()[: data * fsdp])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Mask groups, or images with labels, the leading axis of every leaf of a batch, over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of an (abstract) state: its largest axis that `fsdp` divides is split over it."""

    def of_leaf(leaf: Any) -> NamedSharding:
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % mesh.shape["fsdp"] == 0]
        if mesh.shape["fsdp"] == 1 or not axes:
            return NamedSharding(mesh, P())
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*(None,) * largest, "fsdp"))

    return jax.tree.map(of_leaf, state)
