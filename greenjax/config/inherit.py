"""The settings that weights bring: a config takes them from the workdir or file that `config.init` names.

Weights fit a model of their own size only, so the model's size is that of `init`, whatever a config file says. The
command line, or the overrides of `load_config`, go before `init`. Images are read as those of `init`, unless a key of
the config file that says how has another value than the default. An evaluation takes the images of `init`, too, unless
it names images of its own.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from greenjax.backbones.geometry import token_grid
from greenjax.backbones.registry import ARCHITECTURES, SIZE_SETTINGS, family_of
from greenjax.config.resolve import checked, flatten, resolve
from greenjax.config.settings import KEYS, READING
from greenjax.config.transformers import described
from greenjax.config.values import same_value
from greenjax.data.sources import SOURCES
from greenjax.errors import refuse
from greenjax.runtime.files import expanded, is_run, read_json, read_metadata

Settings = dict[str, Any]

FREE = tuple(part for part in SIZE_SETTINGS if KEYS[f"model.{part}"].free)  # weights fit others, too
OWN = tuple(f"model.{part}" for part in FREE if KEYS[f"model.{part}"].own)
SIZES = (*(part for part in SIZE_SETTINGS if part not in FREE), "in_channels")
FIXED = ("model.name", *(f"model.{part}" for part in SIZES))  # weights fit no others
ENCODER = (*FIXED, *(f"model.{part}" for part in FREE))
COLOURS = ("data.mean", "data.std")
MODEL = (*ENCODER, *COLOURS, "data.scale")
DECODER = tuple(key for key in KEYS if key.startswith("decoder."))
MASKS = {"mask_ratio": "mask.ratio", "mask_block": "mask.block"}  # by their names in a file
PLACE = ("data.source", "data.path", "data.name")


def inherit(settings: Settings, given: Collection[str]) -> tuple[Settings, str]:
    """Flat settings that take over settings of the weights of `init`, and a line that says which, or "".

    `given` are the keys that the user set beside the config file. Raises InputError where one of them cannot be.
    """
    init, task = checked("init", settings.get("init", "none")), settings.get("task", "pretrain")
    there = recorded(init)
    if "model.name" not in there:
        return settings, ""
    given = {*given, *COLOURS} if "data.statistics" in given else given  # the file has both
    for key in FIXED:
        if key in given and not same_value(_unset(settings[key]), there.get(key)):
            found = "none" if there.get(key) is None else repr(there[key])
            refuse(settings, key, f"{found}, as the weights of init {init!r} have it")
    wanted = {key: there.get(key) for key in MODEL if key in there or key not in COLOURS}
    wanted["data.statistics"] = ""  # of other images than those of the weights
    family = family_of(there["model.name"])
    own = [key for key in OWN if key.removeprefix("model.") in family.settings and settings.get(key) is not None]
    # A file or a folder of a decoder names neither task nor method; a run has these keys whatever they are.
    same = settings.get("method", "green") == there.get("method", "green") and there.get("task", task) == task
    if task == "pretrain" and same and "decoder.dim" in there:
        wanted |= {key: there.get(key, KEYS[key].default) for key in DECODER}  # the run may be older than a key
        own = [key for key in own if key != f"model.{family.unpooled_by}"]  # the decoder fits no other
    if task == "eval" and there.get("task") == "detect":
        # The file's batch is one of classifiers: as many images of a detector do not fit into memory.
        batch = () if "data.batch_size" in given else ("data.batch_size", "optim.accumulation")
        wanted |= {key: there[key] for key in there if key.startswith("detect.") or key in batch}
    keys = [*READING] if all(key in given or _is_default(settings, key) for key in READING) else []
    if task in ("eval", "knn"):
        keys += ["image_size", "data.eval_crop", "model.border", *(["model.num_classes"] if task == "eval" else [])]
        keys += _images(settings, given, there)
    wanted |= {key: there[key] for key in keys if key in there}
    dtype = (settings | {key: value for key, value in wanted.items() if key not in given}).get("data.dtype", "uint8")
    # Files older than the type of their images have a scale for others than 8 bits alone.
    if there.get("data.dtype", dtype if there.get("data.scale") else "uint8") != dtype:
        del wanted["data.scale"]  # of other images
    wanted = {key: value for key, value in wanted.items() if key not in (*given, *own)}
    wanted |= {key: value for key, value in kept(there, settings | wanted).items() if key not in given}
    changed = {key: value for key, value in wanted.items() if not same_value(filled(settings, key), value)}
    named = [f"{key}={value!r}" for key, value in changed.items() if not _follows(key, value, wanted)]
    line = f"settings of init {init!r}: {', '.join(named)}" if named else ""
    size, before = settings.get("image_size"), there.get("image_size")
    if task in ("finetune", "linear") and "image_size" not in given and before and not same_value(size, before):
        line = f"{line or f'init {init!r}'}; image_size is {size!r}, and was {before!r} there"
    return settings | wanted, line


def kept(there: Settings, here: Settings) -> Settings:
    """The settings that the family keeps from its weights, where the model here would compute with others.

    `there` and `here` are flat settings of the model of the weights and of one that takes them.
    """
    parts = family_of(there["model.name"]).kept
    values = {f"model.{part}": (of(*_model(there)), of(*_model(here))) for part, of in parts.items()}
    return {key: trained for key, (trained, other) in values.items() if trained != other}


def _model(settings: Settings) -> tuple[ConfigDict, Any]:
    """The section model, resolved, and its grids."""
    keys = ("image_size", "model.border", *ENCODER)
    model = {key: settings[key] for key in keys if settings.get(key) is not None}
    config = resolve(model | {"task": "knn", "data.source": "python", "data.mean": (0.5,), "data.std": (0.5,)})
    return config.model, token_grid(config)


def recorded(init: str) -> Settings:
    """The flat settings that a workdir, a file or a folder keeps beside its weights; {} where it does not say them.

    Raises InputError for a model of transformers that greenjax has not.
    """
    if init == "none":
        return {}
    path = expanded(init)
    exported = path / "model.safetensors"  # beside a config.json of transformers
    file = exported if exported.is_file() and not is_run(path) else path
    if file.suffix == ".safetensors" and file.is_file():
        settings = _described(metadata) if (metadata := read_metadata(file)) else {}
        if settings or file == path:
            return settings
    config = path / "config.json"
    if not config.is_file():
        return {}
    found = read_json(config, dict, "expected the settings of a run, or of transformers")
    return flatten(found) if isinstance(found.get("model"), dict) else described(path, found).settings


def describe(config: ConfigDict) -> dict[str, str]:
    """The metadata that a file of weights has of its model."""
    model = {key: value for key, value in config.model.to_dict().items() if value is not None}
    more = {"scale": json.dumps(config.data.scale)} if config.data.scale else {}
    if config.task == "pretrain":
        more |= {"decoder": json.dumps(config.decoder.to_dict())} if config.method == "green" else {}
        more |= {name: json.dumps(config.mask[key.removeprefix("mask.")]) for name, key in MASKS.items()}
    more |= {"detect": json.dumps(config.detect.to_dict())} if config.task == "detect" else {}
    reading = {key.removeprefix("data."): config.data[key.removeprefix("data.")] for key in READING}
    return more | {
        "reading": json.dumps(reading),
        "architecture": config.model.name,
        "window": str(config.model.window),
        "image_size": "x".join(map(str, config.image_size)),
        "mean": json.dumps(config.data.mean),
        "std": json.dumps(config.data.std),
        "crop_pct": str(config.data.eval_crop),  # timm's name for it, as the next
        "interpolation": "bicubic",
        "model": json.dumps(model),
    }


def _described(metadata: Mapping[str, str]) -> Settings:
    """The flat settings in the metadata of a file of greenjax."""
    sections = {"model": "model", "decoder": "decoder", "detect": "detect", "reading": "data"}
    parts = {ours: json.loads(metadata[section]) for section, ours in sections.items() if section in metadata}
    found = {f"{section}.{key}": value for section, values in parts.items() for key, value in values.items()}
    keys = {"mean": "data.mean", "std": "data.std", "scale": "data.scale", "crop_pct": "data.eval_crop"}
    keys |= MASKS
    found |= {ours: json.loads(metadata[key]) for key, ours in keys.items() if key in metadata}
    found |= {"task": "detect"} if "detect" in metadata else {}
    return found | {"image_size": tuple(map(int, metadata["image_size"].split("x")))}


def differences(metadata: Mapping[str, str], config: ConfigDict) -> list[str]:
    """How the model in a file's metadata differs from the configured one, in settings that its weights fix."""
    if "model" not in metadata:
        return []
    there, here = json.loads(metadata["model"]), json.loads(describe(config)["model"])
    # Arrays that can be resized tell their window; most other weights fit every window, and mean another function.
    family = family_of(config.model.name)
    fixed = SIZES if family.resizing or family.any_window else (*SIZES, "window")
    pairs = {part: (there.get(part), here.get(part)) for part in fixed}
    return [f"model.{part} is {one} in the file, {other} here" for part, (one, other) in pairs.items() if one != other]


