"""Gaussians on disk: .ply as viewers of Gaussian splatting read it.

The layout is that of 3D Gaussian Splatting (Kerbl et al., SIGGRAPH 2023): binary, one vertex a Gaussian with position,
scale as its logarithm, rotation (w, x, y, z), opacity as its logit, and colour as the first coefficient of spherical
harmonics. Viewers leave out what they do not know: the class, and the comments that name classes and frame.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.gaussians import NO_CLASS, GaussianCloud
from fusionocc_core.grids import LabelSet
from fusionocc_core.viz.volume import palette

HARMONIC = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)); colour (0..1) = 0.5 + HARMONIC * f_dc."""
OPAQUE = 1 - 1e-6
"""Largest opacity that is written: the logit of 1 is infinite."""

_PLACES = ("x", "y", "z")
_COLORS = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES = ("scale_0", "scale_1", "scale_2")
_ROTATIONS = ("rot_0", "rot_1", "rot_2", "rot_3")
_FLOATS = (*_PLACES, "nx", "ny", "nz", *_COLORS, "opacity", *_SCALES, *_ROTATIONS)
_CLASS = "class"
_VERTEX = np.dtype([*((name, "<f4") for name in _FLOATS), (_CLASS, "u1")])

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_MOST_HEADER_LINES = 10_000


def write_ply(path: Path, cloud: GaussianCloud, label_set: LabelSet, frame: str) -> None:
    """Write Gaussians, each in the colour of its class; the file appears whole or not at all.

    Args:
        path: of the file.
        cloud: what to write; may be empty.
        label_set: names and colours of its classes.
        frame: the frame of its positions ("ego": x forward, y left, z up), for the header.
    """
    vertices = np.zeros(len(cloud), _VERTEX)
    opacities_G = cloud.opacities_G.astype(np.float64).clip(1 - OPAQUE, OPAQUE)
    colors_G3 = (palette(label_set.colors)[cloud.labels_G] / 255 - 0.5) / HARMONIC
    columns = (
        (_PLACES, cloud.means_G3),
        (_COLORS, colors_G3),
        (_SCALES, np.log(cloud.scales_G3)),
        (_ROTATIONS, cloud.rotations_G4),
    )
    for names, values_GD in columns:
        for column, name in enumerate(names):
            vertices[name] = values_GD[:, column]
    vertices["opacity"] = np.log(opacities_G / (1 - opacities_G))
    vertices[_CLASS] = cloud.labels_G
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment frame {frame}",
        *(f"comment class {i} {name}" for i, name in enumerate(label_set.names)),
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in _FLOATS),
        f"property uchar {_CLASS}",
        "end_header",
    ]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes("\n".join(header).encode("ascii", "replace") + b"\n" + vertices.tobytes())
    unfinished.replace(path)


def read_ply(path: Path) -> GaussianCloud:
    """Read Gaussians that we or another program of Gaussian splatting wrote.

    Columns may be in any order and of any type, and others may lie between them. A file without classes has NO_CLASS
    for all of them. Quaternions are brought to length 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no binary .ply, it is cut off, or it holds no Gaussians.
    """
    with path.open("rb") as file:
        dtype, count = _read_header(path, file)
        data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{path}: cut off: {len(data)} bytes of {count} vertices of {dtype.itemsize} bytes each")
    vertices = np.frombuffer(data, dtype)
    rotations_G4 = _columns(vertices, _ROTATIONS)
    lengths_G1 = np.linalg.norm(rotations_G4, axis=1, keepdims=True)
    if (lengths_G1 < 1e-6).any():
        raise ValueError(f"{path}: {int((lengths_G1 < 1e-6).sum())} quaternions have length zero")
    classes = vertices[_CLASS] if _CLASS in (dtype.names or ()) else np.full(count, NO_CLASS)
    return GaussianCloud(
        means_G3=_columns(vertices, _PLACES).astype(np.float32),
        scales_G3=np.exp(_columns(vertices, _SCALES)).astype(np.float32),
        rotations_G4=(rotations_G4 / lengths_G1).astype(np.float32),
        opacities_G=(1 / (1 + np.exp(-vertices["opacity"].astype(np.float64)))).astype(np.float32),
        labels_G=classes.astype(np.uint8),
    )


def _columns(vertices: NDArray[np.void], names: tuple[str, ...]) -> NDArray[np.float64]:
    return np.stack([vertices[name].astype(np.float64) for name in names], axis=1)


def _read_header(path: Path, file: BinaryIO) -> tuple[np.dtype[np.void], int]:
    """Layout and number of the vertices; leaves the file where they begin."""
    if file.readline().strip() != b"ply":
        raise ValueError(f"{path}: no .ply file: it does not begin with a line 'ply'")
    order, count, fields, element = "", -1, [], ""
    for _ in range(_MOST_HEADER_LINES):
        words = file.readline().decode("ascii", errors="replace").split()
        if words[:1] == ["end_header"]:
            break
        if words[:1] == ["format"] and len(words) == 3:
            order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(words[1], "")
        elif words[:1] == ["element"] and len(words) == 3:
            if count < 0 and words[1] != "vertex":
                raise ValueError(f"{path}: element {words[1]!r} comes before 'vertex'; expected Gaussians first")
            element, count = words[1], int(words[2]) if words[1] == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in _TYPES:
                raise ValueError(f"{path}: cannot read the line {' '.join(words)!r}")
            fields.append((words[2], words[1]))
    else:
        raise ValueError(f"{path}: the header has no end")
    if not order:
        raise ValueError(f"{path}: expected format binary_little_endian or binary_big_endian; convert text files first")
    missing = {*_PLACES, "opacity", *_SCALES, *_ROTATIONS} - {name for name, _ in fields}
    if count < 0 or missing:
        raise ValueError(f"{path}: holds no Gaussians: {', '.join(sorted(missing)) or 'element vertex'} missing")
    return np.dtype([(name, order + _TYPES[kind]) for name, kind in fields]), count
