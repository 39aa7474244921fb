"""Hooks of MkDocs: README.md is the first page of the site, and its links work there as they do on GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()[^)#:\s]+")  # to a file; not to an address, not within a page
PAGES = {"index.md": "README.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, and the files outside of docs/ that any page links to, below source/."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    pages = [page.src_uri for page in files.documentation_pages()]
    targets = {target(page, link) for page in pages for link in LINK.findall(text(page))}
    for uri in sorted(targets):
        if uri.startswith("source/"):
            content = (ROOT / uri.removeprefix("source/")).read_text(encoding="utf-8")
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links of the site."""
    uri = page.file.src_uri

    def relative(link: re.Match[str]) -> str:
        return posixpath.relpath(target(uri, link[0]), posixpath.dirname(uri) or ".")

    return LINK.sub(relative, markdown)


def text(page: str) -> str:
    """Return the text of a page of the site, by its place there."""
    return (ROOT / PAGES.get(page, f"docs/{page}")).read_text(encoding="utf-8")


def target(page: str, link: str) -> str:
    """Return the place on the site of what a page links to."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(PAGES.get(page, f"docs/{page}")), link))
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"
