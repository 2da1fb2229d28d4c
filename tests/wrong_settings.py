"""Wrong settings, command lines and environments, each with the line that it has to end with; and odd ones that work.

    python -m tests.wrong_settings

tries all of them and prints how many of each kind ended as they have to (docs/faults.md).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TINY = {  # a model that would train in a moment, if anything here got so far
    "config": str(ROOT / "configs" / "digits.py"),
    "config.model.embed_dim": 16,
    "config.model.depths": "(1,1)",
    "config.model.num_heads": "(1,2)",
    "config.decoder.dim": 16,
    "config.decoder.num_heads": 2,
    "config.data.batch_size": 16,
    "config.mask.groups": 8,
    "config.steps": 2,
    "config.optim.warmup_steps": 1,
}
FINETUNE = "--config.task=finetune --config.model.num_classes=10"
FOLDER = "--config.data.source=folder --config.data.path={world}/images --config.data.split=train"


class Case(NamedTuple):
    """What is typed after the tiny model's settings, {world} being a folder of images and files, and what follows."""

    kind: str
    typed: str  # arguments with a blank between; § stands for a blank inside of one
    line: str  # a pattern of the one line; of a case that works, a KEY=VALUE of its config
    works: bool = False


def cases(kind: str, *pairs: tuple[str, str], works: bool = False) -> list[Case]:
    return [Case(kind, typed, line, works) for typed, line in pairs]


