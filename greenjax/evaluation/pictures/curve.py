"""The curves of a run, drawn from its metrics.jsonl, and its held-out loss in one line."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from greenjax.evaluation.pictures.canvas import make_figure, save_png

MONITORED = {"knn_top1": "k-NN", "linear_top1": "linear", "views_top1": "same image, other view"}


def draw_loss_curve(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes a PNG: the loss on training batches and on held-out images by step, and the loss of the best constant.

    A second panel has the accuracy of monitored features, where there is one.
    """
    monitored = [(key, label) for key, label in MONITORED.items() if any(key in line for line in lines)]
    figure = make_figure(figsize=(7 if not monitored else 11, 4), layout="constrained")
    axes = figure.add_subplot(1, 1 + bool(monitored), 1, xlabel="step", ylabel="masked loss")
    _draw(axes, lines, (("loss", "training", "-"), ("held_out_loss", "held-out", "o-")))
    for line in lines:
        if line.get("best_constant_loss") is not None:
            axes.axhline(line["best_constant_loss"], color="grey", linestyle=":", label="best constant, held-out")
    _legend(axes)
    if monitored:
        axes = figure.add_subplot(1, 2, 2, xlabel="step", ylabel="top-1 accuracy of frozen features")
        _draw(axes, lines, [(key, label, "o-") for key, label in monitored])
        _legend(axes)
    save_png(figure, path)


def draw_losses(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Writes a PNG of several runs, by name their lines: the loss on training batches, dots on held-out images."""
    figure = make_figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    for number, (name, lines) in enumerate(runs.items()):
        _draw(axes, lines, (("loss", name, f"C{number % 10}-"),))
        _draw(axes, lines, ((key, "_", f"C{number % 10}o") for key in ("held_out_loss", "eval_loss")))
    _legend(axes)
    save_png(figure, path)


def draw_accuracy_curve(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes a PNG of a classifier's training: its loss, and its accuracy on held-out images, by step."""
    figure = make_figure(figsize=(11, 4), layout="constrained")
    axes = figure.add_subplot(1, 2, 1, xlabel="step", ylabel="cross-entropy")
    _draw(axes, lines, (("loss", "training, augmented and smoothed", "-"), ("eval_loss", "held-out", "o-")))
    _legend(axes)
    axes = figure.add_subplot(1, 2, 2, xlabel="step", ylabel="held-out accuracy")
    _draw(axes, lines, (("eval_top1", "top-1", "o-"), ("eval_top5", "top-5", "o-")))
    _legend(axes)
    save_png(figure, path)


def _draw(axes: Any, lines: list[dict[str, Any]], curves: Iterable[tuple[str, str, str]]) -> None:
    """Draws the curves, (key, label, style), whose key is in the lines."""
    for key, label, style in curves:
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def held_out_line(lines: list[dict[str, Any]], start: str = "untrained model") -> str:
    """The last held-out masked loss beside the loss before the first step and the loss of the best constant.

    `start` names the model before the first step.
    """
    held_out = [line for line in lines if "held_out_loss" in line]
    if not held_out:
        return "no held-out loss was measured"
    first, last = held_out[0], held_out[-1]
    text = f"held-out masked loss: {_number(last['held_out_loss'])} at step {last['step']}"
    if first["step"] == 0:
        text += f"; {start} {_number(first['held_out_loss'])}"
        text += f"; best constant {_number(first['best_constant_loss'])}"
    return text


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"
