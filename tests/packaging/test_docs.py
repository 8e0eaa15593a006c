"""What the documents promise about files and commands must exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_and_pictures_exist(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def commands():
    """Every `fusionocc COMMAND ...` and `python SCRIPT ...` in a code block: its words, then its options."""
    found = set()
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:bash|console|)\n(.*?)```", document.read_text(), flags=re.S):
            for line in block.splitlines():
                if match := re.match(r"(fusionocc|python) (\S+)(?: (from-nuscenes|play))?", line.strip()):
                    options = tuple(sorted(set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line.split("#")[0]))))
                    found.add((*(word for word in match.groups() if word), *options))
    return sorted(found)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_and_their_options_exist(command):
    words = [word for word in command if not word.startswith("--")]
    options = [word for word in command if word.startswith("--")]
    if words[0] == "fusionocc":
        call = [sys.executable, "-m", "fusionocc_core.cli", *words[1:]]
    elif words[1] == "-m":
        pytest.fail(f"{command}: name the script, not a module")
    else:
        call = [sys.executable, *words[1:]]
        assert (ROOT / words[1]).is_file(), words[1]
    done = subprocess.run([*call, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in options:
        assert option in done.stdout, f"{' '.join(words)} has no {option}"


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "docs",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "tree")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (tmp_path / "site").glob("*.html")}
    assert {document.stem for document in DOCUMENTS if document.parent.name == "docs"} <= pages
    for page in (tmp_path / "site").glob("*.html"):
        elsewhere = re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+""", page.read_text())
        assert not elsewhere, f"{page.name} loads {elsewhere}"
