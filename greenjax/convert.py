"""Weights to PyTorch and back, and models to ONNX.

    greenjax convert to-torch   --workdir DIR [--step N] --layout L --output FILE.safetensors|.pth
    greenjax convert to-onnx    --model RUN [--outputs logits,features,maps] --output FILE.onnx
    greenjax convert from-torch --config NAME --layout L --input FILE --workdir DIR [--set KEY=VALUE ...]
    greenjax convert extract    --input FILE --output FILE.safetensors|.pth [--trust]

`python -m greenjax.convert` does the same.

docs/interop.md has three lines for each library, docs/onnx.md is about ONNX.
"""

import argparse
import logging
import shlex
import sys

from greenjax.config import flags, flatten, resolve
from greenjax.errors import InputError, RunError
from greenjax.interop.layouts import MERGE_ORDERS, RESIZE_METHODS, layout_names
from greenjax.runtime.cache import keep_compiled
from greenjax.runtime.console import say, set_up
from greenjax.runtime.files import expanded


def main(argv: list[str]) -> None:
    set_up()
    logging.getLogger("jax").setLevel(logging.ERROR)
    parser = make_parser(flags.program(argv, "greenjax.convert"))
    arguments, rest = parser.parse_known_args(argv[1:])
    if rest and arguments.command != "from-torch":
        found = flags.flag_hint(arguments.parser, rest[0], settings=False)
        parser.error(f"argument {rest[0]!r} is not understood: {found}")
    keep_compiled()
    try:
        arguments.run(arguments, rest)
    except (InputError, RunError) as error:
        sys.exit(f"{parser.name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.name}: stopped; the same command begins anew")