IN_PROCESS = [
    *cases(
        "a key that is not there",
        ("--config.optim.lr=1e-3", "config has no key 'optim.lr': nearest are optim.base_lr"),
        ("--config.lr=1e-3", "'lr': nearest are optim.base_lr"),
        ("--config.batch_size=3", "'batch_size': nearest are data.batch_size"),
        ("--config.Data.batch_size=3", "nearest are data.batch_size"),
        ("--config.data.batchsize=3", "nearest are data.batch_size"),
        ("--config.model=swin_t", "'model' is a section"),
        ("--config.model.=3", "config has no key 'model.'"),
        ("--config.=3", "config has no key ''"),
        ("--config.модель=3", "config has no key 'модель': --helpfull lists all keys"),
        ("--config.workdir=a", "config has no key 'workdir': --workdir says where results go"),
    ),
    *cases(
        "a value of another type",
        ("--config.steps=many", "steps is 'many': expected a whole number"),
        ("--config.steps=1.5", "steps is '1.5': expected a whole number"),
        ("--config.steps=1e3", "steps is '1e3': expected a whole number"),
        ("--config.steps=True", "steps is 'True': expected a whole number"),
        ("--config.steps=", "steps is '': expected a whole number"),
        ("--config.steps=§", "steps is ' ': expected a whole number"),
        ("--config.seed=None", "seed is 'None': expected a whole number"),
        ("--config.optim.base_lr=fast", "optim.base_lr is 'fast': expected a number above 0"),
        ("--config.optim.base_lr=1e-3,", "optim.base_lr is '1e-3,': expected a number"),
        ("--config.data.flip=maybe", "data.flip is 'maybe': expected True or False"),
        ("--config.model.depths=two", r"model.depths is \('two',\): expected whole numbers|model.depths is 'two'"),
        ("--config.model.depths=(1.5,1)", r"model.depths is \(1.5, 1\): expected whole numbers"),
        ("--config.model.depths=(True,1)", r"model.depths is \(True, 1\): expected whole numbers"),
        ("--config.model.depths=(1,1", r"model.depths is '\(1,1': expected whole numbers"),
        ("--config.image_size=32x32", "image_size is '32x32': expected pixels"),
        ("--config.image_size=open('x')", "image_size is .*: expected pixels"),
        ("--config.data.mean=[[1]]", r"data.mean is \[\[1\]\]: expected numbers"),
    ),
    *cases(
        "a value out of range",
        ("--config.steps=-5", "steps is -5: expected a whole number, at least 0"),
        ("--config.seed=4294967296", "seed is 4294967296: expected a whole number, 0 to 4294967295"),
        ("--config.data.batch_size=0", "data.batch_size is 0: expected"),
        ("--config.data.workers=-1", "data.workers is -1: expected"),
        ("--config.data.workers=1000000000000", r"data.workers is 1000000000000: expected a whole number, 0 to"),
        ("--config.data.batch_size=1" + 99 * "0", "data.batch_size is 10+: expected a whole number"),
        ("--config.data.batch_size=1e99", "data.batch_size is '1e99': expected a whole number"),
        ("--config.mask.ratio=1", "mask.ratio is 1.0: expected above 0 and below 1"),
        ("--config.mask.ratio=75", "mask.ratio is 75.0: expected above 0 and below 1"),
        ("--config.ema=1", "ema is 1.0: expected at least 0 and below 1"),
        ("--config.optim.schedule=linear", "optim.schedule is 'linear': expected cosine or steps"),
        ("--config.optim.steps_at=0.9,0.75", r"optim.steps_at is \(0.9, 0.75\): expected rising numbers above 0"),
        ("--config.detect.rpn_samples=1", "detect.rpn_samples is 1: expected a whole number, at least 2"),
        ("--config.detect.box_samples=3", "detect.box_samples is 3: expected a whole number, at least 4"),
        ("--config.detect.pre_nms=1,2,3", r"detect.pre_nms is \(1, 2, 3\): expected a whole number, at least 1"),
        ("--config.model.border=pad", "model.border is 'pad': expected cut for task 'pretrain'"),
        ("--config.model.dtype=float16", "model.dtype is 'float16': expected float32 or bfloat16"),
        ("--config.model.name=resnet50", "model.name is 'resnet50': expected swin_t or"),
        ("--config.task=train", "task is 'train': expected pretrain or finetune"),
        ("--config.image_size=0", r"image_size is \(0, 0\): expected pixels"),
        ("--config.image_size=-32", r"image_size is \(-32, -32\): expected pixels"),
        ("--config.image_size=32,32,32", r"image_size is \(32, 32, 32\): expected pixels"),
        ("--config.image_size=8388608", r"image_size is \(8388608, 8388608\): expected pixels"),
        ("--config.data.crop_scale=1,0.5", r"data.crop_scale is \(1.0, 0.5\): expected two numbers"),
        ("--config.data.std=0", r"data.std is \(0.0,\): expected numbers above 0"),
    ),
    *cases(
        "a number that is none",
        ("--config.optim.base_lr=nan", "optim.base_lr is nan: expected a number above 0"),
        ("--config.optim.base_lr=inf", "optim.base_lr is inf: expected a number above 0"),
        ("--config.optim.base_lr=-1", "optim.base_lr is -1.0: expected a number above 0"),
        ("--config.optim.base_lr=1e999", "optim.base_lr is inf: expected a number above 0"),
        ("--config.mask.ratio=nan", "mask.ratio is nan: expected above 0 and below 1"),
        ("--config.data.mean=nan", "data.mean is .*nan.*: expected numbers"),
        ("--config.data.mean=1" + 400 * "0", "data.mean is .*: expected numbers"),
        ("--config.optim.clip=-0.1", "optim.clip is -0.1: expected a number, at least 0"),
    ),
    *cases(
        "settings that contradict each other",
        ("--config.epochs=3", "epochs is 3: expected none beside steps 2"),
        ("--config.steps=0", "neither epochs nor steps is given"),
        ("--config.optim.warmup_steps=2", "optim.warmup_steps is 2: expected less than steps, 2"),
        ("--config.optim.warmup_epochs=1", "optim.warmup_epochs is 1: expected none in a run measured in steps"),
        ("--config.optim.min_lr=1", "optim.min_lr is 1.0: expected at most optim.base_lr"),
        ("--config.image_size=36", r"image_size is \(36, 36\): expected multiples of the mask unit, 8"),
        (
            "--config.task=finetune --config.model.border=pad --config.model.name=hiera_t --config.model.window=0",
            "model.border is 'pad': expected cut for hiera_t, which has no windows",
        ),
        (
            "--config.task=detect --config.model.name=vit_s --config.model.window=0 --config.model.depths=(1,)"
            " --config.model.num_heads=(1,)",
            "task is 'detect': expected another for vit_s, which has one stage",
        ),
        (
            "--config.model.name=vit_s --config.model.window=0",
            r"model.depths is \(1, 1\): expected one number: vit_s has one stage",
        ),
        (
            "--config.model.name=vit_s --config.model.window=0 --config.model.depths=(1,) --config.model.num_heads=(1,)"
            " --noconfig.model.class_token",
            "model.pool is 'token': expected mean where model.class_token is False",
        ),
        ("--config.model.pool=mean", "model.pool is 'mean': expected none for swin_t"),
        ("--config.image_size=8", "mask.ratio is 0.75: expected one that leaves visible and masked units"),
        ("--config.mask.ratio=0.99", "mask.ratio is 0.99: expected one that leaves visible and masked units"),
        ("--config.mask.ratio=1e-9", "mask.ratio is 1e-09: expected one that leaves visible and masked units"),
        ("--config.mask.block=4", r"mask.block is 4: expected at most 3 for 4 x 4 units"),
        ("--config.mask.groups=3", "mask.groups is 3: expected a divisor of data.batch_size, 16"),
        (
            "--config.optim.accumulation=3",
            "mask.groups is 8: expected a multiple of optim.accumulation x devices .*, 3 x 1",
        ),
        ("--config.model.depths=(1,1,1)", r"model.num_heads is \(1, 2\): expected one value a stage"),
        ("--config.model.num_heads=(3,2)", r"model.num_heads is \(3, 2\): expected a divisor of the 16 channels"),
        ("--config.decoder.dim=18", "decoder.dim is 18: expected a multiple of 4"),
        ("--config.decoder.num_heads=5", "decoder.num_heads is 5: expected a divisor of decoder.dim, 16"),
        ("--config.data.mean=0,0,0", r"data.mean is \(0.0, 0.0, 0.0\): expected 1 numbers"),
        ("--config.data.mean=0.3,0.3", r"data.mean is \(0.3, 0.3\): expected 1 numbers, one a channel"),
        ("--config.model.name=twins_s", "model.embed_dim is 16: expected none for twins_s"),
        ("--config.model.sparse_conv=spconv", "model.sparse_conv is 'spconv': expected native"),
        ("--config.optim.name=lars", "optim.name is 'lars': expected adamw for task 'pretrain'"),
        ("--config.optim.layer_decay=0.7", "optim.layer_decay is 0.7: expected 1 for task 'pretrain'"),
        ("--config.data.mixup=0.8", "data.mixup is 0.8: expected 0 for task 'pretrain'"),
        ("--config.monitor=knn --config.data.eval_split=", "monitor is 'knn': expected none"),
        (
            f"{FINETUNE} --config.task=linear --config.data.batch_size=1",
            "data.batch_size is 1: expected",
        ),
        ("--config.model.attention=pallas", "model.attention is 'pallas': "),
    ),
    *cases(
        "a command line that is not understood",
        ("config.steps=3", "argument 'config.steps=3' is not understood"),
        ("--steps=3", "argument '--steps=3' is not understood: expected --config.steps=VALUE"),
        ("--batch-size 3", "argument '--batch-size' is not understood: expected --config.data.batch_size=VALUE"),
        ("--output_dir=a", "argument '--output_dir=a' is not understood: expected --workdir"),
        ("--work_dir=a", "argument '--work_dir=a' is not understood: expected --workdir"),
        ("--config.steps", "--config.steps has no value: expected --config.steps=VALUE"),
        ("--config.steps --config.seed=3", "--config.steps has no value: expected --config.steps=VALUE"),
        ("--config.data.flip False", "argument 'False' is not understood"),
        ("--noconfig.steps", "'--noconfig.steps' is not understood: expected --config.steps=a whole number"),
        ("--config.steps = 3", "argument '3' is not understood"),
        ("--config.model.depths 1, 1", "argument '1' is not understood"),
        ("--workdir", "argument --workdir: expected one argument"),
        ("--workdir=", "argument --workdir: found '', expected a folder"),
        ("\u2013\u2013config.steps=3", "argument '\u2013\u2013config.steps=3' is not understood"),
    ),
    *cases(
        "a config file that cannot be read",
        ("--config=", "config '': no such name"),
        ("--config={world}/configs/digit.py", "no such file; nearest are {world}/configs/digits.py"),
        ("--config={world}/configs/digits", "no such file; nearest are {world}/configs/digits.py"),
        ("--config={world}/configs", "config '{world}/configs': no such file"),
        ("--config={world}/configs/notes.txt", "notes.txt': expected a file named .*py or .*json or .*yaml"),
        ("--config={world}/configs/empty.py", r"empty.py': expected a function get_config\(\)"),
        ("--config={world}/configs/number.py", r"number.py': get_config\(\) returned 3, expected a ConfigDict"),
        ("--config={world}/configs/cut.py", "cut.py:3: SyntaxError: "),
        ("--config={world}/configs/raises.py", "raises.py:2: ZeroDivisionError: division by zero"),
        ("--config={world}/configs/imports.py", "imports.py:1: ModuleNotFoundError: No module named 'nowhere'"),
        ("--config={world}/configs/key.py", "config has no key 'model.windw': nearest are model.window"),
        ("--config={world}/configs/type.py", "type.py:4: TypeError: .*'steps'"),
        ("--config={world}/configs/binary.py", "binary.py.*(SyntaxError|ValueError)"),
    ),
    *cases(
        "a file or folder that is not there",
        ("--config.data.source=folder", "data.path is '': expected a directory"),
        (f"{FOLDER} --config.data.path={{world}}/nowhere", "data.path is '{world}/nowhere': expected a directory"),
        (f"{FOLDER} --config.data.path={{world}}/file", "data.path is '{world}/file': expected a directory"),
        (f"{FOLDER} --config.data.path={{world}}/§", "data.path is '{world}/ ': expected a directory"),
        (f"{FOLDER} --config.data.split=empty", "empty' has no images"),
        ("--config.data.source=records --config.data.path={world}/images", "{world}/images"),
        ("--config.data.source=tfds --config.data.name=", "data.name is '': expected a name"),
        ("--config.data.source=tfds --config.data.name=nowhere --config.data.path={world}", "holds no prepared TFDS"),
        ("--config.data.source=huggingface --config.data.path=", "data.path is '': expected a folder of save_to_disk"),
        ("--workdir={world}/file", "workdir '{world}/file' "),
        ("--workdir={world}/file/run", "workdir '{world}/file/run' "),
    ),
    *cases(
        "a split that cannot be taken",
        ("--config.data.split=", "data.split is '': expected the name of a split"),
        (
            "--config.data.split=validation",
            "data.source 'digits' has no split 'validation': expected one of 'train', 'test', 'all'",
        ),
        ("--config.data.split=train[:98", r"split 'train\[:98': expected NAME or NAME\[from:to\]"),
        ("--config.data.split=train[50%]", r"split 'train\[50%\]': expected NAME or NAME\[from:to\]"),
        ("--config.data.split=train[5:5]", r"split 'train\[5:5\]' is empty"),
        ("--config.data.split=train[:200%]", r"split 'train\[:200%\]' reaches beyond"),
        ("--config.data.eval_split=tset", "data.source 'digits' has no split 'tset'"),
        (f"{FOLDER} --config.data.eval_split=test", "has no sub-folder for split 'test': available are"),
        (
            "--config.epochs=1 --config.steps=0 --config.optim.warmup_steps=0 --config.data.split=train[:9]",
            "epochs is 1: expected enough for one batch",
        ),
    ),
    *cases(
        "devices that are not there",
        ("--config.mesh.data=0", "mesh.data is 0: expected at least 1, or -1"),
        ("--config.mesh.data=3", r"mask.groups is 8: expected a multiple of .* 1 x 3"),
        (
            "--config.mesh.data=64 --config.mask.groups=64 --config.data.batch_size=64",
            r"mesh.data is 64: expected at most \d+",
        ),
        (
            "--config.mesh.fsdp=3 --config.mask.groups=12 --config.data.batch_size=12",
            "mesh.fsdp is 3: expected a divisor",
        ),
        ("--config.mesh.fsdp=-1", "mesh.fsdp is -1: expected a whole number, at least 1"),
        (
            f"{FINETUNE} --config.data.batch_size=15 --config.mesh.data=2",
            "data.batch_size is 15: expected a multiple of",
        ),
    ),
    *cases(
        "labels that do not fit",
        (
            "--config.monitor=knn --config.data.monitor_source=folder --config.data.monitor_path={world}/images"
            " --config.data.monitor_split=flat",
            "has no class folders",
        ),
        (f"{FINETUNE} --config.model.num_classes=1", "model.num_classes is 1: expected"),
        (f"{FINETUNE} --config.data.per_class=10000", "data.per_class is 10000: expected at most what each class has"),
        (
            f"{FINETUNE} --config.init=none --config.task=eval",
            "init is 'none': expected a classifier's workdir or file",
        ),
        ("--config.task=knn --config.data.eval_split=", "data.eval_split is '': expected the name of a split"),
        ("--config.task=knn --config.data.split=train[:9]", r"knn.k is \(20,\): expected at most the 9 images"),
        ("--config.monitor=knn --config.data.split=train[:9]", r"knn.k is \(20,\): expected at most the 9 images"),
        ("--config.task=knn --config.knn.k=0", r"knn.k is \(0,\): expected whole numbers, at least 1"),
        (f"{FOLDER} {FINETUNE} --config.data.split=flat", "has no class folders"),
    ),
    *cases(
        "first weights that cannot be taken",
        ("--config.init=", "init is '': expected 'none', a greenjax workdir"),
        ("--config.init={world}/nowhere", "{world}/nowhere"),
        ("--config.init={world}/file", "{world}/file"),
        ("--config.init={world}/images", "{world}/images"),
        ("--config.init={world}/cut.safetensors", "{world}/cut.safetensors"),
        ("--config.init={world}/nowhere.safetensors", "{world}/nowhere.safetensors"),
    ),
    *cases(
        "odd, but right",
        ("--config.model.depths=(1,1) --config.model.depths=(2,2)", "model.depths=(2, 2)"),
        ("--config.model.depths=[2,§2]", "model.depths=(2, 2)"),
        ("--config.model.depths 2,2", "model.depths=(2, 2)"),
        ("-config.seed 5", "seed=5"),
        ("--config.seed=1 --config.seed=2", "seed=2"),
        ("--config.seed=x --config.seed=2", "seed=2"),
        ("--config.model.window=None", "model.window=7"),
        ("--config.model.window=0", "model.window=7"),
        ("--config.model.remat --noconfig.model.remat", "model.remat=False"),
        ("--config.data.source=folder --config.data.path=a=b§c[1]", "data.path='a=b c[1]'"),
        ("--config.data.mean -0.5", "data.mean=(-0.5,)"),
        ("--config.seed=1_000", "seed=1000"),
        ("--config.epochs=50 --config.steps=0 --config.optim.warmup_steps=0", "epochs=50"),
        ("--config.image_size=32,64", "image_size=(32, 64)"),
        ("--config={world}/configs/digits.py --config.seed=9", "seed=9"),
        ("--config={world}/configs/neighbour.py", "seed=77"),
        works=True,
    ),
]

