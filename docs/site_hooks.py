"""Brings the pages of the repository's root into the site, and points links between the two where they lie there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Where pages of the root lie in the site; plain text is shown as it is.
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "NOTICE": "NOTICE.md",
    "LICENSE": "LICENSE.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages."""
    for name, place in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = text if name.endswith(".md") else f"# {name}\n\n```text\n{text}```\n"
        files.append(File.generated(config, place, content=shown))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite relative links of a page that cross the border between the root and docs/."""
    here = page.file.src_uri
    return LINK.sub(lambda link: moved(link[1], here), markdown)


def moved(target: str, here: str) -> str:
    """Return a link of the repository as one of the site. Both paths are written with slashes."""
    source = {place: name for name, place in ROOT_PAGES.items()}.get(here, f"docs/{here}")
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    in_site = ROOT_PAGES.get(found) or (found.removeprefix("docs/") if found.startswith("docs/") else None)
    return target if in_site is None else posixpath.relpath(in_site, posixpath.dirname(here) or ".")
