"""Where a run starts: fresh weights, those that `config.init` names, or a workdir made of converted ones.

Meanwhile its update is compiled.
"""

import json
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from greenjax.errors import InputError
from greenjax.interop.loading import initial_model
from greenjax.models import Backbone
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.classes import write_classes
from greenjax.runtime.compile import BackgroundJit
from greenjax.runtime.console import say
from greenjax.runtime.files import replace_text
from greenjax.runtime.lock import held
from greenjax.training.sharding import batch_shapes, make_mesh
from greenjax.training.state import State, abstract_state, init_state, on_the_cpu
from greenjax.training.together import same_weights


def begin(
    config: ConfigDict,
    mesh: Mesh,
    checkpointer: Checkpointer,
    total: int,
    update: BackgroundJit,
    batch: Any,
) -> State:
    """The state to go on from; meanwhile the update is compiled, for batches like this whole one.

    The state is that of the last checkpoint, on its devices; where there is none, the one before the first step. Raises
    InputError where the weights that `config.init` names do not fit.
    """
    last = checkpointer.latest_intact_step()
    given = given_weights(config) if last is None else None  # before anything is compiled: they may be wrong
    shapes = abstract_state(config, mesh)
    if (last or 0) < total:
        folder = jax.config.values["jax_compilation_cache_dir"]
        kept = f"; later starts find it in {folder}" if folder else ""
        say(f"compiling the update in a thread (minutes for a large model{kept}) ...")
        update.start(shapes, batch_shapes(batch, mesh))
    if last is None:
        if given is None:
            say("drawing the first weights ...")
        return init_state(config, mesh, given)
    if last:
        say(f"going on at step {last} of {total}" if last < total else f"finished: {total} steps were done before")
    return checkpointer.restore(shapes, last)


def given_weights(config: ConfigDict) -> Any:
    """Those that `config.init` names; says what they did not have. None: a run draws its own."""
    with on_the_cpu():
        found = initial_model(config)
    if found is None:
        return None
    model, report = found
    say(f"starting from {config.init}")
    for line in report.lines():
        say(f"  {line}")
    params = _params(model)
    same_weights(config.init, params)
    return params


def check_new(workdir: Path) -> None:
    """Raises InputError where a run stands already."""
    if steps := Checkpointer(workdir).steps():
        raise InputError(f"workdir {str(workdir)!r} has checkpoints of steps {steps}: expected a new folder")


def write_start(workdir: Path, model: Backbone, config: ConfigDict) -> None:
    """Makes a workdir whose checkpoint of step 0 holds the weights of a model: a run there begins with them."""
    mesh = make_mesh(config)
    with held(workdir, "--workdir"), Checkpointer(workdir) as checkpointer:
        check_new(workdir)
        replace_text(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        if model.classes:
            write_classes(workdir, model.classes)
        checkpointer.save(0, init_state(config, mesh, _params(model)))
        checkpointer.wait()


def _params(model: Backbone) -> dict:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
