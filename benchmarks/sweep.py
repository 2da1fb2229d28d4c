"""The paper's figure 5 on a small data set: accuracy against mask ratio, decoder depth and length of pre-training.

    python -m benchmarks sweep --config configs/digits.py --workdir runs/sweep
        [--ratios 0.5,0.75] [--depths 1,2] [--lengths 0.5,1] [--finetune configs/finetune_digits.py]

Every point is one pre-training in its own folder. Its frozen features are judged on `data.eval_split` by a linear
probe and by k-NN; with --finetune the classifier fine-tuned from it is judged too, as in the paper. Points in
results.json are not computed again, so an interrupted sweep goes on, with the same configs alone. Leaves results.json
and figure5.png.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from benchmarks.study import KNN, PROBE, frozen_top1, parameters, remember
from greenjax.config import flatten, load_config, resolve
from greenjax.config.flags import folder
from greenjax.data.labels import matched
from greenjax.data.open import open_labelled
from greenjax.data.workers import WorkerDied
from greenjax.errors import InputError
from greenjax.evaluation.monitor import check_neighbours
from greenjax.evaluation.outputs import pooled_forward, source_features
from greenjax.evaluation.pictures.canvas import save_png
from greenjax.evaluation.results import read_results, write_results
from greenjax.interop.loading import load
from greenjax.runtime.cache import keep_compiled
from greenjax.runtime.console import say
from greenjax.runtime.lock import held
from greenjax.runtime.placement import Placement
from greenjax.tasks import finetune, pretrain
from greenjax.tasks.classify import held_out_images
from greenjax.training.sharding import make_mesh

METRICS = {"finetune": "fine-tuned", "linear": "linear probe", "knn": "k-NN"}  # labels of the curves


FLAGS = {
    "--workdir": dict(type=folder, default=Path("runs/sweep"), help="where the runs and their results go"),
    "--ratios": dict(default="0.5,0.625,0.75,0.875", help="values of mask.ratio"),
    "--depths": dict(default="1,2,4", help="values of decoder.depth"),
    "--lengths": dict(default="0.25,0.5,1,2", help="lengths, as multiples of the config's"),
    "--finetune": dict(help="a config file to fine-tune every point with"),
}


def run(
    config: ConfigDict, workdir: Path, ratios: str, depths: str, lengths: str, finetune: str | None
) -> dict[str, Any]:
    """Pre-trains and judges every point of the three axes, and returns what each is worth."""
    axes = sweep_axes(config, *(values.split(",") for values in (ratios, depths, lengths)))
    keep_compiled()
    with held(workdir, "--workdir"):
        sweep(config, axes, workdir, finetune)
    return {"points": read_results(workdir)}


def _numbers(name: str, values: Sequence[Any], whole: bool = False) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if not numbers or not all(number.is_integer() if whole else math.isfinite(number) for number in numbers):
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"--{name} is {','.join(map(str, values))!r}: expected {kind} with commas between")
    return numbers


Axes = dict[str, dict[float, dict[str, Any]]]  # by name: what each value changes in the config


def sweep_axes(config: ConfigDict, ratios: Sequence[Any], depths: Sequence[Any], lengths: Sequence[Any]) -> Axes:
    """The three axes through the configuration, of numbers or texts. Lengths scale the warm-up too."""
    unit = "epochs" if config.epochs else "steps"
    warmup = f"optim.warmup_{unit}"

    def length(factor: float) -> dict[str, Any]:
        return {key: round(factor * flatten(config)[key]) for key in (unit, warmup)}

    return {
        "mask ratio": {ratio: {"mask.ratio": ratio} for ratio in _numbers("ratios", ratios)},
        "decoder depth": {depth: {"decoder.depth": int(depth)} for depth in _numbers("depths", depths, whole=True)},
        unit: {length(factor)[unit]: length(factor) for factor in _numbers("lengths", lengths)},
    }


def sweep(config: ConfigDict, axes: Axes, workdir: Path, finetune_file: str | None = None) -> None:
    """Pre-trains and judges every point, and draws all finished points after each."""
    if not config.data.eval_split:
        raise InputError("data.eval_split is '': expected the split that features are judged on")
    # Every configuration, and that there are labels, is checked before the first run starts.
    train = open_labelled(config.data, config.data.split)
    check_neighbours(config, len(train), config.data.split)
    held_out_images(config, train)
    points = [
        (axis, value, resolve(flatten(config) | changes))
        for axis, values in axes.items()
        for value, changes in values.items()
    ]
    recipe = {"--finetune": recipe_of(finetune_file)} if finetune_file else {}
    for settings, found in read_results(workdir).items():
        if ("finetune" in found) != bool(finetune_file):
            missing = "no fine-tuned classifier" if finetune_file else "a fine-tuned classifier"
            raise InputError(
                f"--finetune is {finetune_file!r}: the point {settings!r} has {missing}; take another --workdir"
            )
    remember(workdir, {"--config": config} | recipe)
    for axis, value, run in points:
        settings = f"ratio {run.mask.ratio:g}, depth {run.decoder.depth}, {run.epochs or run.steps} {_unit(run)}"
        folder = workdir / settings.replace(", ", "_").replace(" ", "_")
        if settings not in read_results(workdir):
            try:
                pretrain(run, folder)
            except WorkerDied as error:
                raise WorkerDied(f"{error}; the same command goes on") from error
            write_results(workdir, settings, judged(folder, finetune_file))
        found = read_results(workdir)[settings]
        write_results(workdir, settings, found | {axis: value})
        numbers = ", ".join(f"{label} {found[key]:.4f}" for key, label in METRICS.items() if key in found)
        say(f"{axis} {value:g}: {numbers}")
        draw(workdir / "figure5.png", list(axes), read_results(workdir))


def recipe_of(file: str) -> ConfigDict:
    """The config of a file. Raises InputError where it cannot fine-tune a point and judge it."""
    recipe = load_config(file)
    if recipe.task not in ("finetune", "linear"):
        raise InputError(f"--finetune is {file!r}, whose task is {recipe.task!r}: expected finetune or linear")
    if not recipe.data.eval_split:
        raise InputError(f"--finetune is {file!r}, without data.eval_split: expected the split to judge points on")
    for split in (recipe.data.split, recipe.data.eval_split):
        open_labelled(recipe.data, split)
    return recipe


def _unit(config: ConfigDict) -> str:
    return "epochs" if config.epochs else "steps"


def judged(folder: Path, finetune_file: str | None) -> dict[str, float]:
    """Top-1 of a run's features on its held-out split: {"linear", "knn", "finetune"}."""
    model = load(folder)
    config = model.config
    params, pooled = parameters(model), pooled_forward(nnx.graphdef(model))
    images, others = (open_labelled(config.data, split) for split in (config.data.split, config.data.eval_split))
    sources = images, matched(others, images.classes, config.data.eval_split).source
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):  # for kernels: ops/fused_attention.py
        train, held_out = (source_features(config, pooled, params, source, Placement(mesh)) for source in sources)
    found = frozen_top1(config, train, held_out, len(images.classes))
    top1 = {"linear": found[PROBE], "knn": found[KNN]}
    if finetune_file is not None:
        run = load_config(finetune_file, {"seed": config.seed, "init": str(folder)})
        finetune(run, folder / "finetune")
        top1["finetune"] = read_results(folder / "finetune")[run.data.eval_split]["top1"]
    return top1


def draw(path: Path, axes: Sequence[str], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a PNG with a panel an axis, and a curve a way of judging."""
    figure = Figure(figsize=(4.2 * len(axes), 3.6), dpi=100, layout="constrained")
    shared = None
    for index, axis in enumerate(axes):
        panel = figure.add_subplot(1, len(axes), index + 1, sharey=shared, xlabel=axis)
        shared = shared or panel
        for key, label in METRICS.items():
            points = sorted((found[axis], found[key]) for found in results.values() if axis in found and key in found)
            if points:
                panel.plot(*zip(*points), "o-", label=label, markersize=4)
        if index == 0:
            panel.set_ylabel("held-out top-1")
            panel.legend()
        panel.grid(alpha=0.3)
    save_png(figure, path)
