"""The model card of an exported folder: README.md with the front matter that the hub of Hugging Face reads.

It says nothing of the machine, and no key of a URL: of every path the last component alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml
from ml_collections import ConfigDict

from greenjax import __version__
from greenjax.backbones.registry import family_of
from greenjax.config import KEYS, flatten
from greenjax.config.data_set import data_set
from greenjax.evaluation.results import read_results
from greenjax.runtime.classes import Classes
from greenjax.runtime.files import read_json, read_metrics

CARD = "README.md"
YOURS = "*yours to fill in*"
SHOWN = 20  # names of classes

KINDS = {
    "pretrain": "An encoder pre-trained without labels",
    "finetune": "A fine-tuned classifier of images",
    "linear": "A linear classifier of images on a frozen encoder",
}
METHODS = {"green": "green masked image modelling", "simmim": "SimMIM"}
CLASSIFIER = "ForImageClassification"  # how the names of transformers' classifiers end
SETTINGS = ("method", "epochs", "steps", "data.batch_size", "optim.base_lr", "optim.weight_decay", "model.drop_path")
SETTINGS += ("model.dtype", "ema", "seed", "data.crop_scale", "data.flip")
MORE = {
    "pretrain": ("mask.ratio", "mask.block", *(key for key in KEYS if key.startswith("decoder."))),
    "finetune": ("optim.layer_decay", "optim.label_smoothing", "data.randaugment", "data.erasing", "data.mixup"),
}
NO_RESULTS = ("temperature", "step")  # floats of an entry of results.json that measure nothing


class Origin(NamedTuple):
    """Where exported weights come from."""

    step: int | None = None
    workdir: Path | None = None  # of the run; None: weights without one

    @property
    def trained(self) -> bool:
        """Whether a run of greenjax made the weights. At step 0 they are those that it begins with."""
        return self.workdir is not None and self.step != 0


def model_card(
    name: str, described: Mapping[str, Any], config: ConfigDict, classes: Classes, origin: Origin, processor: bool
) -> str:
    """The text of README.md for the folder `name`, whose config.json is `described`; `processor`: it has one of images.

    Raises InputError where files of the run are damaged.
    """
    architecture = described["architectures"][0]
    sections = {
        "": about(described, config, origin),
        "Data": data(config, classes, origin),
        "Settings": settings(config) if origin.trained else [],
        "Results": results(origin),
        "How to load it": how_to_load(name, architecture, config, processor),
        "Licence and use": [
            f"Licence of the weights: {YOURS} (and in the first lines of this file). What they may be used for, and"
            f" what not, which follows from the images and from the weights they started from: {YOURS}.",
        ],
    }
    text = [front_matter(described, config, architecture), f"# {plain(name)}"]
    for title, lines in sections.items():
        text += ([f"## {title}"] if title and lines else []) + (["\n".join(lines)] if lines else [])
    return "\n\n".join(text) + "\n"


def front_matter(described: Mapping[str, Any], config: ConfigDict, architecture: str) -> str:
    """The metadata of the hub. Licence and base model are comments: nobody else knows them."""
    tags = ["greenjax", described["model_type"]] + ["masked-image-modeling"] * (config.task == "pretrain")
    found: dict[str, Any] = {"library_name": "transformers"}
    if architecture.endswith(CLASSIFIER):
        found["pipeline_tag"] = "image-classification"
    elif architecture.endswith("Model"):
        found["pipeline_tag"] = "image-feature-extraction"
    lines = ["---", "# license: yours to set, such as apache-2.0"]
    if config.init != "none":
        lines.append(f"# base_model: OWNER/NAME of {last(config.init)} on the hub, if it is there")
    return "\n".join([*lines, yaml.safe_dump(found | {"tags": tags}, sort_keys=False).rstrip(), "---"])


def about(described: Mapping[str, Any], config: ConfigDict, origin: Origin) -> list[str]:
    """What the model is."""
    model, (height, width), architecture = config.model, config.image_size, described["architectures"][0]
    kind = KINDS.get(config.task, "A classifier of images")
    if not architecture.endswith(CLASSIFIER):
        kind = KINDS["pretrain"] if config.task == "pretrain" else "An encoder of images"
    kind += f", by {METHODS[config.method]}" if config.task == "pretrain" else ""
    made = f"Written by greenjax {__version__}" + ("." if origin.step is None else f", at step {origin.step:,}.")
    colours = f"mean {numbers(config.data.mean)} and deviation {numbers(config.data.std)}"
    by = f"{config.data.scale:g}" if config.data.scale else "the largest value of their type"
    channels = "1 channel" if model.in_channels == 1 else f"{model.in_channels} channels"
    images = f"Images: {height} x {width} pixels, {channels}, {colours} of pixels divided by {by}."
    began = f"It began with the weights of {code(last(config.init))}." if config.init != "none" else ""
    first = f"{kind}: {model.name}, `{architecture}` in transformers."
    return [first, images, *filter(None, [began]), made]


def data(config: ConfigDict, classes: Classes, origin: Origin) -> list[str]:
    """The images of the training, and the classes."""
    lines = [f"What the images show, and who may use them: {YOURS}."]
    if origin.trained:
        found = ", ".join(code(last(each)) for each in data_set(config.data))
        listed = origin.workdir / "data.json" if origin.workdir else None
        count = read_json(listed, dict, "remove it").get("images") if listed and listed.is_file() else None
        images = "Images" if count is None else f"{count:,} images"
        lines.insert(0, f"{images}: {found}, split {code(last(config.data.split))}.")
    if classes:
        more = f" and {len(classes) - SHOWN:,} more, in config.json" if len(classes) > SHOWN else ""
        lines.append(f"{len(classes):,} classes: {', '.join(map(plain, classes[:SHOWN]))}{more}.")
    return lines


def settings(config: ConfigDict) -> list[str]:
    flat = flatten(config)
    of_family = (f"model.{part}" for part in family_of(config.model.name).settings)
    keys = [key for key in (*SETTINGS, *of_family, *MORE.get(config.task, ())) if flat[key] is not None]
    keys = [key for key in keys if key != "method" or config.task == "pretrain"]
    return ["| setting | value |", "|---|---|", *(f"| `{key}` | {flat[key]} |" for key in keys)]


def results(origin: Origin) -> list[str]:
    """The last held-out losses up to the step, and the numbers of results.json."""
    if not origin.trained or origin.workdir is None:
        return []
    rows: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for line in read_metrics(origin.workdir):
        if origin.step is None or line["step"] <= origin.step:
            losses |= {key: line[key] for key in ("held_out_loss", "best_constant_loss") if key in line}
    names = {"held_out_loss": "held-out loss", "best_constant_loss": "held-out loss of the best constant"}
    rows |= {names[key]: value for key, value in losses.items()}
    for name, entry in read_results(origin.workdir).items():
        where, at, split = name.rpartition("@")
        for key, value in entry.items() if measures(entry, origin.workdir, origin.step) else ():
            if isinstance(value, float) and key not in NO_RESULTS:
                rows[f"{key}, {last(where) + at + last(split)}"] = value
    table = [f"| {plain(name)} | {value:.4f} |" for name, value in rows.items() if value is not None]
    return ["| measure | value |", "|---|---|", *table] if table else []


def measures(entry: Mapping[str, Any], workdir: Path, step: int | None) -> bool:
    """Whether an entry of results.json is of a run's own weights; tasks that train nothing may have taken others."""
    if entry.get("task") in ("eval", "knn"):
        return Path(entry.get("init", "")).expanduser().resolve() == workdir.resolve()
    return entry.get("step") in (None, step)


