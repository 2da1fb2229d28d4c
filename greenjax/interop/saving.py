"""Models into files: for a library, or the tensors of another file alone."""

import json
from pathlib import Path

import numpy as np

from greenjax import __version__
from greenjax.config.inherit import describe
from greenjax.errors import InputError
from greenjax.interop.card import Origin, model_card
from greenjax.interop.entries import of_classes, part_of
from greenjax.interop.files import WRITTEN, check_output, read_weights, to_array, write_tensors
from greenjax.interop.huggingface import Folder, image_processor, labels, write_folder
from greenjax.interop.layouts import MERGE_ORDERS, check_geometry, find_layout
from greenjax.interop.tensors import to_tensors
from greenjax.interop.weights import finite_weights, folded
from greenjax.models import Backbone
from greenjax.runtime.files import expanded


def save_torch(
    model: Backbone,
    path: str | Path,
    layout: str,
    *,
    merge_order: str = MERGE_ORDERS[0],
    encoder_only: bool = False,
    prefix: str = "",
    step: int | None = None,
    workdir: str | Path | None = None,
) -> list[str]:
    """Writes a model for PyTorch: *.safetensors, *.pth, or for "hf" a folder that from_pretrained opens.

    `prefix` goes before every name; the metadata has `step`. The model card of a folder tells the data and the
    results of the run in `workdir`, where the model comes from one. Returns, a line each, what was left out and what
    the library computes otherwise. Raises InputError where the library cannot hold the model, and writes nothing.
    """
    config = model.config
    found = find_layout(layout, config, merge_order)
    path = check_output(path, folder=found.folder is not None)
    notes = check_geometry(layout, found, config)
    weights = folded(finite_weights(model))
    tensors, left_out = to_tensors(weights, config, layout, merge_order, encoder_only=encoder_only)
    tensors = {prefix + name: value for name, value in tensors.items()}
    metadata = describe(config) | {"layout": layout, "greenjax_version": __version__}
    if "decoder" in left_out:
        metadata.pop("decoder", None)  # whose settings a pre-training from the file would take over
    metadata |= {} if step is None else {"step": str(step)}
    parts = set(map(part_of, weights)) - set(left_out)
    classes = model.classes if parts.intersection(map(part_of, filter(of_classes, weights))) else ()
    metadata |= {"classes": json.dumps(classes)} if classes else {}
    if path.suffix in WRITTEN or found.folder is None:
        write_tensors(path, tensors, metadata)
    else:
        described = found.folder(config, parts)
        described |= labels(classes, config.model.num_classes) if "head" in parts else {}
        processor, origin = image_processor(config), Origin(step, None if workdir is None else expanded(workdir))
        card = model_card(path.resolve().name, described, config, classes, origin, isinstance(processor, dict))
        notes += write_folder(path, tensors, metadata, Folder(described, processor, card))
    return ([f"left out: {', '.join(left_out)}"] if left_out else []) + notes


def extract(path: str | Path, output: str | Path, *, trust: bool = False) -> list[str]:
    """Writes every tensor of a file as safetensors or a plain state_dict, named KEY.NAME by its dictionary in the file.

    `trust` lets the file run code. Returns, a line each, the number of tensors and those that cannot be written. Raises
    InputError, and writes nothing, for a file that cannot be read, and where the output is there.
    """
    output = check_output(output)
    if output.exists():
        raise InputError(f"output {str(output)!r} is there: expected a new file")
    tensors: dict[str, np.ndarray] = {}
    lines = []
    for key, found in read_weights(path, trust=trust).containers.items():
        for name, value in found.items():
            whole = f"{key}.{name}" if key else name
            try:
                array = to_array(whole, value)
            except InputError as error:
                lines.append(f"left out: {error}")
                continue
            if array.dtype.kind in "fiub":
                tensors[whole] = array
            else:
                lines.append(f"left out: {whole} is {array.dtype}")
    if not tensors:
        raise InputError(f"weights {str(path)!r}: nothing in it can be written: {'; '.join(lines[:3])}")
    write_tensors(output, tensors, {})
    return [f"{len(tensors)} tensors", *lines]
