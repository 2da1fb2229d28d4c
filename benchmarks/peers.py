"""Programs of PyTorch that the step is compared with, where they can run."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from ml_collections import ConfigDict

PEER, COMPILED = "transformers", "transformers compiled"


Maker = Callable[[], dict[str, Callable[[], Any]]]  # returns the programs by part


class Peers(NamedTuple):
    """Programs by name, and reasons for those left out."""

    makers: dict[str, Maker]
    left_out: dict[str, str]
    peaks: dict[str, dict[str, int]]  # peak bytes of a GPU's memory by name and part, filled by runs
    free: Callable[[], None]  # returns memory of deleted programs to the GPU


def find_peers(config: ConfigDict, batch: int, compiled: bool) -> Peers:
    """transformers' SimMIM of a resolved dense configuration, on a GPU also compiled, elsewhere if `compiled`."""
    if reason := why_no_peer(config):
        return Peers({}, {PEER: reason}, {}, lambda: None)
    from benchmarks import torch_swin

    peaks: dict[str, dict[str, int]] = {PEER: {}, COMPILED: {}}
    left_out = {}
    makers: dict[str, Maker] = {PEER: partial(torch_swin.programs, config, batch, peaks[PEER])}
    if torch_swin.on_gpu() or compiled:
        if reason := torch_swin.why_not_compiled():
            left_out[COMPILED] = reason
        else:
            makers[COMPILED] = partial(torch_swin.programs, config, batch, peaks[COMPILED], compiled=True)
    return Peers(makers, left_out, peaks, torch_swin.free_memory)


def why_no_peer(config: ConfigDict) -> str | None:
    """Why PyTorch's Swin cannot run beside this configuration; None: it can."""
    missing = [name for name in ("torch", PEER) if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if not config.model.name.startswith("swin"):
        return f"it has no {config.model.name}"
    height, width = config.image_size
    last = height // config.model.patch // 2 ** (len(config.model.depths) - 1)
    if height != width or config.model.window > last:
        return f"it takes no {height}x{width} pixels with window {config.model.window}"
    return None
