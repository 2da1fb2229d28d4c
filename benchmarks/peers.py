"""SimMIM by transformers' Swin in PyTorch, of the same size: seconds and memory of forward, backward and update.

By `--compiled` also through torch.compile. The suite `step` compares greenjax with these programs.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.measure import TIMING, Timed, machine, medians_one_by_one
from benchmarks.programs import METHODS, ONE_DEVICE, check_pretraining, sized
from benchmarks.tables import Column, table
from greenjax.backbones.registry import FAMILIES
from greenjax.errors import InputError

FLAGS = TIMING | {"--compiled": dict(action="store_true", help="by torch.compile, too; takes minutes")}
PEER, COMPILED = "transformers", "transformers compiled"

Maker = Callable[[], dict[str, Callable[[], Any]]]  # returns the programs by part


class Peers(NamedTuple):
    """Programs by name, and reasons for those left out."""

    makers: dict[str, Maker]
    left_out: dict[str, str]
    peaks: dict[str, dict[str, int]]  # peak bytes of a GPU's memory by name and part, filled by runs
    free: Callable[[], None]  # returns memory of deleted programs to the GPU


def run(config: ConfigDict, batch: int, repeats: int, compiled: bool = False) -> dict[str, Any]:
    """Prints the table of PyTorch's programs and returns their figures. Raises InputError where they cannot run."""
    check_pretraining(config)
    peers = find_peers(sized(config, batch, method=METHODS["dense"], **ONE_DEVICE), batch, compiled)
    if reason := peers.left_out.get(PEER):
        raise InputError(f"{PEER} is left out: {reason}")
    report = {**machine(), "model": config.model.name, "dtype": config.model.dtype, "batch": batch}
    report |= {"repeats": repeats, "left_out": peers.left_out, "rows": []}
    for name, make in peers.makers.items():
        runs: dict[str, Timed] = {part: (program, ()) for part, program in make().items()}
        for part, seconds in medians_one_by_one(runs, repeats).items():
            row = {"method": name, "part": part, "seconds": seconds, "memory": peers.peaks[name].get(part)}
            report["rows"].append(row | ({} if seconds is None else {"images_per_second": batch / seconds}))
        runs.clear()
        peers.free()
    print(f"{report['model']}, {report['dtype']}, batch {batch}, on {report['device']}: median of {repeats} runs")
    print(table(COLUMNS, report["rows"]))
    return report


def find_peers(config: ConfigDict, batch: int, compiled: bool) -> Peers:
    """transformers' SimMIM of a resolved dense configuration, and the same compiled if `compiled`."""
    if reason := why_no_peer(config):
        return Peers({}, {PEER: reason}, {}, lambda: None)
    from benchmarks import torch_swin

    peaks: dict[str, dict[str, int]] = {PEER: {}, COMPILED: {}}
    left_out = {}
    makers: dict[str, Maker] = {PEER: partial(torch_swin.programs, config, batch, peaks[PEER])}
    if compiled:
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
    if config.model.name not in FAMILIES["swin"].sizes:
        return f"it has no {config.model.name}"
    height, width = config.image_size
    last = height // config.model.patch // 2 ** (len(config.model.depths) - 1)
    if height != width or config.model.window > last:
        return f"it takes no {height}x{width} pixels with window {config.model.window}"
    return None


COLUMNS: list[Column] = [
    ("by", "method", 1, ""),
    ("", "part", 1, ""),
    ("s", "seconds", 1, ".3f"),
    ("images/s", "images_per_second", 1, ".1f"),
    ("MB in all", "memory", 1e6, ".1f"),
]
