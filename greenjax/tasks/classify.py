"""Training a classifier on labels, the whole of it or its head on a frozen encoder: the story, top to bottom."""

from pathlib import Path
from time import monotonic

import jax
from ml_collections import ConfigDict

from greenjax.config import flatten, resolve
from greenjax.data.labels import LabelledSource, Matched, check_classes, matched
from greenjax.data.listing import listing
from greenjax.data.loader import blank_labelled_batch, labelled_batches
from greenjax.data.open import open_labelled
from greenjax.data.overlap import warn_of_overlap
from greenjax.data.undecodable import Undecodable
from greenjax.errors import InputError, listed
from greenjax.evaluation.classify import Evaluation, reported_accuracies
from greenjax.evaluation.pictures.curve import draw_accuracy_curve
from greenjax.interop.heads import initial_head
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.classes import Classes, refuse_other_classes, same, write_classes
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.console import say
from greenjax.runtime.files import read_metrics, unless_full
from greenjax.runtime.placement import Placement
from greenjax.runtime.processes import leads
from greenjax.tasks.evaluate import Judge, report
from greenjax.training.guard import Rollbacks
from greenjax.training.loop import due, train
from greenjax.training.metrics import MetricsWriter, record_config
from greenjax.training.optim import learning_rate, make_optimizer, run_length
from greenjax.training.sharding import make_mesh
from greenjax.training.start import begin
from greenjax.training.state import State, model_graph
from greenjax.training.step import make_classifier_step
from greenjax.training.summary import end_lines, run_time, say_lines, say_listing, start_lines
from greenjax.training.together import holding_workdir, same_start


@holding_workdir
def finetune(config: ConfigDict, workdir: Path) -> State:
    """Trains a resolved configuration, task "finetune" or "linear", to its last step, and returns the state.

    The weights come from `config.init`, or are fresh: the same recipe from scratch. The head has an output for each
    class of the training split, unless `model.num_classes` says how many. Leaves metrics, checkpoints, classes.json,
    results.json and pictures of the mistakes on `data.eval_split` in `workdir`. Raises InputError for a configuration
    that cannot run here, before anything expensive starts, and DivergedError as pre-training does.
    """
    began = monotonic()
    mesh = make_mesh(config)
    say_listing(config)
    source = open_labelled(config.data, config.data.split)
    config = with_head(config, source)
    check_classes(config, source)
    held_out = held_out_images(config, source)
    total, warmup = run_length(config, len(source))

    checkpointer = Checkpointer(workdir, config.log.keep)
    last = checkpointer.latest_intact_step()
    if last is None:
        check_head(config, source.classes)
    else:
        refuse_other_classes(workdir, source.classes)
    start = last or 0
    sources = {"training images": source, "held-out images": held_out and held_out.source}
    same_start(last, start + Rollbacks(workdir).skipped(start), sources)
    record_config(workdir, config, len(source), start > 0, listing(source))
    if leads():
        write_classes(workdir, source.classes)
    undecodable = Undecodable(workdir, resuming=start > 0, writes=leads())

    graphdef, tx = model_graph(config), make_optimizer(config)
    step = make_classifier_step(graphdef, tx, learning_rate(config, total, warmup), config, mesh)
    update = BackgroundJit(step)
    state = begin(config, mesh, checkpointer, total, update, blank_labelled_batch(config))
    images = {config.data.split: len(source)}
    images |= {config.data.eval_split: len(held_out.source)} if held_out is not None else {}
    say_lines(start_lines(config, workdir, mesh, state, images, total, warmup, len(source.classes)))
    judge, own = Judge(config, graphdef, mesh, undecodable), Placement(mesh).own(config.data.batch_size)
    judged: dict[int, Evaluation] = {}

    def watch(step: int, state: State, writer: MetricsWriter) -> None:
        """Accuracy on the held-out split; of the averaged weights where there are any."""
        if held_out is not None and due(step, config.log.eval_every, total):
            writer.phase("measuring the accuracy on held-out images")
            found = judge.evaluate(weights(state), held_out.source, predictions=step == total)
            judged[step] = found
            numbers = reported_accuracies(found.metrics, len(source.classes)) | {"loss": found.metrics["loss"]}
            writer.write(step, {f"eval_{name}": value for name, value in numbers.items()})

    state = train(
        config,
        workdir,
        mesh,
        state,
        total,
        warmup=warmup,
        update=update,
        batches=lambda position: labelled_batches(config, source, position, own, undecodable),
        watch=watch,
        watch_every=(config.log.eval_every,),
        extra=lambda position: {"undecodable": len(undecodable)},
    )
    if leads():
        with unless_full("accuracy.png"):
            draw_accuracy_curve(workdir / "accuracy.png", read_metrics(workdir))
    if held_out is not None:
        # A run that was finished before has not been judged in this process.
        with jax.set_mesh(mesh):  # kernels want to know it: ops/fused_attention.py
            found = judged.get(total) or judge.evaluate(weights(state), held_out.source, predictions=True)
        report(config, workdir, config.data.eval_split, found, held_out, step=total)
    say_lines(end_lines(workdir, run_time(start, total, monotonic() - began)))
    return state


def with_head(config: ConfigDict, source: LabelledSource) -> ConfigDict:
    """The configuration with as many outputs as the data has classes, where it does not say how many."""
    if config.model.num_classes:
        return config
    return resolve(flatten(config) | {"model.num_classes": len(source.classes)})


def held_out_images(config: ConfigDict, train: LabelledSource) -> Matched | None:
    """The images of `data.eval_split` under the labels of the training; says which classes only one of them has."""
    if not config.data.eval_split:
        return None
    held_out = open_labelled(config.data, config.data.eval_split)
    warn_of_overlap(config.data, train, held_out)
    found = matched(held_out, train.classes, config.data.eval_split)
    for line in found.lines(config.data.eval_split):
        say(line)
    return found


def check_head(config: ConfigDict, classes: Classes) -> None:
    """Raises InputError where the head that `config.init` has is one for other classes."""
    before = () if config.new_head else initial_head(config).classes
    if before and not same(before, classes):
        found = f"has a head for the classes {listed(before)}, the data have {listed(classes)}"
        raise InputError(f"init {config.init!r} {found}: --config.new_head starts a new one")


def weights(state: State) -> dict:
    """What is judged: the moving average of the weights where there is one."""
    return state.params if state.ema is None else state.ema
