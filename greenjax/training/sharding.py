"""One mesh over all processes: batches are split over its devices, the state is replicated or split over `fsdp`."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from greenjax.config import flatten
from greenjax.config.checks import check_split
from greenjax.errors import InputError
from greenjax.runtime.placement import BATCH_AXES, batch_sharding
from greenjax.runtime.processes import find_devices


def make_mesh(config: ConfigDict, available: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config.mesh`; data = -1 takes all devices. Raises InputError where the numbers do not fit.

    `available`: the devices to take them from, by default those that JAX finds.
    """
    available = find_devices() if available is None else available
    devices, data, fsdp = len(available), config.mesh.data, config.mesh.fsdp
    if devices % fsdp:
        raise InputError(f"mesh.fsdp is {fsdp}: expected a divisor of the {devices} devices")
    data = devices // fsdp if data == -1 else data
    if data * fsdp > devices:
        raise InputError(f"mesh.data is {data}: expected at most {devices // fsdp}, for {devices} devices")
    if data * fsdp < devices and jax.process_count() > 1:
        raise InputError(f"mesh.data is {data}: expected {devices // fsdp}, all devices of several processes")
    check_split(flatten(config), data * fsdp)
    # The devices of a process are neighbours, fsdp's first: parameters stay inside a machine where they can.
    used = sorted(available, key=lambda device: (device.process_index, device.id))[: data * fsdp]
    # Auto axes: with Explicit ones a callback inside shard_map inside vmap fails.
    return Mesh(np.array(used).reshape(data, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def batch_shapes(batch: Any, mesh: Mesh) -> Any:
    """The shapes and shardings of a batch, to compile a program for; `batch` is one of all processes."""
    split = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split), batch)


def spread(whole: Any, shardings: Any) -> Any:
    """Places arrays that every process has as a whole by `shardings`; no device holds more than its part."""

    def of_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.array(leaf)  # a copy: the state is donated, the source may live on
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(of_leaf, whole, shardings)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of an (abstract) state: `fsdp` splits its largest axis that it divides.

    Vectors are on every device: there are hundreds, and they are small.
    """

    def of_leaf(leaf: Any) -> NamedSharding:
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % mesh.shape["fsdp"] == 0]
        if mesh.shape["fsdp"] == 1 or leaf.ndim < 2 or not axes:
            return NamedSharding(mesh, P())
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*(None,) * largest, "fsdp"))

    return jax.tree.map(of_leaf, state)
