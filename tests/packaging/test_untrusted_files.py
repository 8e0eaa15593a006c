"""Files and messages from elsewhere run no code: how everything is loaded, and what happens to files that try."""

from __future__ import annotations

import ast
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionocc_core.checkpoints import read_official
from fusionocc_core.data.occ3d import read_occ3d

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fusionocc_core", "fusionocc_ros", "training", "benchmarks", "launch")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

NEVER = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "joblib.load"),
    *("marshal.load", "marshal.loads", "shelve.open", "pandas.read_pickle", "torch.jit.load", "torch.package"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "eval", "exec", "os.system"),
}
NAMES = {"np": "numpy"}
GUARDED = {"torch.load": ("weights_only", True, True), "numpy.load": ("allow_pickle", False, False)}
"""Call to (argument, the value that it must have, whether it must be given: NumPy's default is the safe one)."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return NAMES.get(node.id, node.id)
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill"):
            found.append(f"line {node.lineno}: from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in NEVER:
            found.append(f"line {node.lineno}: {name}")
        shells = [k.value for k in node.keywords if k.arg == "shell" and name.startswith("subprocess.")]
        if not all(isinstance(value, ast.Constant) and value.value is False for value in shells):
            found.append(f"line {node.lineno}: {name} with a shell")
        if name in GUARDED:
            argument, wanted, required = GUARDED[name]
            given = [k.value for k in node.keywords if k.arg == argument]
            safe = all(isinstance(v, ast.Constant) and v.value is wanted for v in given)
            if not safe or (required and not given):
                found.append(f"line {node.lineno}: {name} without {argument}={wanted}")
    return found


def test_nothing_in_the_packages_loads_what_could_run() -> None:
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): offences(path.read_text()) for path in SOURCES}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(f)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert len(offences(source)) == 1
    assert offences("torch.load(p, weights_only=True); np.load(p); yaml.safe_load(f); subprocess.run([a])") == []


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "bang")))
    assert (tmp_path / "bang").exists()


@pytest.mark.parametrize("layout", ["torch", "bare pickle"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, layout: str) -> None:
    bang, path = tmp_path / "bang", tmp_path / "weights.pth"
    content = {"state_dict": {"a": torch.zeros(2)}, "meta": Bomb(bang)}
    if layout == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"weights\.pth"):
        read_official(path)
    assert not bang.exists()


def test_labels_that_would_run_code_are_refused(tmp_path: Path) -> None:
    bang, path = tmp_path / "bang", tmp_path / "labels.npz"
    array = np.array([Bomb(bang)], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("semantics", "mask_lidar", "mask_camera"):
            archive.writestr(f"{name}.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="labels"):
        read_occ3d(path)
    assert not bang.exists()
