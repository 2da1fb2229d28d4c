"""The launch scripts, with stand-ins for Slurm and for Python: what they tell the processes, and what follows."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"
PYTHON = """#!/usr/bin/env bash
echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $*"
exit ${CODE:-0}
"""
SRUN = """#!/usr/bin/env bash
code=0
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
SLURM = dict(SLURM_JOB_NODELIST="node[7,9]", SLURM_JOB_ID="40123", SLURM_NTASKS="2")


def test_one_machine_needs_no_environment(run):
    done, _ = run("local_8gpu.sh", *ARGUMENTS)
    assert (done.returncode, done.stdout.split()) == (0, ["-m", "greenjax.main", *" ".join(ARGUMENTS).split()])


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
    lines = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert all(f"--json {folder / table}.json" in line for table, line in lines.items()) and len(lines) == 10
    of_config = "--config configs/swin_t.py --batch 4 --config.model.dtype=bfloat16"
    assert f"-m benchmarks step {of_config}" in lines["step"]
    assert f"-m benchmarks roofline {of_config} --config.method=simmim" in lines["roofline_dense"]
    assert f"-m benchmarks step {of_config} --config.model.attention=pallas" in lines["step_pallas"]
    done, _ = run("gpu_figures.sh", str(folder), "sparse", "step", CODE="3")
    assert done.returncode == 1 and done.stdout.count("FAILED (exit 3)") == 2
    done, _ = run("gpu_figures.sh", str(folder), "sparse", "step", TOTAL="0")
    assert done.returncode == 1 and done.stdout.count("LEFT OUT") == 2
    done, _ = run("gpu_figures.sh", str(folder), "dense")
    assert done.returncode == 1 and done.stderr.startswith("table dense: expected one of attention step")
