"""An exported network on disk: a folder with the graph, and artefact.json, which says everything about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import fusionocc_core
from fusionocc_core.checkpoints import ModelCard, encode_config
from fusionocc_core.export.graph import Layout
from fusionocc_core.models.network import NetworkConfig
from fusionocc_core.presets import decode_network_config

FORMAT = "fusionocc-export-1"
"""Value of "format"; it changes when older readers could no longer read the file."""

NOTE = "artefact.json"
REPORT = "report.json"
TRTEXEC = "trtexec.sh"

GRAPHS = {"onnx": "graph.onnx", "openvino": "graph.xml", "torch-export": "graph.pt2", "tensorrt": "graph.onnx"}
"""What an artefact can be exported to, and the file that its runtime opens."""

PRECISIONS = {
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch-export": ("fp32",),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
}
"""In which precisions."""

OPSET = 18
"""Of ONNX graphs: the newest that TensorRT is known to read right."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input of a graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Everything about an exported network but its graph."""

    folder: Path
    target: str
    """A key of GRAPHS."""
    precision: str
    config: NetworkConfig
    """The network's."""
    card: ModelCard
    layout: Layout
    inputs: tuple[TensorSpec, ...]
    """Of the graph, in order."""
    calibrated_on: str = ""
    """int8: the keyframes that the value ranges come from."""
    tools: Mapping[str, str]
    """Versions of what wrote the graph."""

    @property
    def graph(self) -> Path:
        """The file that a runtime opens."""
        return self.folder / GRAPHS[self.target]


def check_target(target: str, precision: str) -> None:
    """Check that there is such an artefact.

    Raises:
        ValueError: an unknown target, or a precision that it does not have.
    """
    if target not in GRAPHS:
        raise ValueError(f"--to {target}: expected one of {', '.join(GRAPHS)}")
    if precision not in PRECISIONS[target]:
        having = [name for name, precisions in PRECISIONS.items() if precision in precisions]
        hint = f"; {precision} is there with --to {' or '.join(having)}" if having else ""
        raise ValueError(f"--precision {precision}: {target} has {', '.join(PRECISIONS[target])}{hint}")


def write_note(artefact: Artefact) -> None:
    """Write artefact.json, last of all: without it a folder is no artefact."""
    plain = ("target", "precision", "calibrated_on")
    content = {
        "format": FORMAT,
        "fusionocc": fusionocc_core.__version__,
        **{name: getattr(artefact, name) for name in plain},
        "opset": OPSET if artefact.graph.suffix == ".onnx" else None,
        "cameras": artefact.layout.cameras,
        "layout": asdict(artefact.layout),
        "inputs": [asdict(spec) for spec in artefact.inputs],
        "card": {**asdict(artefact.card), "source": ""},
        "sha256": {path.name: sha256(path) for path in graph_files(artefact)},
        "tools": dict(artefact.tools),
        "config": encode_config(artefact.config),
    }
    (artefact.folder / NOTE).write_text(json.dumps(content, indent=1) + "\n")


def graph_files(artefact: Artefact) -> list[Path]:
    """The graph and, where they lie apart, its weights."""
    weights = artefact.graph.with_suffix(".bin")
    return [artefact.graph, *([weights] if artefact.target == "openvino" else [])]


def is_artefact(path: str | Path) -> bool:
    """Whether this is an artefact's folder (or its artefact.json)."""
    return (_folder(path) / NOTE).is_file()


def read_artefact(path: str | Path) -> Artefact:
    """Read artefact.json and check that the graph beside it is the one that it was written with.

    Raises:
        FileNotFoundError: there is no artefact, or a file of it is missing.
        ValueError: another version wrote it, or a file was changed or damaged.
    """
    folder = _folder(path)
    if not (folder / NOTE).is_file():
        raise FileNotFoundError(f"{folder}: no artefact of `fusionocc export` (it has no {NOTE})")
    note = _read_json(folder / NOTE)
    check_version(note, folder / NOTE)
    try:
        artefact = _decode(note, folder)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / NOTE}: damaged: {error!r}; export again") from error
    for name, expected in note["sha256"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file, {NOTE} tells of it; export again")
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name}: not the file that {NOTE} was written with; export again")
    return artefact


def check_version(note: Mapping[str, Any], path: Path) -> None:
    """Refuse what other versions wrote: the part of the network outside of the graph may have changed with them.

    Raises:
        ValueError: it was another version.
    """
    if note.get("format") != FORMAT:
        raise ValueError(f"{path}: format {note.get('format')!r}, this version reads {FORMAT!r}; export again")
    if note.get("fusionocc") != fusionocc_core.__version__:
        raise ValueError(
            f"{path}: exported by fusionocc {note.get('fusionocc')}, this is {fusionocc_core.__version__}; what the "
            "graph is fed with may differ between versions: export again"
        )


def sha256(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _folder(path: str | Path) -> Path:
    path = Path(path)
    return path.parent if path.name == NOTE else path


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}; export again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged: expected an object, found a {type(content).__name__}; export again")
    return content


def _decode(note: Mapping[str, Any], folder: Path) -> Artefact:
    check_target(note["target"], note["precision"])
    try:
        config = decode_network_config(note["config"])
    except ValueError as error:
        raise ValueError(f"{folder / NOTE}: {error}; export again") from error
    layout = {f.name: note["layout"][f.name] for f in fields(Layout)}
    return Artefact(
        folder=folder,
        target=note["target"],
        precision=note["precision"],
        calibrated_on=note["calibrated_on"],
        config=config,
        card=ModelCard(**{**note["card"], "source": str(folder)}),
        layout=Layout(**layout),
        inputs=tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in note["inputs"]),
        tools=note["tools"],
    )
