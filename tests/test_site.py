"""The documentation site: it builds without a warning, and nothing on it leads nowhere."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import greenjax
from greenjax.config.settings import KEYS

pytestmark = pytest.mark.extra
ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """The anchors, the links and the text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links |= {given[name] for name in ("href", "src") if given.get(name)}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "launch" / "docs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_and_anchors_lead_somewhere(site):
    page = cache(Page)
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(ROOT.glob("docs/*.md")))
    for path in pages:
        for link in page(path).links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = path
            if to.path:  # 404.html alone has links from the top: it stands for any page
                target = site / to.path.lstrip("/") if to.path.startswith("/") else path.parent / to.path
                target = Path(os.path.normpath(target))
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)} leads to {link}"
            if to.fragment and target.suffix == ".html":
                found = page(target).anchors | {"__top", ""}
                assert unquote(to.fragment) in found, f"{path.relative_to(site)} leads to {link}"


def test_every_page_is_in_the_navigation(site):
    links = {urlsplit(link).path.strip("/") for link in Page(site / "404.html").links}  # it has no others
    assert {path.stem for path in ROOT.glob("docs/*.md")} - {"index"} <= links
    assert {"changes", "contributing", "benchmarks"} <= links


def test_every_setting_is_on_its_page(site):
    page = Page(site / "settings" / "index.html")
    assert set(KEYS) <= page.anchors
    for entry in KEYS.values():
        assert entry.meaning.replace("`", "") in page.text
        assert entry.allowed.strip() in page.text


def test_settings_in_the_text_lead_to_their_rows(site):
    assert "../settings/#data.batch_size" in Page(site / "your_images" / "index.html").links


def test_every_public_name_has_its_docstring(site):
    text = (site / "api" / "index.html").read_text()
    anchors = [anchor for anchor in Page(site / "api" / "index.html").anchors if anchor.startswith("greenjax.")]
    assert sorted(anchors) == sorted(f"greenjax.{name}" for name in greenjax.__all__ if name != "__version__")
    assert text.count('<div class="doc doc-contents first">\n\n        <p>') == len(anchors)


def test_links_out_of_docs_lead_to_the_repository_or_say_the_path(site, hooks):
    assert "<code>launch/slurm.sbatch</code>" in (site / "install" / "index.html").read_text()
    for text, address, expected in (
        ("[`a`](../launch/docs.sh)", None, "`a` (`launch/docs.sh`)"),
        ("[docs.sh](../launch/docs.sh)", None, "`launch/docs.sh`"),
        (
            "[a](../launch/docs.sh#x)",
            "https://example.org/me/",
            "[a](https://example.org/me/blob/main/launch/docs.sh#x)",
        ),
        ("[a](../CHANGELOG.md#changes)", None, "[a](changes.md#changes)"),
        ("[data.md](data.md#b)", None, "[Images](data.md#b)"),
        ("tables[key](value)", None, "tables[key](value)"),
    ):
        link = hooks.LINK.search(text)
        assert (
            link.string.replace(link[0], hooks.led(link, "docs/install.md", address, {"data.md": "Images"})) == expected
        )


def test_no_page_asks_another_host(site):
    """Fonts, scripts and styles come with the site."""
    for path in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?(?:https?:)?//[^">]*', path.read_text()), path