# Of other commands, and what a process finds when it starts: (kind, module, environment, arguments, line).
OTHER_COMMANDS = [
    ("planning", "", "no config given: expected --config FILE"),
    (
        "planning",
        "--config={config} --masks=0",
        "greenjax.planning: argument --masks: found '0', expected a whole number",
    ),
    ("planning", "--config={config} --plot={world}/nowhere/a.png", "{world}/nowhere"),
    (
        "planning",
        "--config={config} --config.model.depths=3",
        r"model.num_heads is .*: expected one value a stage",
    ),
    ("convert", "", "greenjax.convert: the following arguments are required: command"),
    (
        "convert",
        "to-torch --layout=timn --workdir=a --output=a.pth",
        "argument --layout: invalid choice: 'timn'",
    ),
    ("convert", "to-torch --layout=timm --workdir={world}/nowhere --output={world}/a.pth", "{world}/nowhere"),
    ("convert", "from-torch --layout=timm --input=a.pth --workdir={world}/new", "no config given"),
    ("data.prepare", "--config={config}", "greenjax.data.prepare: the following arguments are required: --output"),
    (
        "data.prepare",
        "--config={config} --output={world}/new --size=0",
        "argument --size: found '0', expected a whole number",
    ),
    (
        "benchmark",
        "--suite=sweep --config={config} --ratios=a,b",
        "greenjax.benchmark: --ratios is 'a,b': expected numbers with commas between",
    ),
    ("benchmark", "sweep --config={config} --depths=1,1.5", "--depths is '1,1.5': expected whole numbers"),
    ("benchmark", "sweep --config={config} --lengths=nan", "--lengths is 'nan': expected numbers with commas"),
    ("benchmark", "sweep --config={config} --workdir=", "argument --workdir: found '', expected a folder"),
    ("benchmark", "study --config={config} --workdir={world}/new --scratch-lr=-1", "--scratch-lr is -1.0: expected"),
    ("benchmark", "study --config={config} --workdir={world}/new --seeds=0", "argument --seeds: found '0'"),
    ("benchmark", "study --config={config} --workdir={world}/new", "greenjax.benchmark: init is not given"),
    ("benchmark", "--config={config} --suite=stp", "greenjax.benchmark: argument SUITE: invalid choice: 'stp'"),
    ("benchmark", "--config={config} --gpu=h100", "greenjax.benchmark: argument '--gpu=h100' is not understood"),
]
ENVIRONMENTS = [
    ({"JAX_PLATFORMS": "cuda"}, "greenjax: JAX_PLATFORMS is 'cuda': expected what JAX finds here, cpu"),
    ({"JAX_PLATFORMS": "gpux"}, "greenjax: JAX_PLATFORMS is 'gpux': expected what JAX finds here, cpu"),
    ({"JAX_NUM_CPU_DEVICES": "x"}, 'greenjax: Invalid value "x" for JAX flag jax_num_cpu_devices'),
    ({"JAX_ENABLE_X64": "maybe"}, "greenjax: .*jax_enable_x64|greenjax: .*JAX_ENABLE_X64"),
    ({"JAX_DISABLE_JIT": "1"}, "greenjax: JAX_DISABLE_JIT is set: expected 0"),
    ({"JAX_NUM_PROCESSES": "2"}, "greenjax: JAX_COORDINATOR_ADDRESS is not set: expected it beside JAX_NUM_PROCESSES"),
    ({"XLA_FLAGS": "--xla_nothing=1"}, "Unknown flags? in XLA_FLAGS: --xla_nothing=1"),
]


