"""Hooks of mkdocs: pages that lie outside of docs/, the report where it was made, and links that fit both places."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "build" / "report" / "index.html"
#: Files of the repository, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "measuring.md",
}
#: Pictures outside of docs/ that its pages show.
PICTURES = tuple(sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("examples/results/*.png")))
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The report among the proofs."""
    if REPORT.is_file():
        (proofs,) = (one["Proof"] for one in config.nav or [] if isinstance(one, dict) and "Proof" in one)
        proofs.append({"The report": "report/index.html"})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and the report."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for picture in PICTURES:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    if REPORT.is_file():
        files.append(File.generated(config, "report/index.html", abs_src_path=str(REPORT)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The links of a page as they are right in the site."""
    place = page.file.src_uri
    source = next((source for source, one in PAGES.items() if one == place), f"docs/{place}")
    return LINK.sub(lambda found: moved(found, source, place), markdown)


def moved(found: re.Match[str], source: str, place: str) -> str:
    """A link of a file of the repository, as its page has it; only its text where the target is no part of the site."""
    mark, text, target, anchor = found.groups()
    if "://" in target or target.startswith("mailto:"):
        return found[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (path in PAGES or path in PICTURES or path.startswith("docs/")):
        return text
    within = PAGES.get(path, path.removeprefix("docs/"))
    return f"{mark}[{text}]({posixpath.relpath(within, posixpath.dirname(place) or '.')}{anchor or ''})"
