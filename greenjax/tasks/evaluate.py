"""Judging what was trained: a classifier on any sets of images, and frozen features by k-NN."""

from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.config.inherit import PLACE, recorded
from greenjax.data.augment import CentreView
from greenjax.data.labels import LabelledSource, Matched, check_classes, matched
from greenjax.data.loader import labelled_eval_batches
from greenjax.data.open import open_labelled, parse_split
from greenjax.data.overlap import images_in_both, warn_of_overlap
from greenjax.data.sources import SOURCES
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError, listed
from greenjax.evaluation.classify import Evaluation, accuracy, evaluate, reported_accuracies
from greenjax.evaluation.knn import knn_scores
from greenjax.evaluation.monitor import check_neighbours
from greenjax.evaluation.outputs import pooled_forward, source_features
from greenjax.evaluation.pictures.confusion import MOST_CLASSES, draw_confusion, draw_examples, most_confused
from greenjax.evaluation.results import write_predictions, write_results
from greenjax.interop.heads import classes_file, initial_head
from greenjax.interop.loading import initial_model
from greenjax.models import build
from greenjax.runtime.classes import Classes, output_names
from greenjax.runtime.console import say
from greenjax.runtime.files import unless_full
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import leads
from greenjax.training.sharding import make_mesh
from greenjax.training.summary import end_lines, say_lines, say_listing
from greenjax.training.together import holding_workdir, same_data, same_weights

MOST_BYTES = 200  # of a set's name in the names of files


class Judge:
    """A classifier's answers on labelled images: each image once, whatever the batch size and the devices."""

    def __init__(self, config: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh, undecodable: Undecodable | None = None):
        """Images that cannot be used are left out, and told to `undecodable`."""
        self.config, self.place = config, Placement(mesh)
        self.undecodable = Undecodable() if undecodable is None else undecodable
        self.forward = lambda params, images: nnx.merge(graphdef, params).forward(images)

    def evaluate(self, params: Any, source: LabelledSource, predictions: bool = False) -> Evaluation:
        own = self.place.own(self.config.data.batch_size)
        batches = labelled_eval_batches(self.config, source, own, self.undecodable)
        return evaluate(self.forward, params, batches, self.place, predictions=predictions)


class EvalSet(NamedTuple):
    """A set of images: its name in the results, and where it is."""

    name: str
    data: ConfigDict
    split: str


def eval_sets(config: ConfigDict) -> list[EvalSet]:
    """`data.eval_split`, then those of `data.eval_sets`: SPLIT, or NAME@SPLIT of another TFDS data set, or PATH@SPLIT.

    Raises InputError for two sets of one name.
    """
    texts = [config.data.eval_split, *(text.strip() for text in config.data.eval_sets.split(","))]
    sets, place = [], SOURCES[config.data.source].place or ("data.path",)
    for text in filter(None, texts):
        where, at, split = text.rpartition("@")
        other = {place[-1]: where, "data.per_class": 0} if at else {}
        sets.append(EvalSet(text, resolve(flatten(config) | other).data, split))
    names = [each.name for each in sets]
    if not sets:
        raise InputError("data.eval_split is '': expected the name of a split, for task 'eval'")
    if len(set(names)) < len(names):
        raise InputError(f"data.eval_sets is {config.data.eval_sets!r}: expected every set once")
    for one, other in combinations(names, 2):
        if in_file_names(one) == in_file_names(other):
            files = f"predictions_{in_file_names(one)}.csv and the pictures"
            raise InputError(
                f"data.eval_sets has {one!r} and {other!r}, which would both write {files}: judge them apart"
            )
    return sets


