"""Every Python block of the documents runs, page by page, in the order of the page.

What a page takes for granted (a frame, a volume) stands in a comment of the Markdown, invisible to its readers:
``<!-- python: ... -->``. ``data/street`` is a small simulated street, wherever a page names it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusionocc_core.simulation import SimulationConfig, generate

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$|^<!-- python:\n(.*?)^-->$", flags=re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(\w*)", flags=re.MULTILINE)
LANGUAGES = {"", "bash", "python", "yaml", "console", "toml", "mermaid", "text"}
"""Of blocks; whatever starts with a brace is for the site. Commands are checked by test_docs.py."""


def blocks(document: Path) -> list[str]:
    """The page's code, shown and hidden, each preceded by empty lines so that errors name the page's line."""
    text = document.read_text()
    found = []
    for match in BLOCK.finditer(text):
        body = match[1] if match[1] is not None else match[2]
        found.append("\n" * text.count("\n", 0, match.start()) + "\n" + body)
    return found


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(
        tmp_path_factory.mktemp("data") / "street",
        SimulationConfig(scenes=1, keyframes=3, image_size=(144, 256), seed=3),
    )


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d)], ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run(document: Path, street: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    if "generate(" not in document.read_text():
        (tmp_path / "data" / "street").symlink_to(street)
    program = tmp_path / "page.py"
    # One namespace for the page, as a reader who types it in has; each block keeps the lines of the page.
    program.write_text(
        "import sys, types\n"
        "page = types.ModuleType('page'); sys.modules['page'] = page; namespace = page.__dict__\n"
        f"for block in {blocks(document)!r}:\n"
        f"    exec(compile(block, {document.name!r}, 'exec'), namespace)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_says_what_language_it_is_in(document: Path) -> None:
    opened = FENCE.findall(document.read_text())[::2]
    assert set(opened) <= LANGUAGES, f"{document.name}: {sorted(set(opened) - LANGUAGES)}"
