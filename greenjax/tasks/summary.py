"""What a run says: before its first step its settings, after its last step its files and the next commands."""

import math
import shlex
from pathlib import Path
from time import monotonic
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid, visible_units
from greenjax.config import flatten, load_config
from greenjax.config.checks import unfit
from greenjax.config.data_set import data_set
from greenjax.config.flags import started
from greenjax.config.places import is_name, locate
from greenjax.config.settings import KEYS, READING
from greenjax.data.sources import COLUMNS, SOURCES
from greenjax.data.sources.objects import ObjectSource
from greenjax.errors import InputError
from greenjax.interop.layouts import export_line
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.console import say
from greenjax.runtime.processes import cores
from greenjax.training.optim import peak_rate
from greenjax.training.progress import duration
from greenjax.training.start import HELD_OUT, TRAINING, Run
from greenjax.training.state import abstract_state

# Settings of the images, which a fine-tuning takes over where its config has others.
DATA = ("data.source", "data.path", "data.name", *COLUMNS, "data.split", "data.eval_split", "data.mean", "data.std")
DATA += (*READING, "data.scale")
RESULTS = ("results.json", "predictions_*.csv", "detections_*.json")
FAVOURITE = "timm"  # the layout that the export command names where it fits


def say_listing(config: ConfigDict) -> None:
    """Says that images are listed, which takes long where there are many."""
    splits = ", ".join(filter(None, (config.data.split, config.data.eval_split)))
    say(f"listing the images of {splits} in {_where(config)} ...")


def start_lines(run: Run) -> list[str]:
    """About ten lines before training; none where nothing is left to do."""
    config, total = run.config, run.total
    if run.start >= total:
        return []
    batch, optim = config.data.batch_size, config.optim
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_state(config, run.mesh).params))
    sets = ((config.data.split, run.sources[TRAINING]), (config.data.eval_split, run.sources[HELD_OUT]))
    counts = "; ".join(f"{len(source):,} of {split}" for split, source in sets if source is not None)
    rows = [
        ("model", f"{config.model.name}, {_count(parameters)} parameters, {config.model.dtype}"),
        ("weights", _weights(run)),
        ("images", f"{counts} ({_where(config)}), {'x'.join(map(str, config.image_size))} pixels{_reading(config)}"),
    ]
    if run.classes is not None:
        rows.append(("classes", f"{len(run.classes):,}"))
    if config.task == "pretrain":
        groups = config.mask.groups
        units = math.prod(token_grid(config).units)
        visible = f"{visible_units(config)} of {units} units visible"
        visible += f", {config.mask.block} x {config.mask.block} to a block" if config.mask.block > 1 else ""
        rows.append(("masks", f"{groups} an update, each for {batch // groups} images; {visible}"))
    every = config.log.checkpoint_every
    kept = f"checkpoints there every {every:,} updates" if every else "a checkpoint there at the end"
    epochs = total * batch / len(run.sources[TRAINING])
    warmup = f"warm-up {run.warmup:,} ({run.warmup / total:.0%})" if run.warmup else "no warm-up"
    rows += [
        ("updates", f"{total:,} of {batch} images each: {epochs:.3g} epochs; {warmup}"),
        ("rate", f"up to {peak_rate(config):.3g} (optim.base_lr {optim.base_lr:g} x {batch}/256)"),
        ("devices", _devices(run.mesh)),
        ("results", f"{run.workdir}, {kept}"),
        ("exports to", export_line(config).partition(": ")[2]),
    ]
    return table(rows)


def end_lines(workdir: Path, title: str) -> list[str]:
    """The files in the workdir of a run that ended well."""
    rows = [
        ("checkpoint", [f"checkpoints/{step}" for step in Checkpointer(workdir).steps()[-1:]]),
        ("results", [path for pattern in RESULTS for path in _found(workdir, pattern)]),
        ("pictures", [*_found(workdir, "*.png"), *_last(workdir, "reconstructions"), *_last(workdir, "detections")]),
        ("metrics", [*_found(workdir, "metrics.jsonl"), *_found(workdir, "tensorboard")]),
    ]
    return [f"{title}; in {workdir}:", *table([(name, ", ".join(found)) for name, found in rows if found])]