def make_world(folder: Path) -> Path:
    """Images, config files and other files that the cases name."""
    from PIL import Image

    for name in ("train/ant", "train/bee", "flat"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (9, 9), 50 * index).save(folder / "images" / name / f"{index}.png")
    (folder / "images" / "empty").mkdir()
    (folder / "file").write_text("text\n")
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    configs = folder / "configs"
    configs.mkdir()
    digits = (ROOT / "configs" / "digits.py").read_text()
    start = "import greenjax\n\nconfig = greenjax.default_config()\n"
    for name, text in {
        "notes.txt": digits,
        "digits.py": digits,
        "empty.py": "",
        "number.py": "def get_config():\n    return 3\n",
        "cut.py": "def get_config():\n    config = dict(\n        a=(1\n",
        "raises.py": "def get_config():\n    return 1 / 0\n",
        "imports.py": "import nowhere\n",
        "key.py": f"{start}config.model.windw = 7\nget_config = lambda: config\n",
        "type.py": f"{start}config.steps = 'many'\nget_config = lambda: config\n",
        "neighbour.py": "from digits import get_config as digits\n\n\ndef get_config():\n    config = digits()\n"
        "    config.seed = 77\n    return config\n",
    }.items():
        (configs / name).write_text(text)
    (configs / "binary.py").write_bytes(b"\0\xff\xfe")
    return folder


