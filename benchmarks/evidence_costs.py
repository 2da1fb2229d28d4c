"""What an update of each method costs: seconds with the reading of its images, measured in turns, FLOPs and memory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.evidence_arms import SCRATCH, Arm
from benchmarks.evidence_reading import Reader
from benchmarks.measure import Timed, interleaved_medians
from benchmarks.programs import compile_part, first_state
from greenjax.backbones.geometry import make_planner
from greenjax.data.loader import train_batches
from greenjax.data.open import open_source
from greenjax.errors import InputError
from greenjax.runtime.console import say
from greenjax.runtime.files import read_json, replace_text
from greenjax.runtime.placement import Placement
from greenjax.training.sharding import make_mesh

Costs = dict[str, dict[str, float]]  # by arm: seconds, FLOPs of matrix products and bytes of an update
REPEATS = 15


def costs_of(workdir: Path, arms: Sequence[Arm], reader: Reader) -> Costs:
    """The costs of an update of each arm, as measured once for a workdir; of `SCRATCH` those of a fine-tuning."""
    timed, file = [arm for arm in arms if arm.name == SCRATCH or (arm.config and not arm.like)], workdir / "costs.json"
    if not file.exists():
        say("measuring what an update costs; nothing else should run now ...")
        replace_text(file, json.dumps(measured(timed, reader), indent=1) + "\n")
    costs = read_json(file, dict, "expected costs; remove it")
    for arm in timed:
        if arm.name not in costs:
            raise InputError(f"{file} lacks {arm.name!r}: expected the arms of this command; take another --workdir")
    return costs


def measured(arms: Sequence[Arm], reader: Reader) -> Costs:
    programs: dict[str, Timed] = {}
    costs: Costs = {}
    for arm in arms:
        update, flops, memory = pretraining_update(arm.config) if arm.config else reader.labelled_update()
        programs[arm.name] = update, ()
        costs[arm.name] = {"flops": flops, "bytes": memory}
    for name, seconds in interleaved_medians(programs, REPEATS).items():
        costs[name]["seconds"] = seconds
    return costs


def pretraining_update(config: ConfigDict) -> tuple[Callable[[], Any], int, int]:
    """The update of a pre-training on its next batch, as a function without arguments; its FLOPs, and its bytes."""
    source, place = open_source(config.data, config.data.split), Placement(make_mesh(config))
    batches = train_batches(config, source, make_planner(config))
    program, held = compile_part(config, "update"), [first_state(config)]

    def update() -> Any:
        held[0], metrics = program.compiled(held[0], place(next(batches)))
        return metrics

    return update, program.flops, program.memory