def make_parser(prog: str = "python -m greenjax.convert") -> flags.Parser:
    parser = flags.Parser(prog, __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("to-torch", help="a checkpoint -> a file for PyTorch")
    out.add_argument("--workdir", required=True, help="the run's folder")
    out.add_argument("--step", type=int, help="a checkpoint's step; default: the latest")
    out.add_argument("--output", required=True, help="*.safetensors or *.pth; for hf a folder, too")
    out.add_argument("--encoder-only", action="store_true", help="without the decoder or head that the layout has")
    out.add_argument("--rgb", action="store_true", help="a classifier of grey images as one that takes RGB")
    out.add_argument("--prefix", default="", help="before every name, such as 'backbone.'")
    onnx = commands.add_parser("to-onnx", help="a model -> a file for onnxruntime and other runtimes")
    onnx.add_argument("--model", required=True, metavar="RUN", help="a run's workdir, or a file or folder of weights")
    onnx.add_argument("--step", type=int, help="a checkpoint's step; default: the latest")
    onnx.add_argument("--output", required=True, help="*.onnx")
    onnx.add_argument("--outputs", default="", help="some of logits,features,maps,pyramid; docs/onnx.md")
    onnx.add_argument("--overwrite", action="store_true", help="replaces a file that is there")
    into = commands.add_parser("from-torch", help="a file of PyTorch -> the workdir of a run that starts from it")
    into.add_argument("--input", required=True, help="the file, or a folder of transformers")
    into.add_argument("--workdir", required=True, help="a folder without checkpoints")
    where = "the dictionary in the file that holds the weights, such as state_dict_ema; default: found"
    into.add_argument("--key", help=where)
    into.add_argument("--prefix", help="the beginning of their names in the file, such as student.; default: found")
    into.add_argument("--new-head", action="store_true", help="leave a classifier's head as initialised")
    take = commands.add_parser("extract", help="the tensors of a file that holds more -> a file of tensors alone")
    take.add_argument("--input", required=True, help="the file")
    take.add_argument("--output", required=True, help="*.safetensors or *.pth, a new file")
    take.add_argument("--trust", action="store_true", help="let the file run code: only for files that you trust")
    for command, run in ((out, to_torch), (onnx, to_onnx), (into, from_torch), (take, extract)):
        command.set_defaults(parser=command, run=run)
    for command in (out, onnx):
        command.add_argument("--image-size", help="pixels, N or HEIGHT,WIDTH: buffers and bias tables for such images")
    for command in (out, into):
        command.add_argument("--layout", required=True, choices=layout_names())
        order = "order of the 2 x 2 patch merging; raster: GreenMIM files that were pre-trained so"
        command.add_argument("--merge-order", default=MERGE_ORDERS[0], choices=MERGE_ORDERS, help=order)
        how = "how position bias tables of another window are resized; none: refuse"
        command.add_argument("--resize", default=RESIZE_METHODS[0], choices=RESIZE_METHODS, help=how)
    return parser


def to_torch(arguments: argparse.Namespace, _: list[str]) -> None:
    """Exports a run's weights, the moving average of them where there is one."""
    from greenjax.interop import loading, saving
    from greenjax.interop.files import check_output
    from greenjax.runtime.processes import find_devices

    find_devices()
    output = check_output(arguments.output, folder=True)  # before the run is read; save_torch checks it for its layout
    model, step = loading.load_run(arguments.workdir, arguments.step)
    lines: list[str] = []
    if arguments.image_size:
        model, report = loading.with_image_size(model, flags.image_size(arguments.image_size), arguments.resize)
        lines += report.lines()
    model = loading.with_rgb(model) if arguments.rgb else model
    lines += saving.save_torch(
        model,
        output,
        arguments.layout,
        merge_order=arguments.merge_order,
        encoder_only=arguments.encoder_only,
        prefix=arguments.prefix,
        step=step,
        workdir=arguments.workdir,
    )
    _tell(f"{output}: {model.config.model.name} of step {step}, layout {arguments.layout}", lines)


def to_onnx(arguments: argparse.Namespace, _: list[str]) -> None:
    """Writes a model as ONNX, the moving average of its weights where there is one."""
    from greenjax.interop.loading import with_image_size
    from greenjax.interop.onnx.saving import check_onnx, save_onnx
    from greenjax.interop.pretrained import load_placed
    from greenjax.runtime.processes import find_devices

    find_devices()
    output = check_onnx(arguments.output, arguments.overwrite)
    model, step = load_placed(arguments.model, arguments.step)
    outputs = tuple(filter(None, arguments.outputs.split(",")))
    lines: list[str] = []
    if arguments.image_size:
        model, report = with_image_size(model, flags.image_size(arguments.image_size))
        lines += report.lines()
    lines += save_onnx(model, output, outputs=outputs, step=step, overwrite=arguments.overwrite)
    _tell(f"{output}: {model.config.model.name}" + ("" if step is None else f" of step {step}"), lines)


def extract(arguments: argparse.Namespace, _: list[str]) -> None:
    """Takes the tensors out of a file that holds objects beside them."""
    from greenjax.interop import saving

    count, *lines = saving.extract(arguments.input, arguments.output, trust=arguments.trust)
    _tell(f"{arguments.output}: {count} of {arguments.input}", lines)


def from_torch(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Makes a workdir whose checkpoint of step 0 holds the file's weights: training there starts from them."""
    _, config = flags.parse_command(
        flags.Parser(arguments.parser.prog.removesuffix(" from-torch")), ["", *rest], arguments.parser
    )

    from greenjax.interop.loading import read_torch
    from greenjax.interop.tensors import Reading
    from greenjax.runtime.processes import find_devices
    from greenjax.training.start import check_new, write_start

    find_devices()
    workdir = expanded(arguments.workdir)
    check_new(workdir)
    how = Reading(arguments.merge_order, arguments.resize, arguments.new_head, arguments.key, arguments.prefix)
    model, report = read_torch(arguments.input, config, arguments.layout, how, config.seed)
    if config.task in ("finetune", "linear") and not model.config.model.num_classes:  # the data would decide, later
        why = "--new-head leaves out the file's head" if arguments.new_head else "the file has no head"
        raise InputError(
            f"model.num_classes is not given, and {why}: expected --config.model.num_classes=N, or training that starts"
            f" from the file, with {shlex.quote(f'--config.init={arguments.input}')}"
            + (" --config.new_head" if arguments.new_head else "")
        )
    write_start(workdir, model, resolve(model.config))
    changed = {key: value for key, value in flatten(model.config).items() if value != flatten(config)[key]}
    again = [*rest, *(f"--config.{key}={value}" for key, value in changed.items()), "--workdir", str(workdir)]
    script = flags.by_script([arguments.parser.prog])
    start = shlex.join([*flags.started("main", config.task, script), *again])
    line = f"training goes on from there: {start}"
    _tell(f"{workdir}: {config.model.name} from {arguments.input}, layout {arguments.layout}", [*report.lines(), line])


def _tell(first: str, lines: list[str]) -> None:
    say(first)
    for line in lines:
        say(f"  {line}")


if __name__ == "__main__":
    main(sys.argv)