@holding_workdir
def evaluate_classifier(config: ConfigDict, workdir: Path) -> dict[str, Evaluation]:
    """Task "eval": the classifier of `config.init` on every set; results.json, pictures, on demand predictions."""
    if config.init == "none":
        raise InputError("init is 'none': expected a classifier's workdir or file, for task 'eval'")
    mesh = make_mesh(config)
    found_sets = []
    for each in eval_sets(config):
        say(f"listing the images of {each.name} ...")
        found_sets.append((each.name, open_labelled(each.data, each.split)))
        warn_of_training_images(config, each, found_sets[-1][1])
    same_data({f"images of {name}": source for name, source in found_sets})
    config, classes = with_known_classes(config, *found_sets[0])
    sets = {name: matched(source, classes, name, other_names(config, name)) for name, source in found_sets}
    for name, images in sets.items():
        check_classes(config, images.source)
        for line in images.lines(name):
            say(line)
    model, params = _initial(config, mesh)
    judge, found = Judge(config, nnx.graphdef(model), mesh), {}
    for name, images in sets.items():
        say(f"evaluating on {len(images.source):,} images of {name} ...")
        with jax.set_mesh(mesh):  # kernels want to know it: ops/fused_attention.py
            found[name] = judge.evaluate(params, images.source, predictions=True)
        report(config, workdir, name, found[name], images)
    say_lines(end_lines(workdir, "done"))
    return found


def warn_of_training_images(config: ConfigDict, each: EvalSet, source: LabelledSource) -> None:
    """One line where the run `config.init` was trained on images of a set, by the settings that it recorded."""
    there = recorded(config.init)
    split, data = there.get("data.split"), {f"data.{key}": value for key, value in each.data.items()}
    if not split or parse_split(split)[0] != parse_split(each.split)[0]:
        return
    if any(there.get(key) != data[key] for key in PLACE):
        return
    own = resolve(flatten(config) | data | {"data.split": split, "data.per_class": there.get("data.per_class", 0)})
    if common := images_in_both(open_labelled(own.data, split), source):
        found = f"{common:,} of the {len(source):,} images of {each.name}"
        logging.warning("%s are training images of init %r: results on them are those of training", found, config.init)


def with_known_classes(config: ConfigDict, name: str, source: LabelledSource) -> tuple[ConfigDict, Classes]:
    """The configuration with as many outputs as the head of `config.init`, and the classes of that head.

    Where nobody named them they are those of the set `name`, and a line says so. Raises InputError where the set has
    fewer or more of them than the head.
    """
    head = initial_head(config)
    count = config.model.num_classes or head.outputs or len(source.classes)
    config = resolve(flatten(config) | {"model.num_classes": count})
    if head.classes:
        return config, head.classes
    if len(source.classes) != count:
        what = f"init {config.init!r} does not name its {count} classes, and {name} has {len(source.classes)}"
        remedy = f"expected as many, or their names as a JSON list in {str(classes_file(config.init))!r}"
        raise InputError(f"{what}, {listed(source.classes)}: {remedy}")
    assumed = f"taken to be those of {name}, {listed(source.classes)}"
    say(f"init {config.init!r} does not name its classes: they are {assumed}")
    return config, source.classes


def other_names(config: ConfigDict, name: str) -> str:
    """What to do where the set `name` has the classes of `config.init` under names of its own."""
    where = f"as a JSON list in the order of the outputs into {str(classes_file(config.init))!r}"
    return f"; where they are the same under other names, write the names of {name} {where}"


