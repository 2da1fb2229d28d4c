"""The launch scripts, with stand-ins for Slurm and for Python: what they tell the processes, and what follows."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image
from small import ONE_STAGE, small_config

from benchmarks import __main__, measure, sparse, step, whole_run

LAUNCH = Path(__file__).parent.parent / "launch"
PYTHON = """#!/usr/bin/env bash
echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*"
exit ${CODE:-0}
"""
SRUN = """#!/usr/bin/env bash
code=0
if [ "$1" = --cpus-per-task=64 ]; then shift; else exit 2; fi
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@" || code=$?; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode9\\n'; else echo "$*" >>"$TOLD"; fi
"""


@pytest.fixture
def run(tmp_path):
    for name, text in (("python", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    told = tmp_path / "told"
    usual = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "TOLD": str(told)}

    def run(script, *arguments, **environment):
        command = ["bash", str(LAUNCH / script), *arguments]
        done = subprocess.run(command, env=usual | environment, capture_output=True, text=True, cwd=LAUNCH.parent)
        return done, told.read_text() if told.exists() else ""

    return run


ARGUMENTS = ("--config", "configs/swin_b.py", "--workdir", "runs/a b")
SLURM = dict(SLURM_JOB_NODELIST="node[7,9]", SLURM_JOB_ID="40123", SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="64")


def test_one_machine_needs_no_environment(run):
    done, _ = run("local_8gpu.sh", *ARGUMENTS)
    assert (done.returncode, done.stdout.split()) == (0, ["-m", "greenjax.main", *" ".join(ARGUMENTS).split()])


ACTIVE = ("VIRTUAL_ENV", "mine"), ("CONDA_PREFIX", "conda")


def test_a_run_takes_the_environment_that_is_there(tmp_path):
    """The active one, then that for GPUs, then conda's, then that of the quickstart; without any, one line."""
    shutil.copytree(LAUNCH, tmp_path / "launch")

    def started(**environment):
        command = ["bash", str(tmp_path / "launch" / "local_8gpu.sh")]
        return subprocess.run(command, env={"PATH": os.environ["PATH"]} | environment, capture_output=True, text=True)

    assert started().returncode == 1 and started().stderr.startswith("no environment: expected an active one")
    for folder in (".venv", "conda", ".venv-cuda", "mine"):
        (tmp_path / folder / "bin").mkdir(parents=True)
        python = tmp_path / folder / "bin" / "python"
        python.write_text(f"#!/usr/bin/env bash\necho {folder} $JAX_PLATFORMS")
        python.chmod(0o755)
        active = {name: str(tmp_path / place) for name, place in ACTIVE if (tmp_path / place).exists()}
        assert started(**active).stdout == f"{folder} cuda,cpu\n"
    assert started(PYTHON=str(python), JAX_PLATFORMS="cpu").stdout == "mine cpu\n"


PIP = """#!/usr/bin/env bash
echo "$*" >>told
case "$*" in
    *"pip --version") [ -e pip ] ;;
    *ensurepip) [ -z "$STRIPPED" ] && touch pip ;;
esac
"""


