"""Sphinx configuration of the documentation site: `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "fusionocc"
author = "the fusionocc developers"
copyright = "2026, the fusionocc developers"
release = re.search(r'__version__ = "(.+)"', (ROOT / "fusionocc_core" / "__init__.py").read_text())[1]  # type: ignore[index]

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline", "dollarmath"]

html_theme = "furo"
html_title = f"fusionocc {release}"
# Nothing comes from elsewhere, when the site is built or when it is read.
html_theme_options = {"top_of_page_buttons": []}
html_show_sphinx = False
