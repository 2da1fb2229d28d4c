"""What MkDocs does not: tables out of the code, pages from beside docs/, and links that leave docs/.

mkdocs.yml names this file.
"""

import posixpath
import re
from pathlib import Path

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


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, path in BESIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    origin = BESIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    text = LINK.sub(lambda link: led(link, origin, config.repo_url), markdown)
    return text.replace("<!-- table of settings -->", settings()).replace("<!-- docstrings -->", docstrings())


def led(link: re.Match[str], origin: str, address: str | None) -> str:
    """A link of the repository's file `origin` as the site has it: to a page, to `address`, or as text."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link["path"]))
    pages = {file: page for page, file in BESIDE.items()}
    if path in pages or (path.startswith("docs/") and not origin.startswith("docs/")):
        return f"[{link['label']}]({pages.get(path, path.removeprefix('docs/'))}{link['anchor'] or ''})"
    if path.startswith("docs/") or not (ROOT / path).exists():
        return link[0]  # MkDocs checks these; brackets in code look like links, too
    if address:
        return f"[{link['label']}]({address.rstrip('/')}/blob/main/{path}{link['anchor'] or ''})"
    label = link["label"].strip("`")
    return f"`{path}`" if path.endswith(label) else f"{link['label']} (`{path}`)"


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