def test_an_environment_without_pip_is_kept_and_gets_it(tmp_path):
    """As `uv venv` makes it. A Python that has no ensurepip gets a line."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP)
    python.chmod(0o755)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    command = ["bash", "-c", f"source {LAUNCH}/environment.sh && install_requirements requirements.txt"]
    usual = dict(cwd=tmp_path, capture_output=True, text=True)
    done = subprocess.run(command, env=os.environ | {"STRIPPED": "1"}, **usual)
    assert done.returncode == 1 and done.stderr.startswith(".venv has no pip, and its Python cannot install it")
    done = subprocess.run(command, env=os.environ | {"STRIPPED": ""}, **usual)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text()
    assert python.read_text() == PIP and "-m pip install" in told and "venv --clear" not in told


def test_another_python_than_that_of_the_environment_is_refused(tmp_path):
    """PYTHON says which Python makes .venv: one that is there has its own."""
    command = ["bash", "-c", f"source {LAUNCH}/environment.sh && install_requirements requirements-base.txt"]
    for place, version in ((".venv/bin", "3.11.2"), ("other", "3.13.1")):
        python = tmp_path / place / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/usr/bin/env bash\ncase "$*" in *--version) echo Python {version};; esac\n')
        python.chmod(0o755)
    for name in ("requirements-base.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    usual = dict(cwd=tmp_path, capture_output=True, text=True)
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(python)}, **usual)
    line = f".venv has Python 3.11.2, and PYTHON={python} is Python 3.13.1: expected the same version"
    assert done.returncode == 1 and done.stderr.startswith(line)
    done = subprocess.run(command, env=os.environ | {"PYTHON": str(tmp_path / ".venv/bin/python")}, **usual)
    assert done.returncode == 0, done.stderr


def test_several_machines_need_theirs(run):
    told = dict(JAX_COORDINATOR_ADDRESS="host:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
    done, _ = run("multi_host.sh", *ARGUMENTS, **told, CODE="75")
    assert done.returncode == 75 and done.stdout.startswith("host:1 2 1 -m greenjax.main --config")
    for name in told:
        done, _ = run("multi_host.sh", *ARGUMENTS, **{key: value for key, value in told.items() if key != name})
        assert done.returncode and name in done.stderr and not done.stdout


@pytest.mark.parametrize(("code", "requeued"), [("0", ""), ("75", "requeue 40123\n"), ("1", "")])
def test_slurm_starts_a_process_a_machine_and_requeues_what_was_stopped(run, code, requeued):
    done, told = run("slurm.sbatch", *ARGUMENTS, **SLURM, CODE=code)
    assert done.returncode == int(code)
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["node7:20123", "2", "0"],
        ["node7:20123", "2", "1"],
    ]
    assert all(line.endswith("--workdir runs/a b") for line in done.stdout.splitlines())
    assert told == requeued


def test_tables_of_a_gpu_are_made_one_by_one_whatever_becomes_of_others(run, tmp_path):
    folder = tmp_path / "figures"
    done, _ = run("gpu_figures.sh", str(folder), BATCH="4", CONFIG="configs/swin_t.py")
    assert done.returncode == 0, done.stderr
    lines = {path.stem: path.read_text() for path in folder.glob("*.txt") if path.stem != "summary"}
    assert len(lines) == 16
    assert all((f"--json {folder / table}.json" in line) == (table != "tests") for table, line in lines.items())
    of_config = "--config configs/swin_t.py --batch 4 --repeats 10 --config.model.dtype=bfloat16"
    assert f"-m benchmarks step {of_config}" in lines["step"]
    assert f"-m benchmarks roofline {of_config} --config.method=simmim" in lines["roofline_dense"]
    assert f"-m benchmarks roofline {of_config} --config.model.attention=pallas" in lines["roofline_pallas"]
    done, _ = run("gpu_figures.sh", str(folder), "sparse", "step", CODE="3")
    assert done.returncode == 1 and done.stdout.count("FAILED (exit 3)") == 2
    done, _ = run("gpu_figures.sh", str(folder), "sparse", "step", TOTAL="0")
    assert done.returncode == 1 and done.stdout.count("LEFT OUT") == 2
    assert (folder / "summary.txt").read_text().count("LEFT OUT") == 2
    done, _ = run("gpu_figures.sh", str(folder), "dense")
    assert done.returncode == 1 and done.stderr.startswith("table dense: expected one of tests roofline")


def test_what_a_table_printed_before_its_end_is_kept(run, tmp_path):
    """Its time is over in the middle: the table after it has none left."""
    slow = tmp_path / "slow"
    slow.write_text("#!/usr/bin/env bash\necho a line\nsleep 60\n")
    slow.chmod(0o755)
    folder = tmp_path / "figures"
    done, _ = run("gpu_figures.sh", str(folder), "roofline", "sparse", TOTAL="2", PYTHON=str(slow))
    assert (folder / "roofline.txt").read_text() == "a line\n" and done.returncode == 1
    summary = (folder / "summary.txt").read_text()
    assert "STOPPED after 2 s" in summary and "sparse                    0 s  LEFT OUT" in summary


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Layers, rates and configurations that take no time; the files of the configurations by variable."""
    monkeypatch.setattr(sparse, "LAYERS", (sparse.Layer("block", 2, 2, 2, (8, 16)),))
    monkeypatch.setattr(measure, "SIDES", {"cpu": 64})
    monkeypatch.setattr(measure, "COPIED", {"cpu": 2**20})
    # tests/test_benchmark.py has these two; they compile many programs.
    monkeypatch.setattr(step, "run", lambda config, batch, repeats, compiled: {"rows": []})
    figures = {"first_step_seconds": {"cold": 9.0, "cached": 4.0}, "input_images_per_second": 1.0}
    figures |= {"images_per_second": 2.0, "waited": 0.0}
    monkeypatch.setattr(whole_run, "whole_run", lambda *_: figures)
    swin = small_config(**ONE_STAGE)
    twins = small_config("twins", **ONE_STAGE, model__embed_dims=(8,), model__sr_ratios=(1,))
    files = {"CONFIG": swin, "LARGER": swin, "TWINS": twins}
    return {name: str(whole_run.write_config(tmp_path / f"{name}.py", config)) for name, config in files.items()}