def next_lines(config: ConfigDict, workdir: Path, file: str, script: bool = False) -> list[str]:
    """The commands that may come next after a run of the config `file`, a path or a name.

    They begin with `greenjax` where the run was started by this `script`, and with `python -m` otherwise.
    """
    rows = []
    if config.task == "pretrain" and (words := _finetuning(config, workdir, file)):
        rows.append(("fine-tune", shlex.join([*started("main", "finetune", script), *words])))
    layouts = export_line(config).partition(": ")[2].partition(";")[0].split(", ")
    if config.task in ("pretrain", "finetune", "linear", "detect") and layouts != ["none"]:
        layout = FAVOURITE if FAVOURITE in layouts else layouts[0].partition(" ")[0]
        output = _beside(workdir, ".safetensors")
        words = ["to-torch", "--workdir", workdir, "--layout", layout, "--output", output]
        rows.append(("export", shlex.join(map(str, [*started("convert", "convert", script), *words]))))
    return ["next:", *table(rows)] if rows else []


def table(rows: list[tuple[str, str]]) -> list[str]:
    """Aligned lines of a name and a text."""
    return [f"  {name:<10}  {text}" for name, text in rows]


def run_time(run: Run) -> str:
    updates = run.total - run.start
    return f"done: {updates:,} updates in {duration(monotonic() - run.began)}" if updates > 0 else "done"


def _where(config: ConfigDict) -> str:
    return ", ".join(data_set(config.data))


def _reading(config: ConfigDict) -> str:
    """The settings by which pixels are read, where these are not 8 bits of grey or RGB."""
    here = flatten(config)
    changed = [key for key in (*READING, "data.scale") if here[key] != KEYS[key].default]
    return "".join(f", {key}={_text(here[key])}" for key in changed)


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _weights(run: Run) -> str:
    if run.last is not None:
        return f"of step {run.last:,} in {run.workdir}"
    return f"drawn by seed {run.config.seed}" if run.config.init == "none" else f"of {run.config.init}"


def _devices(mesh: Mesh) -> str:
    kind, split = mesh.devices.flat[0].device_kind, mesh.shape["fsdp"]
    text = f"{mesh.size} x {kind}" + (f", {cores()} cores" if kind == "cpu" else "")
    text += f", of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return text + (f"; parameters split over {split}" if split > 1 else "")


def _found(workdir: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(workdir)) for path in workdir.glob(pattern))


def _last(workdir: Path, folder: str) -> list[str]:
    return _found(workdir, f"{folder}/*.png")[-1:]


def _finetuning(config: ConfigDict, workdir: Path, file: str) -> list[str] | None:
    """None where no config beside `file` is for fine-tuning its model, or its images have no label each."""
    if issubclass(SOURCES[config.data.source], ObjectSource):
        return None
    path = locate(file)
    for name in (path.stem, config.model.name):
        recipe = path.with_name(f"finetune_{name}.py")
        if recipe.exists():
            break
    else:
        return None
    here = flatten(config)
    try:
        before = flatten(load_config(recipe))
        changes = {key: 0 for key in unfit(here) if before[key]}
        there = flatten(load_config(recipe, changes | {"init": str(workdir)}))  # with what the weights bring
    except InputError:  # somebody's own, which is not done yet
        return None
    changes |= {key: here[key] for key in DATA if here[key] != there[key]}
    if here[batch := "data.batch_size"] < there[batch]:  # what fits a pre-training, which needs less memory an image
        changes[batch] = here[batch]
    output = _beside(workdir, "_finetuned")
    name = recipe.stem if is_name(file) else str(recipe)
    words = [f"--config.{key}={_text(value)}" for key, value in changes.items()]
    return ["--config", name, f"--config.init={workdir}", *words, "--workdir", str(output)]


def _beside(workdir: Path, ending: str) -> Path:
    """A path beside the workdir, of its name and `ending`; `.`, `..` and `/` are no names."""
    workdir = workdir.resolve() if workdir.name in ("", "..") else workdir
    return workdir.parent / f"{workdir.name or 'run'}{ending}"


def _text(value: Any) -> str:
    """As a command line takes it; a tuple as Python has it where a text in it has a comma."""
    apart = isinstance(value, tuple) and value and not any("," in str(item) for item in value)
    return ",".join(map(str, value)) if apart else str(value)
