"""The fault campaign in a short form; `python -m tests.faults.campaign` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_faults_lose_nothing(tmp_path):
    """Two faults of as many kinds, then the same bits as without them."""
    command = [sys.executable, "-m", "tests.faults.campaign", "--faults=2", f"--workdir={tmp_path / 'faults'}"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # hundreds of steps of one program
    environment |= {"FAULTS_SLACK": "20"}  # no test hangs on how busy the machine is
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults tried: 2" in done.stdout and "survived: 2" in done.stdout
