"""What MkDocs does not: tables out of the code, pages from beside docs/, and links as a site has them.

mkdocs.yml names this file.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import greenjax
from greenjax.config.listing import default_text
from greenjax.config.settings import KEYS

ROOT = Path(__file__).parents[1]
# Pages whose files are not in docs/, and the files.
BESIDE = {"changes.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "benchmarks.md": "benchmarks/README.md"}
LINK = re.compile(r"(?<!!)\[(?P<label>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
SETTING = re.compile(r"(?<!\[)`(?P<key>[a-z]+\.[a-z_0-9]+)(?P<value>=[^`]*)?`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, path in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    origin = BESIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    names = titles(config.nav)
    text = LINK.sub(lambda link: led(link, origin, config.repo_url, names), markdown)
    text = SETTING.sub(explained, text)
    return text.replace("<!-- table of settings -->", settings()).replace("<!-- docstrings -->", docstrings())


def titles(nav: Any) -> dict[str, str]:
    """The navigation's title of every page."""
    found = {}
    for entry in nav:
        for title, below in entry.items() if isinstance(entry, dict) else ():
            found |= {below: title} if isinstance(below, str) else titles(below)
    return found


def led(link: re.Match[str], origin: str, address: str | None, names: dict[str, str]) -> str:
    """A link of the repository's file `origin` as the site has it: to a page, to `address`, or as text.

    A label that is only the page's file becomes the page's title.
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link["path"]))
    label, anchor = link["label"], link["anchor"] or ""
    pages = {file: page for page, file in BESIDE.items()}
    page = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if page:
        return f"[{names.get(page, label) if path.endswith(label) else label}]({page}{anchor})"
    if not (ROOT / path).exists():
        return link[0]  # MkDocs checks these; brackets in code look like links, too
    if address:
        return f"[{label}]({address.rstrip('/')}/blob/main/{path}{anchor})"
    return f"`{path}`" if path.endswith(label.strip("`")) else f"{label} (`{path}`)"


def explained(name: re.Match[str]) -> str:
    """The name of a setting as a link to its row."""
    return f"[{name[0]}](settings.md#{name['key']})" if name["key"] in KEYS else name[0]


def settings() -> str:
    """The table of settings, by section; every key is an anchor."""
    lines, section = [], None
    for key, entry in KEYS.items():
        name = key.partition(".")[0] if "." in key else "The run"
        if name != section:
            lines += ["", f"## {name}", "", "| setting | default | meaning | allowed |", "|---|---|---|---|"]
            section = name
        cells = (f"`{key}`{{ #{key} }}", f"`{default_text(key)}`", entry.meaning, entry.allowed)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def docstrings() -> str:
    """The directives of mkdocstrings for every public name."""
    return "\n\n".join(f"::: greenjax.{name}" for name in greenjax.__all__ if not name.startswith("_"))
