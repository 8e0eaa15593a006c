"""Results as files, in one folder and nowhere else: names come over the network. No ROS."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np

from fusionocc_core.structures import Occupancy
from fusionocc_ros.voxels import occupied_mask

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(npz|ply)")


class SnapshotFolder:
    """Writes new files into a folder; overwrites nothing and follows no links.

    Args:
        folder: it must exist; empty: every snapshot is refused.
        most_files: with so many entries in the folder, snapshots are refused.
    """

    def __init__(self, folder: str, most_files: int) -> None:
        self.folder = Path(folder) if folder else None
        self.most_files = most_files

    def check(self) -> None:
        """See whether the folder is there.

        Raises:
            ValueError: it is not a folder, or cannot be written.
        """
        if self.folder is not None and not (self.folder.is_dir() and os.access(self.folder, os.W_OK | os.X_OK)):
            raise ValueError(f"snapshot.folder: {self.folder} is not a folder that can be written; make it first")

    def save(self, name: str, occupancy: Occupancy, frame_id: str) -> Path:
        """Write a result; returns where.

        Args:
            name: a plain file name ending in .npz or .ply; empty: the stamp, .npz.
            occupancy: the result.
            frame_id: in which its grid lies.

        Raises:
            ValueError: there is no folder, the name is not a plain file name, or the folder is full.
            OSError: a file of that name is there already, or the disk refuses.
        """
        if self.folder is None:
            raise ValueError("snapshots are switched off: start the node with parameter snapshot.folder")
        name = name or f"{occupancy.stamp_ns}.npz"
        if not NAME.fullmatch(name):
            raise ValueError(
                f"name: {name[:120]!r} is not a plain file name of letters, digits, '.', '_' and '-' that ends in "
                ".npz or .ply"
            )
        if len(os.listdir(self.folder)) >= self.most_files:
            raise ValueError(
                f"{self.folder} holds {self.most_files} files (snapshot.most_files): move some of them away"
            )
        content = volume_bytes(occupancy, frame_id) if name.endswith(".npz") else ply_bytes(occupancy, frame_id)
        self._write(name, content)
        return self.folder / name

    def _write(self, name: str, content: bytes) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)  # type: ignore[arg-type]
        try:
            # O_EXCL: neither what is there already nor what a link points to is touched.
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
            with os.fdopen(file, "wb") as stream:
                stream.write(content)
        finally:
            os.close(folder)


def volume_bytes(occupancy: Occupancy, frame_id: str) -> bytes:
    """A compressed .npz of the whole volume.

    Keys: labels (X, Y, Z) and, where it was computed, confidence; origin and voxel_size in metres; class_names,
    free_label, unknown_label; stamp_ns, frame_id, model.
    """
    labels = occupancy.label_set
    arrays = {
        "labels": occupancy.labels,
        "origin": np.asarray(occupancy.grid.lower, np.float64),
        "voxel_size": np.asarray(occupancy.grid.voxel_size, np.float64),
        "class_names": np.asarray(labels.names, dtype=np.str_),
        "free_label": np.uint8(labels.free),
        "unknown_label": np.uint8(labels.unknown),
        "stamp_ns": np.int64(occupancy.stamp_ns),
        "frame_id": np.str_(frame_id),
        "model": np.str_(occupancy.model),
    }
    if occupancy.confidence is not None:
        arrays["confidence"] = occupancy.confidence
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


_VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("label", "u1")]
)


def ply_bytes(occupancy: Occupancy, frame_id: str) -> bytes:
    """A binary .ply with a vertex at the centre of every occupied voxel: x y z red green blue label."""
    indices = np.argwhere(occupied_mask(occupancy))
    vertices = np.zeros(len(indices), dtype=_VERTEX)
    for column, axis in enumerate("xyz"):
        vertices[axis] = occupancy.grid.centers(indices)[:, column]
    vertices["label"] = occupancy.labels[tuple(indices.T)]
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: occupancy.label_set.num] = occupancy.label_set.colors
    for column, name in enumerate(("red", "green", "blue")):
        vertices[name] = colors[vertices["label"], column]
    kinds = {"<f4": "float", "|u1": "uchar"}
    described = "".join(f"property {kinds[_VERTEX[name].str]} {name}\n" for name in _VERTEX.names or ())
    comment = f"comment frame {frame_id.encode('ascii', 'replace').decode().splitlines()[0] if frame_id else ''}"
    head = (
        f"ply\nformat binary_little_endian 1.0\n{comment}, stamp {occupancy.stamp_ns} ns\n"
        f"element vertex {len(vertices)}\n{described}end_header\n"
    )
    return head.encode() + vertices.tobytes()