@holding_workdir
def evaluate_knn(config: ConfigDict, workdir: Path) -> dict[int, dict[str, int | float]]:
    """Task "knn": the images of `data.eval_split` by their neighbours among those of `data.split`, for every k."""
    if not config.data.eval_split:
        raise InputError("data.eval_split is '': expected the name of a split, for task 'knn'")
    mesh = make_mesh(config)
    splits = (config.data.split, config.data.eval_split)
    say_listing(config)
    train, held_out = (open_labelled(config.data, split) for split in splits)
    warn_of_overlap(config.data, train, held_out)
    images = matched(held_out, train.classes, config.data.eval_split)
    for line in images.lines(config.data.eval_split):
        say(line)
    check_neighbours(config, len(train), config.data.split)
    same_data({f"images of {split}": source for split, source in zip(splits, (train, held_out))})
    model, params = _initial(config, mesh)
    say(f"computing the features of {len(train):,} and {len(images.source):,} images ...")
    pooled, place = pooled_forward(nnx.graphdef(model)), Placement(mesh)
    with jax.set_mesh(mesh):  # as above
        bank, queries = (source_features(config, pooled, params, source, place) for source in (train, images.source))
    check_neighbours(config, len(bank.labels), config.data.split)  # fewer where some cannot be decoded
    found = {}
    all_scores = knn_scores(
        *bank, queries.values, len(train.classes), k=config.knn.k, temperature=config.knn.temperature
    )
    for k, scores in all_scores.items():
        found[k] = accuracy(scores, queries.labels)
        about = dict(task="knn", init=config.init, bank=config.data.split, split=config.data.eval_split)
        numbers = dict(k=k, temperature=config.knn.temperature, bank_images=len(bank.labels))
        if leads():
            write_results(workdir, f"{config.data.eval_split} k={k}", about | numbers | found[k])
        say(f"{config.data.eval_split}: k-NN, k {k}: top-1 {found[k]['top1']:.4f}, {found[k]['images']:,} images")
    say_lines(end_lines(workdir, "done"))
    return found


def report(
    config: ConfigDict, workdir: Path, name: str, found: Evaluation, images: Matched, step: int | None = None
) -> None:
    """One entry of results.json, the confusion matrix and the most confused examples, and a line for the reader."""
    if not leads():
        return
    metrics, source = found.metrics, images.source
    accuracies = reported_accuracies(metrics, len(source.classes))
    say(
        f"{name}: {', '.join(f'{key[:3]}-{key[3:]} {value:.4f}' for key, value in accuracies.items())},"
        f" loss {metrics['loss']:.4f}, calibration error {metrics['ece']:.4f}, {metrics['images']:,} images"
    )
    about = dict(task=config.task, init=config.init, split=name) | ({} if step is None else dict(step=step))
    left_out = {"left_out": sum(images.left_out.values())} if images.left_out else {}
    write_results(workdir, name, about | metrics | left_out)
    plain = in_file_names(name)
    assert found.predictions is not None
    names = output_names(source.classes, len(found.confusion))
    if config.log.predictions:
        files = [source.name_of(int(index)) for index in found.predictions.image]
        write_predictions(workdir / f"predictions_{plain}.csv", found.predictions, files, names)
    with unless_full(f"pictures of {name}"):
        _draw(config, workdir, plain, found, source, names)


def in_file_names(name: str) -> str:
    """A set's name as it stands in names of files, the end of a long one: file systems allow 255 bytes."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return plain.encode()[-MOST_BYTES:].decode(errors="ignore").strip("_")


def _draw(
    config: ConfigDict, workdir: Path, plain: str, found: Evaluation, source: LabelledSource, names: Classes
) -> None:
    """The confusion matrix and the most confused examples; `plain` is the set's name in those of files."""
    assert found.predictions is not None
    if 2 <= len(found.confusion) <= MOST_CLASSES:
        draw_confusion(workdir / f"confusion_{plain}.png", found.confusion, names)
    worst, view = most_confused(found.predictions), CentreView.from_config(config)
    shown = [view(source[int(i)][0], int(i)) for i in worst.image]
    channels = config.model.in_channels
    images = np.stack(shown) if shown else np.zeros((0, *config.image_size, channels), np.uint8)
    draw_examples(workdir / f"mistakes_{plain}.png", images, worst, names)


def _initial(config: ConfigDict, mesh: Mesh) -> tuple[Any, Any]:
    """The model of `config.init` (none: a fresh one) and its weights, on every device.

    Raises InputError where its head is missing.
    """
    found = initial_model(config)
    model, lines = (build(config, config.seed), []) if found is None else (found[0], found[1].lines())
    if found is not None and config.task == "eval" and any(key.startswith("head/") for key in found[1].new):
        raise InputError(f"init is {config.init!r}, which has no head: expected a classifier, to be evaluated")
    for line in lines:
        say(f"  {line}")
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    same_weights(config.init, params)
    return model, Placement(mesh).everywhere(params)
