"""The weights that a training starts from where `config.init` names some."""

from ml_collections import ConfigDict

from greenjax.errors import InputError, listed
from greenjax.interop.heads import initial_head
from greenjax.interop.loading import initial_model
from greenjax.runtime.classes import Classes, same
from greenjax.runtime.console import say
from greenjax.training.state import Params, on_the_cpu, parameters
from greenjax.training.together import same_weights


def given_weights(config: ConfigDict, classes: Classes = ()) -> Params | None:
    """The weights of `config.init`, and a line for each part that it lacks; None for "none".

    Raises InputError where they do not fit, or where their head is one for other classes.
    """
    before = initial_head(config).classes if classes and not config.new_head else ()
    if before and not same(before, classes):
        found = f"has a head for the classes {listed(before)}, the data have {listed(classes)}"
        raise InputError(f"init {config.init!r} {found}: --config.new_head starts a new one")
    with on_the_cpu():
        found = initial_model(config)
    if found is None:
        return None
    model, report = found
    say(f"starting from {config.init}")
    for line in report.lines():
        say(f"  {line}")
    params = parameters(model)
    same_weights(config.init, params)
    return params
