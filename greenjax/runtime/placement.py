"""How arrays of the host get onto the devices of a mesh."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")  # both axes of a mesh split a batch; `fsdp` splits large parameters, too


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every leaf of a batch, mask groups or images with labels, over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


class Placement:
    """Places batches of the host on the devices of a mesh, and says which part of a batch a process reads."""

    def __init__(self, mesh: Mesh):
        self.split, self.copies = batch_sharding(mesh), NamedSharding(mesh, P())

    def own(self, count: int) -> range:
        """Which of the `count` mask groups, or images, of a batch are on the devices of this process."""
        parts = self.split.addressable_devices_indices_map((count,)).values()
        bounds = [part[0].indices(count) for part in parts if part is not None]
        return range(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))

    def __call__(self, batch: Any) -> Any:
        """A batch, split over the devices; each of several processes gives its own part of it."""
        return self._put(batch, self.split)

    def everywhere(self, batch: Any) -> Any:
        """A copy on every device; all processes give the same batch."""
        return self._put(batch, self.copies)

    @staticmethod
    def _put(batch: Any, sharding: NamedSharding) -> Any:
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)  # all leaves at once
        with jax.transfer_guard("allow"):  # this transfer is meant
            return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
