"""Adds pages to the site that are not files under docs/: the API reference, CONTRIBUTING.md and CHANGELOG.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.site.api_pages import pages

ROOT = Path(__file__).resolve().parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the API reference to the navigation."""
    if config.nav is not None:
        config.nav.append({"API reference": list(pages())})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    texts = pages()
    for name in ("CONTRIBUTING", "CHANGELOG"):
        texts[f"{name.lower()}.md"] = _inside((ROOT / f"{name}.md").read_text())
    for uri, text in texts.items():
        files.append(File.generated(config, uri, content=text))
    return files


def _inside(text: str) -> str:
    """Converts a file beside docs/ to a page: links to pages are adapted, links to other files become plain text."""
    text = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    return re.sub(r"\[([^\]]+)\]\(([A-Z]+)\)", r"\1", text)
