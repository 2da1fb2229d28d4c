"""Judging frozen features by k-NN: the story, top to bottom."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from greenjax.data.labels import check_several, matched
from greenjax.data.open import open_labelled
from greenjax.data.overlap import warn_of_overlap
from greenjax.errors import InputError
from greenjax.evaluation.classify import accuracy
from greenjax.evaluation.knn import knn_scores
from greenjax.evaluation.monitor import check_neighbours
from greenjax.evaluation.outputs import pooled_forward, source_features
from greenjax.evaluation.results import write_results
from greenjax.runtime.console import say
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import leads
from greenjax.tasks.evaluate import given_model
from greenjax.tasks.summary import end_lines, say_listing
from greenjax.training.sharding import make_mesh
from greenjax.training.together import holding_workdir, same_data


@holding_workdir
def evaluate_knn(config: ConfigDict, workdir: Path) -> dict[int, dict[str, int | float]]:
    """Task "knn": the images of `data.eval_split` by their neighbours among those of `data.split`, for every k."""
    split, eval_split = config.data.split, config.data.eval_split
    if not eval_split:
        raise InputError("data.eval_split is '': expected the name of a split, for task 'knn'")
    mesh = make_mesh(config)
    say_listing(config)
    train, held_out = open_labelled(config.data, split), open_labelled(config.data, eval_split)
    warn_of_overlap(config.data, train, held_out)
    check_several(train.classes, f"split {split!r}")
    images = matched(held_out, train.classes, eval_split)
    say(*images.lines(eval_split))
    check_neighbours(config, len(train), split)
    same_data({f"images of {split}": train, f"images of {eval_split}": held_out})
    graphdef, params = given_model(config, mesh)
    say(f"computing the features of {len(train):,} and {len(images.source):,} images ...")
    pooled, place = pooled_forward(graphdef), Placement(mesh)
    with jax.set_mesh(mesh):  # for kernels: ops/fused_attention.py
        bank, queries = (source_features(config, pooled, params, source, place) for source in (train, images.source))
    check_neighbours(config, len(bank.labels), split)  # fewer where some cannot be decoded
    found, temperature = {}, config.knn.temperature
    scored = knn_scores(*bank, queries.values, len(train.classes), k=config.knn.k, temperature=temperature)
    for k, scores in scored.items():
        found[k] = accuracy(scores, queries.labels)
        about = dict(task="knn", init=config.init, bank=split, split=eval_split)
        numbers = dict(k=k, temperature=temperature, bank_images=len(bank.labels))
        if leads():
            write_results(workdir, f"{eval_split} k={k}", about | numbers | found[k] | images.counts)
        say(f"{eval_split}: k-NN, k {k}: top-1 {found[k]['top1']:.4f}, {found[k]['images']:,} images")
    say(*end_lines(workdir, "done"))
    return found
