"""Judging a classifier on any sets of images: the story, top to bottom."""

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.config.inherit import PLACE, recorded
from greenjax.config.values import same_value
from greenjax.data.labels import LabelledSource, check_classes, matched
from greenjax.data.open import open_labelled, parse_split
from greenjax.data.overlap import images_in_both
from greenjax.data.sources import SOURCES
from greenjax.errors import InputError, listed
from greenjax.evaluation.classify import Evaluation
from greenjax.interop.heads import classes_file, initial_head
from greenjax.interop.loading import initial_model
from greenjax.runtime.classes import Classes
from greenjax.runtime.console import say
from greenjax.runtime.placement import Placement
from greenjax.tasks.report import Judge, in_file_names, report
from greenjax.tasks.summary import end_lines
from greenjax.training.sharding import make_mesh
from greenjax.training.state import Params, drawn_parameters, model_graph, parameters
from greenjax.training.together import holding_workdir, same_data, same_weights


@holding_workdir
def evaluate_classifier(config: ConfigDict, workdir: Path) -> dict[str, Evaluation]:
    """Task "eval": the classifier of `config.init` on every set; results.json, pictures, on demand predictions."""
    if config.init == "none":
        raise InputError("init is 'none': expected a classifier's workdir or file, for task 'eval'")
    mesh = make_mesh(config)
    sources = {}
    for each in eval_sets(config):
        say(f"listing the images of {each.name} ...")
        sources[each.name] = open_labelled(each.data, each.split)
        warn_of_training_images(config, each, sources[each.name])
    same_data({f"images of {name}": source for name, source in sources.items()})
    config, classes = with_known_classes(config, *next(iter(sources.items())))
    sets = {name: matched(source, classes, name, other_names(config, name)) for name, source in sources.items()}
    for name, images in sets.items():
        check_classes(config, images.source)
        say(*images.lines(name))
    graphdef, params = given_model(config, mesh)
    judge, found = Judge(config, graphdef, mesh), {}
    for name, images in sets.items():
        say(f"evaluating on {len(images.source):,} images of {name} ...")
        found[name] = judge.evaluate(params, images.source, predictions=True)
        report(config, workdir, name, found[name], images)
    say(*end_lines(workdir, "done"))
    return found


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


def warn_of_training_images(config: ConfigDict, each: EvalSet, source: LabelledSource) -> None:
    """Warns where the run `config.init` was trained on images of a set, by the settings that it recorded."""
    there = recorded(config.init)
    split, data = there.get("data.split"), {f"data.{key}": value for key, value in each.data.items()}
    if not split or parse_split(split)[0] != parse_split(each.split)[0]:
        return
    if not all(same_value(there.get(key), data[key]) for key in PLACE):
        return
    own = resolve(flatten(config) | data | {"data.split": split, "data.per_class": there.get("data.per_class", 0)})
    if common := images_in_both(open_labelled(own.data, split), source):
        found = f"{common:,} of the {len(source):,} images of {each.name}"
        logging.warning("%s are training images of init %r: results on them are those of training", found, config.init)


def with_known_classes(config: ConfigDict, name: str, source: LabelledSource) -> tuple[ConfigDict, Classes]:
    """The configuration with as many outputs as the head of `config.init`, and the classes of that head.

    A head without names takes the classes of the set `name`, and a line says so. Raises InputError where the set has
    fewer or more of them than the head.
    """
    head = initial_head(config)
    count = config.model.num_classes or head.outputs or len(source.classes)
    config = resolve(flatten(config) | {"model.num_classes": count})
    return config, head.classes or assumed_classes(config.init, count, name, source.classes)


def assumed_classes(init: str, count: int | None, name: str, classes: Classes) -> Classes:
    """Those of the set `name` for a head of `count` classes without names; a line says so.

    Raises InputError where the set has fewer or more of them than the head.
    """
    if len(classes) != count:
        what = f"init {init!r} does not name its {count} classes, and {name} has {len(classes)}"
        remedy = f"expected as many, or their names as a JSON list in {str(classes_file(init))!r}"
        raise InputError(f"{what}, {listed(classes)}: {remedy}")
    say(f"init {init!r} does not name its classes: they are taken to be those of {name}, {listed(classes)}")
    return classes


def other_names(config: ConfigDict, name: str) -> str:
    """The remedy where the set `name` has the classes of `config.init` under names of its own."""
    where = f"as a JSON list in the order of the outputs into {str(classes_file(config.init))!r}"
    return f"; where they are the same under other names, write the names of {name} {where}"


def given_model(config: ConfigDict, mesh: Mesh, step: int | None = None) -> tuple[nnx.GraphDef, Params]:
    """The model of `config.init` (none: a fresh one), its weights on every device; `step` as in `initial_model`.

    Raises InputError for task "eval" where the head is missing.
    """
    found = initial_model(config, step)
    if found is None:
        graphdef, params = model_graph(config), drawn_parameters(config)
    else:
        model, loaded = found
        model.floats_are_raw = True  # the images come from files
        graphdef, params = nnx.graphdef(model), parameters(model)
        if config.task == "eval" and any(key.startswith("head/") for key in loaded.new):
            raise InputError(f"init is {config.init!r}, which has no head: expected a classifier, to be evaluated")
        say(*[f"  {line}" for line in loaded.lines()])
    params = jax.tree.map(np.asarray, params)
    same_weights(config.init, params)
    return graphdef, Placement(mesh).everywhere(params)