def typed(text: str, world: Path) -> list[str]:
    words = text.replace("{world}", str(world)).replace("{config}", TINY["config"]).split()
    return [word.replace("§", " ") for word in words]


def tiny(case: Case, world: Path) -> list[str]:
    """The whole command line of a case. Without a workdir of its own, results would go to world/run."""
    own = [] if "--workdir" in case.typed else [f"--workdir={world / 'run'}"]
    return ["greenjax.main", *(f"--{key}={value}" for key, value in TINY.items()), *own, *typed(case.typed, world)]


def ending(function: Callable[[], object]) -> str | None:
    """The text that a command ends the process with; None where it comes back."""
    from greenjax.errors import InputError

    try:
        with redirect_stdout(StringIO()):
            function()
    except SystemExit as end:
        return str(end.code)
    except InputError as error:
        return f"greenjax: {error}"
    return None


def failure(line: str | None, pattern: str, world: Path) -> str:
    """What is wrong with how a case ended; "" where nothing is."""
    pattern = pattern.replace("{world}", re.escape(str(world)))
    if line is None:
        return "it went on"
    if "\n" in line:
        return f"more than one line: {line}"
    return "" if line.startswith("greenjax") and re.search(pattern, line) else f"another line: {line}"


def try_case(case: Case, world: Path) -> str:
    """What is wrong with how a case ends; "" where nothing is. It ends before anything is begun."""
    from greenjax import main, tasks
    from greenjax.config import flatten

    shutil.rmtree(world / "run", ignore_errors=True)
    config = None

    def command() -> None:
        nonlocal config
        arguments, config = main.parse(tiny(case, world))
        if not case.works:
            tasks.run(config, arguments.workdir)

    line = ending(command)
    if case.works:
        key, _, value = case.line.partition("=")
        found = None if config is None else repr(flatten(config)[key])
        return "" if found == value else line or f"{key} is {found}"
    if (world / "run" / "metrics.jsonl").exists():
        return f"a run was begun; {line}"
    return failure(line, case.line, world)