def how_to_load(name: str, architecture: str, config: ConfigDict, processor: bool) -> list[str]:
    """Lines for transformers and for greenjax."""
    quoted, (height, width) = json.dumps(name, ensure_ascii=False), config.image_size
    kind = f"AutoModel{CLASSIFIER}" if architecture.endswith(CLASSIFIER) else "AutoModel"
    last_line = "print(model.config.id2label[int(outputs.logits.argmax())])"
    if kind == "AutoModel":
        kind = architecture if not architecture.endswith("Model") else kind
        last_line = "print(outputs.last_hidden_state.shape)" if kind == "AutoModel" else "print(outputs.keys())"
    shape = f"1, {config.model.in_channels}, {height}, {width}"
    names = f"AutoImageProcessor, {kind}" if processor else kind
    return [
        "```python",
        "from PIL import Image" if processor else "import torch",
        f"from transformers import {names}",
        "",
        f"place = {quoted}  # this folder, or OWNER/NAME on the hub",
        f"model = {kind}.from_pretrained(place).eval()",
        *(
            [
                "processor = AutoImageProcessor.from_pretrained(place)",
                'outputs = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))',
            ]
            if processor
            else [f"outputs = model(torch.zeros({shape}))  # an image: (pixels - mean) / deviation"]
        ),
        last_line,
        "```",
        "",
        "```python",
        "import greenjax",
        "",
        f"model = greenjax.load_pretrained({quoted})",
        'vectors, files = greenjax.embed(model, ["photo.jpg"])',
        "```",
    ]


def last(path: str) -> str:
    """The last component of a path or URL, on one line. Queries, fragments and users of URLs are left out: secrets."""
    if "://" in path:
        try:
            bare = re.split("[?#]", path)[0].rpartition("://")[2]  # behind the last scheme: fsspec chains them
            url = urlsplit(f"//{bare}")
            path = url.path.strip("/") or url.hostname or "a URL"
        except ValueError:
            path = "a URL"
    return one_line(Path(path.rstrip("/")).name or path)


def numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def plain(text: str) -> str:
    """A name from the user's data as text of Markdown, on one line and in one cell of a table; nothing in it links."""
    return re.sub(r"([\\\[\]|])", r"\\\1", one_line(text)).replace("<", "&lt;").replace("`", "'")


def code(text: str) -> str:
    """A name as code of Markdown."""
    return "`" + one_line(text).replace("`", "'") + "`"


def one_line(text: str) -> str:
    """The text without line breaks and characters that steer a terminal or a parser of YAML."""
    return "".join(filter(str.isprintable, " ".join(text.split())))