@pytest.mark.slow
def test_every_table_of_a_gpu_is_made_on_a_cpu_too(run, tiny, tmp_path):
    """Its command, on one block: a wrong flag must not cost minutes of a GPU."""
    folder = tmp_path / "figures"
    run("gpu_figures.sh", str(folder), BATCH="8", SPARSE_BATCH="1", REPEATS="1", **tiny)
    commands = {path.stem: path.read_text().split() for path in folder.glob("*.txt") if path.stem != "summary"}
    tests = commands.pop("tests")
    marked = {str(path) for path in Path("tests").glob("*.py") if "@pytest.mark.gpu\n" in path.read_text()}
    assert set(tests[-len(marked) :]) == marked and tests[:4] == ["-m", "pytest", "-m", "gpu"]
    for table, (_, module, *arguments) in commands.items():
        assert module == "benchmarks"
        if table == "roofline_larger":
            continue  # it is `roofline` here, whose configuration is the same
        if table.endswith("_pallas"):
            with pytest.raises(SystemExit, match=r"model\.attention is 'pallas': expected xla"):
                __main__.main(["", *arguments])
        else:
            __main__.main(["", *arguments])
            assert (folder / f"{table}.json").exists()


def launched(name):
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheels(monkeypatch, tmp_path):
    """The collector of wheels, with an index of its own (name: requirements), and its arguments."""
    module = launched("gpu_wheels")
    index = {
        "grain": ["numpy", "etils[epath]>=1", "tool; extra == 'testing'", "old; python_version < '3.12'"],
        "etils": ["fsspec; extra == 'epath'", "etils[epath]; extra == 'all'"],
        "fsspec": ["grain"],
        "beartype": [],
    }

    def fetched(requirement, folder, python):
        path = folder / f"{requirement.name}-1.0-py3-none-any.whl"
        with ZipFile(path, "w") as archive:
            lines = [f"Requires-Dist: {need}" for need in index[requirement.name]]
            archive.writestr(f"{requirement.name}-1.0.dist-info/METADATA", "\n".join(["Name: x", *lines, "", "text"]))
        return path

    monkeypatch.setattr(module, "fetched", fetched)
    wanted = [Requirement(name) for name in ("numpy>=2.4", "grain", "beartype", "ruff==1")]
    monkeypatch.setattr(module, "listed", lambda files: wanted)
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("Numpy==2.0\ntorch @ file:///torch.whl\n# a comment\n")
    return module, [str(freeze), str(tmp_path / "wheels")]


def test_wheels_are_those_that_a_machine_lacks_and_what_they_need(wheels, capsys, tmp_path):
    module, arguments = wheels
    module.main(["", *arguments])
    found = {path.name.split("-")[0] for path in (tmp_path / "wheels").iterdir()}
    assert found == {"grain", "etils", "fsspec", "beartype"}
    assert "numpy 2.0 is there: kept, though numpy>=2.4 is asked for" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        module.main(["", *arguments])
    assert "is not empty: expected a new folder" in capsys.readouterr().err


def test_wheels_that_are_too_large_to_send_are_an_error(wheels, monkeypatch, capsys):
    module, arguments = wheels
    monkeypatch.setattr(module, "MOST", 100)
    with pytest.raises(SystemExit):
        module.main(["", *arguments])
    assert "larger than 0 MiB: the largest is" in capsys.readouterr().err


