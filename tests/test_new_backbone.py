"""docs/new_backbone.md, done in a copy of the package: its files, its line, its commands, in one process."""

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "new_backbone.md"
REGISTRY = "greenjax/backbones/registry.py"

FILE = re.compile(r"^`(?P<path>[\w/]+\.py)`\n\n```python\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^```python\n(?P<line>    .*\n)```$", re.MULTILINE)
COMMANDS = re.compile(r"^```sh\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"^[^`\n]+\n\n```python\n(?P<script>import greenjax\n.*?)^```$", re.MULTILINE | re.DOTALL)

# A command that stands twice goes on where its run has stopped: the driver takes the last checkpoint away in between.
DRIVER = """
import json, shlex, shutil
from pathlib import Path
from greenjax.main import main

def losses(workdir):
    return [(row["step"], row["loss"]) for row in map(json.loads, open(workdir / "metrics.jsonl")) if "loss" in row]

before = None
for line in {commands!r}.splitlines():
    python, flag, module, *arguments = shlex.split(line)
    assert (python, flag, module) == ("python", "-m", "greenjax.main")
    workdir = Path(arguments[arguments.index("--workdir") + 1])
    if line == before:
        whole = losses(workdir)
        shutil.rmtree(workdir / "checkpoints" / "4")
    main([module, *arguments])
    if line == before:
        assert losses(workdir) == whole
        print("resumed")
    before = line
{script}
import sys
sys.path.append({tests!r})
from petit_reference import check

check(model, again)
"""


def test_the_page_adds_a_family_by_a_folder_and_one_line(tmp_path):
    page = PAGE.read_text()
    shutil.copytree(ROOT / "greenjax", tmp_path / "greenjax", ignore=shutil.ignore_patterns("__pycache__"))
    files = {match["path"]: match["text"] for match in FILE.finditer(page)}
    assert {Path(path).parent.name for path in files} == {"petit", "configs"}
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (line,) = LINE.findall(page)
    registry = (ROOT / REGISTRY).read_text()
    start = registry.index("FAMILIES: dict")
    end = registry.index("}\n", start)
    (tmp_path / REGISTRY).write_text(registry[:end] + line + registry[end:])
    assert changed_lines(tmp_path) == {REGISTRY: (0, 1)}

    (commands,), (script,) = COMMANDS.findall(page), SCRIPT.findall(page)
    driver = DRIVER.format(commands=commands, script=script, tests=str(ROOT / "tests"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error::SyntaxWarning", "-c", driver]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"resumed", "equal to its masked dense self"} < set(done.stdout.splitlines())
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"petit", "petit_classes"}


def changed_lines(copy: Path) -> dict[str, tuple[int, int]]:
    """The files of the package that the copy has otherwise: lines that are gone, and lines that are new."""
    changed = {}
    for path in sorted((ROOT / "greenjax").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        before, after = path.read_text().splitlines(), (copy / name).read_text().splitlines()
        if before != after:
            marks = [line[:2] for line in difflib.ndiff(before, after)]
            changed[name] = marks.count("- "), marks.count("+ ")
    return changed
