"""From a model and images to a file of outputs that a killed process goes on with: what embed and predict share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from greenjax.config import flatten
from greenjax.config.settings import READING
from greenjax.data.listing import listing
from greenjax.data.undecodable import FILE, Undecodable, on_one_line
from greenjax.errors import InputError
from greenjax.runtime.console import progress_bar, say
from greenjax.runtime.draft import Draft, drafting
from greenjax.runtime.files import replace_text
from greenjax.tasks.inference.formats import Outputs
from greenjax.tasks.inference.model import Forward, Model, outputs
from greenjax.training.together import weights_digest

FOLLOWED = ("image_size", "data.batch_size", "data.mean", "data.std", "data.scale", "data.eval_crop", *READING)
NONE_USED = "none of the {:,} images can be used: expected at least 1 (warnings name them)"


@contextmanager
def drafted(
    model: Model,
    forward: Forward,
    source: Any,
    files: Outputs,
    row: np.dtype,
    about: dict[str, Any],
    take: Callable[[np.ndarray], np.ndarray],
    overwrite: bool,
) -> Iterator[Draft]:
    """The draft with the outputs of all images, each a `row` that `take` makes of an output; the caller finishes it.

    Goes on where a killed process stopped, if all that the rows follow from is the same: weights, images, settings and
    `about`. Images that cannot be used have no row: warnings and a file beside the output name them.
    """
    head = len(files.format.head(row[0].base, 0, row[0].shape))
    with drafting(files.path, followed(model, source) | about, row, head, overwrite) as draft:
        undecodable = Undecodable(draft.folder, resuming=draft.resumed)
        if draft.resumed:
            say(f"going on after {min(len(source), draft.batches * model.config.data.batch_size):,} images ...")
        fill(draft, model, forward, source, take, undecodable)
        if not draft.rows:
            raise InputError(NONE_USED.format(len(source)))
        yield draft
        tell(draft, len(source), files)


def followed(model: Model, source: Any) -> dict[str, Any]:
    """What rows follow from: two commands with equal values write equal rows."""
    settings = flatten(model.config)
    keys = [key for key in settings if key in FOLLOWED or key.startswith("model.")]
    images = {"images": len(source), "images with the digest": listing(source)}
    return images | {"weights with the digest": weights_digest(model.params)} | {key: settings[key] for key in keys}


def fill(
    draft: Draft,
    model: Model,
    forward: Forward,
    source: Any,
    take: Callable[[np.ndarray], np.ndarray],
    undecodable: Undecodable,
) -> None:
    """Appends a row for each image that the draft does not have yet."""
    size = model.config.data.batch_size
    done = min(len(source), draft.batches * size)
    with jax.set_mesh(model.mesh), progress_bar("images", len(source), done) as advance:
        for numbers, output in outputs(model, forward, source, draft.batches, undecodable):
            draft.append(take(output), [on_one_line(source.name_of(int(number))) for number in numbers])
            done, before = min(len(source), draft.batches * size), done
            advance(done - before)


def tell(draft: Draft, images: int, files: Outputs) -> None:
    """Says what was written, and lists the images that cannot be used beside it."""
    files.left_out.unlink(missing_ok=True)  # of an earlier output
    say(f"{files.path}: {draft.rows:,} of {images:,} images")
    if draft.rows < images:
        lines = (draft.folder / FILE).read_text(encoding="utf-8").splitlines(keepends=True)
        replace_text(files.left_out, "".join(sorted(lines)))  # threads met the images in any order
        say(f"{images - draft.rows:,} cannot be used and are left out: {files.left_out} names them")