def test_every_requirement_is_read(monkeypatch):
    """Of the real files, without the files that they include."""
    module = launched("gpu_wheels")
    monkeypatch.chdir(LAUNCH.parent)
    names = {requirement.name for requirement in module.listed(module.FILES)}
    assert {"jax", "ml-collections", "grain", "beartype", "transformers"} < names
    assert not {"torch", "spconv"} & names


# Pictures of emoji

NPM = """#!/usr/bin/env bash
case $3 in *fluent*) from=pictures ;; *) from=groups ;; esac
tar czf "$5/$from.tgz" -C "$STAND_IN/$from" package && echo "$from.tgz"
"""
RUNS, SPACE, CAT = (
    ("1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-200d-2642"),
    ("1f468-200d-1f680", "1f9d1-200d-1f680"),
    "1f431",
)
HEART, GRIN, FLAG, TONE = "2764", "1f63a", "1f1e9-1f1ea", "1f3c3-1f3fb"  # the cat's two pictures are the same


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A stand-in that packs seven pictures: a disc of a colour of its own on nothing."""
    pictures, groups = tmp_path / "pictures" / "package" / "assets", tmp_path / "groups" / "package"
    pictures.mkdir(parents=True)
    groups.mkdir(parents=True)
    listed = {}
    for number, name in enumerate((*RUNS, *SPACE, CAT, HEART, GRIN, FLAG, TONE)):
        colour = (25 * (5 if name == GRIN else number), 0, 200)
        picture = Image.new("RGBA", (64, 64), (9, 9, 9, 0))
        picture.paste((*colour, 255), (16, 16, 48, 48))
        picture.save(pictures / f"{name}.webp", lossless=True)
        group = {CAT: "Animals & Nature", HEART: "Smileys & Emotion", GRIN: "Smileys & Emotion", FLAG: "Flags"}
        signs = [*name.split("-"), *(["fe0f"] if name in (HEART, RUNS[2]) else [])]
        entry = {"group": group.get(name, "People & Body"), "slug": f"slug_{name}"}
        listed |= {"".join(chr(int(sign, 16)) for sign in signs): entry} if name != TONE else {}
    (groups / "data-by-emoji.json").write_text(json.dumps(listed))
    (tmp_path / "npm").write_text(NPM)
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))


def test_emoji_become_class_folders_whose_splits_share_no_variants(npm, tmp_path, capsys):
    emoji, folder = launched("emoji"), tmp_path / "made"
    emoji.main(["emoji.py", str(folder), "--side", "32"])
    found = {path.stem.removeprefix("slug_"): path.parts[-3:-1] for path in folder.rglob("*.png")}
    assert found.keys() == {*RUNS, *SPACE, CAT, HEART}, (
        "the cat's second picture, the flag and the skin tone are left out"
    )
    assert len({found[name] for name in RUNS}) == len({found[name] for name in SPACE}) == 1
    assert found[CAT][1] == "animals_nature" and found[HEART][1] == "smileys_emotion"
    assert {split for split, _ in found.values()} <= {"train", "test"}
    image = np.asarray(Image.open(next(folder.rglob(f"slug_{CAT}.png"))))
    assert image.shape == (32, 32, 3) and (image[0, 0] == 255).all() and (image[16, 16] == (125, 0, 200)).all()
    counts = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert sum(counts) == 7 and len(counts) == len(set(found.values()))
    with pytest.raises(SystemExit):
        emoji.main(["emoji.py", str(folder)])
    assert "is no empty folder: expected one, or a new one" in capsys.readouterr().err


def test_a_fifth_of_the_emoji_is_for_the_test():
    emoji = launched("emoji")
    splits = [emoji.split_of((sign,)) for sign in range(0x1F300, 0x1F700)]
    assert 0.17 < splits.count("test") / len(splits) < 0.23


def test_a_reference_curve_keeps_the_losses_alone():
    shortened = launched("curves").shortened
    assert shortened('{"step": 40, "loss": 0.123456, "images_per_second": 3.0}') == '{"step": 40, "loss": 0.1235}\n'
    assert shortened('{"step": 40, "knn_top1": 0.5}') == ""
