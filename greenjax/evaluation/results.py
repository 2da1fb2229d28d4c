"""The files of an evaluation: results.json and predictions as CSV."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greenjax.evaluation.classify import Predictions
from greenjax.runtime.files import read_json, replace_text


def write_results(workdir: str | Path, name: str, result: Mapping[str, Any]) -> None:
    """Sets the entry `name` of DIR/results.json, {name: {task, split, images, top1, ...}}; other entries stay.

    Numbers that are not finite become null, as JSON has no others. Raises InputError where the file holds something
    else than named results, or cannot be written.
    """
    path = Path(workdir) / "results.json"
    results = read_results(workdir) | {name: {key: _plain(value) for key, value in result.items()}}
    replace_text(path, json.dumps(results, indent=2) + "\n")


def read_results(workdir: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of DIR/results.json; {} where there is no such file."""
    path = Path(workdir) / "results.json"
    if not path.exists():
        return {}
    return read_json(path, dict, "expected named results; move it away")


def write_predictions(path: str | Path, predictions: Predictions, files: Sequence[str], names: Sequence[str]) -> None:
    """Writes a CSV with a header, an image a line.

    Columns: index, label, predicted, confidence, file, label_name, predicted_name. `files` are the names of these
    images, `names` the names of the classes.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("index", "label", "predicted", "confidence", "file", "label_name", "predicted_name"))
    for (index, label, predicted, confidence), file in zip(zip(*predictions), files, strict=True):
        lines.writerow((index, label, predicted, f"{confidence:.6f}", file, names[label], names[predicted]))
    replace_text(Path(path), text.getvalue())


def _plain(value: Any) -> Any:
    """The value for JSON: scalars of NumPy and JAX as numbers, null in place of NaN and infinity."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