def _images(settings: Settings, given: Collection[str], there: Settings) -> tuple[str, ...]:
    """The keys by which an evaluation takes the images of `init`: none where the config names images of its own."""
    own = [key for key in PLACE if key not in given and not _is_default(settings, key)]
    if own or ("data.source" in given and settings["data.source"] != there.get("data.source")):
        return ()
    source = SOURCES.get(there.get("data.source", ""))
    taken = ("data.source", *(source.place if source else ()), "data.split", "data.eval_split")
    return tuple(key for key in taken if _is_default(settings, key))


def _is_default(settings: Settings, key: str) -> bool:
    """Whether a config leaves a key as it is; one in JSON or YAML says only some of them."""
    return same_value(settings.get(key, KEYS[key].default), KEYS[key].default)


def _unset(value: Any) -> Any:
    """0, or zeros, unset a key."""
    return value if (any(value) if isinstance(value, list | tuple) else value or value is False) else None


def filled(settings: Settings, key: str) -> Any:
    """A setting, or the published one of the model's name where it is not given."""
    section, _, part = key.rpartition(".")
    value = settings.get(key)
    if value is None and section == "model":
        return ARCHITECTURES.get(settings.get("model.name", ""), {}).get(part)
    return value


def _follows(key: str, value: Any, wanted: Settings) -> bool:
    """Whether a setting of the model follows from the model's name."""
    part = key.removeprefix("model.")
    published = ARCHITECTURES.get(wanted.get("model.name", ""), {})
    return key != "model.name" and key.startswith("model.") and same_value(published.get(part), value)
