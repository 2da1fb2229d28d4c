"""What the optimizer has to know of a model's parameters, by their names: their layer, and whether they decay."""

from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from greenjax.backbones.registry import family_of


def layers(config: ConfigDict, params: Any) -> Any:
    """The layer of every parameter: 0 at patch embedding and mask token, then by `optim.layer_blocks` blocks.

    The final norm, a decoder and a head are the last layer; other modules of a stage belong to the block that the
    backbone's family names.
    """
    of_encoder = partial(
        family_of(config.model.name).layer, depths=config.model.depths, blocks=config.optim.layer_blocks
    )

    def layer(path: tuple, _: Any) -> int:
        names = [entry.key for entry in path]
        if names[0] == "encoder":
            return of_encoder(names[1:])
        return 0 if names[0] == "mask_token" else of_encoder(["norm"])

    return jax.tree.map_with_path(layer, params)


def decayed(config: ConfigDict, params: Any) -> Any:
    """True for matrices; not for biases, norms, position bias tables, mask tokens, nor what the family leaves out."""
    undecayed = family_of(config.model.name).undecayed

    def is_matrix(path: tuple, _: Any) -> bool:
        names = [entry.key for entry in path]
        return names[-1] == "kernel" and undecayed.isdisjoint(names)

    return jax.tree.map_with_path(is_matrix, params)