def try_command(module: str, text: str, pattern: str, world: Path) -> str:
    """The same for another command."""
    import importlib

    name = "greenjax." + module + (".__main__" if module in ("planning", "data.prepare") else "")
    main = importlib.import_module(name).main
    return failure(ending(lambda: main([f"greenjax.{module}", *typed(text, world)])), pattern, world)


def try_environment(environment: dict[str, str], pattern: str, world: Path) -> str:
    """The same for the front door in a process with other variables. XLA ends a process itself."""
    command = [sys.executable, "-m", *tiny(Case("", "", ""), world)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=ROOT, timeout=300)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 0 or len(lines) != 1:
        return f"exit code {done.returncode}, {len(lines)} lines: {done.stderr[-2000:]}"
    return "" if re.search(pattern, lines[0]) else f"another line: {lines[0]}"


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found: list[tuple[str, str, str]] = []  # kind, what was typed, what is wrong
    with tempfile.TemporaryDirectory() as temporary:
        world = make_world(Path(temporary).resolve() / "world")
        found += [(case.kind, case.typed, try_case(case, world)) for case in IN_PROCESS]
        found += [
            ("flags of other commands", f"{module} {text}", try_command(module, text, line, world))
            for module, text, line in OTHER_COMMANDS
        ]
        found += [
            ("the environment", str(variables), try_environment(variables, line, world))
            for variables, line in ENVIRONMENTS
        ]
    tried, failed = Counter(kind for kind, _, _ in found), Counter(kind for kind, _, wrong in found if wrong)
    for _, text, wrong in found:
        if wrong:
            print(f"{text}: {wrong}", file=sys.stderr)
    print("| kind | tried | outcome |\n|---|---|---|")
    for kind, count in tried.items():
        outcome = "the right result" if kind == "odd, but right" else "one line"
        print(f"| {kind} | {count} | {outcome}" + (f", but for {failed[kind]} |" if failed[kind] else " |"))
    print(f"\n{len(found)} settings, {len(found) - sum(failed.values())} as they have to end")


if __name__ == "__main__":
    main()
