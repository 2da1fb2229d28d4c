"""The lock file: it has one version of everything that is asked for, for each Python, and no address of an index."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-lock.txt"
EXTRAS = re.findall(r"--extra (\w+)", (ROOT / "launch" / "lock.sh").read_text())


def requirements(path):
    lines = (line.strip() for line in path.read_text().splitlines())
    return [Requirement(line.partition(" #")[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_satisfies_the_base_and_the_extras(python):
    here = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    here |= {
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    locked = [one for one in requirements(LOCK) if one.marker is None or one.marker.evaluate(here)]
    versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in locked}
    assert len(versions) == len(locked)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cuda12", "cuda13", "tfds"} <= set(EXTRAS) <= set(extras)
    wanted = [
        *requirements(ROOT / "requirements-base.txt"),
        *(Requirement(one) for name in EXTRAS for one in extras[name]),
    ]
    for one in wanted:
        version = versions.get(canonicalize_name(one.name))
        assert version and one.specifier.contains(version), f"{one} asked, {version} locked: bash launch/lock.sh"


def test_lock_pins_versions_and_names_no_index():
    assert all(re.fullmatch(r"==[\w.+!]+", str(one.specifier)) and not one.url for one in requirements(LOCK))
    assert not re.search(r"://|^ *-", LOCK.read_text(), re.MULTILINE)
