"""The pages: every path, link, name, setting and command that they name exists. They need neither a run nor JAX."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from greenjax.commands import COMMANDS
from greenjax.config.places import shipped
from greenjax.config.settings import KEYS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
TEXTS = [*PAGES, *sorted(ROOT.glob("configs/*.py")), *sorted(p for p in ROOT.glob("launch/*"))]
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
FOLDERS = "greenjax|benchmarks|configs|launch|tests|docs"


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=name_of)
def page(request):
    return request.param


@pytest.fixture(params=TEXTS, ids=name_of)
def text(request):
    return request.param.read_text()


def links(page):
    """(text, path, anchor) of every link of a page that leads to a file of the repository."""
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield label, (page.parent / path).resolve() if path else page, anchor


def without_code(text):
    return re.sub(r"^(    |```).*$", "", text, flags=re.MULTILINE)


def constant(path, name):
    """The value of a constant that a Python file assigns, without importing the file."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


@cache
def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-") for heading in headings]


@cache
def names_in(path):
    """Names that a Python file defines or imports: classes, functions, variables; `Class.member` of its classes."""
    names = set()

    def collect(body, prefix=""):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{node.name}.")
            elif isinstance(node, ast.Assign):
                names.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names.update(alias.asname or alias.name for alias in node.names)
            elif isinstance(node, ast.If):
                collect(node.body, prefix)

    collect(ast.parse(path.read_text()).body)
    return names


def test_links_lead_somewhere(page):
    for label, path, anchor in links(page):
        assert path.exists(), f"[{label}] leads to {path}"
        assert not anchor or anchor in anchors(path), f"[{label}] leads to #{anchor} of {name_of(path)}"


def test_linked_names_are_defined_where_the_link_leads(page):
    for label, path, _ in links(page):
        if path.suffix == ".py" and (name := re.fullmatch(r"`([A-Za-z_][\w.]*)`", label)):
            assert name[1] in names_in(path), f"{name[1]} is not in {name_of(path)}"


def made(text):
    """Folders of the files that a page tells its reader to write: a line with the path alone stands before each."""
    return {str(Path(path).parent) for path in re.findall(r"^`([\w./]+\.py)`$", text, re.MULTILINE)}


def test_paths_exist(text):
    for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w)(?![\w*/{{-])", text):
        assert (ROOT / path).exists() or {path, str(Path(path).parent)} & made(text), path


def test_modules_and_their_names_exist(text):
    for name in set(re.findall(r"\b(?:greenjax|benchmarks|tests)(?:\.[A-Za-z_]\w*)+", text)):
        if name.endswith((".py", ".md")) or any(name.startswith(folder.replace("/", ".")) for folder in made(text)):
            continue
        path, parts = ROOT, name.split(".")
        while parts and (path / parts[0]).is_dir():
            path = path / parts.pop(0)
        if parts and (path / f"{parts[0]}.py").exists():
            path = path / f"{parts.pop(0)}.py"
        file = path / "__init__.py" if path.is_dir() else path
        assert not parts or ".".join(parts) in names_in(file), name


def test_suites_exist(text):
    suites = constant("benchmarks/__main__.py", "SUITES")
    for name in re.findall(r"-m benchmarks ([a-z]\w*)", text):
        assert name in suites, f"python -m benchmarks {name}"


def test_commands_and_their_configs_exist(text):
    for words in re.findall(r"^ {4,}greenjax ([a-z].*)", text, re.MULTILINE):
        name = next((name for name in COMMANDS if f"{words} ".startswith(f"{name} ")), None)
        assert name, f"greenjax {words}"
        for config in re.findall(r"--config (\w+)(?=\s|$)", words):
            assert config in shipped() or config in ("NAME", "FILE"), f"greenjax {words}"


def test_settings_exist(text):
    for key in re.findall(r"--(?:config\.|set[ =]'?)([A-Za-z_][\w.]*\w)", text):
        assert key in KEYS or key in ("key", "KEY", "a.b"), f"--config.{key}"
    inline = re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_0-9]+)(?:=[^`]*)?`", text)
    attribute, suffixes = "model.config", (".json", ".md", ".py")
    assert not [key for key in inline if key not in KEYS and key != attribute and not key.endswith(suffixes)]


def test_every_page_is_in_the_index():
    """docs/index.md answers "where do I find ...", so it names every page."""
    index = ROOT / "docs" / "index.md"
    named = {path for _, path, _ in links(index)}
    assert set(ROOT.glob("docs/*.md")) == {index} | {path for path in named if path.parent == index.parent}


def test_pages_that_the_code_names_exist():
    for folder in ("greenjax", "benchmarks", "tests"):
        for path in ROOT.glob(f"{folder}/**/*.py"):
            named = re.findall(r"\bdocs/[\w/]+\.md", path.read_text())
            assert all((ROOT / page).exists() for page in named), f"{name_of(path)} names {named}"


def test_folders_are_listed_as_they_may_import():
    page = (ROOT / "docs" / "how_it_works.md").read_text().partition("## Which folder may import which")[2]
    rows = re.findall(r"^\| (`greenjax/.*?) \|", page, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`greenjax/(\w+)", row)]
    floors = constant("tests/test_house.py", "FLOORS")
    assert listed == [name for floor in reversed(floors) for name in floor if name != "__main__"]


def test_every_config_is_in_a_page():
    pages = "".join(page.read_text() for page in PAGES)
    assert not [path.name for path in (ROOT / "configs").glob("*.py") if f"configs/{path.name}" not in pages]
