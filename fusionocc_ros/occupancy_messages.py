"""fusionocc_msgs/SemanticOccupancy to the core's Occupancy and back, in three encodings."""

from __future__ import annotations

import array
from dataclasses import dataclass, field

import numpy as np
from geometry_msgs.msg import Pose
from numpy.typing import NDArray

from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros.convert import message_bytes, ns_to_stamp, stamp_to_ns
from fusionocc_ros.output_parameters import DENSE, RUN_LENGTH, SPARSE

MOST_VOXELS = 2**28
"""Of a message that is read: sizes from the wire must not decide how much memory is taken."""

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is known of a result besides the occupancy itself. Times in seconds."""

    frame_id: str
    cameras: tuple[str, ...] = ()
    camera_ages: tuple[float, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    """Sensors that did not take part, and why."""
    ego_motion: int = SemanticOccupancy.EGO_MOTION_NONE
    camera_history: int = 0
    lidar_history: int = 0
    times: dict[str, float] = field(default_factory=dict)
    """By the message's field name, without the suffix ``_time``."""
    sensors: SensorFrame | None = None
    """What the network was given."""
    camera_frames: dict[str, str] = field(default_factory=dict)
    """Optical frame of each camera."""
    base_frame: str = "base_link"
    fixed_frame: str = ""
    """The frame that ``sensors.ego2global`` maps to, where /tf knows it; else empty."""


def grid_to_pose(grid: VoxelGrid) -> Pose:
    """The outer corner of voxel (0, 0, 0), axes along the frame's."""
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(v) for v in grid.lower)
    pose.orientation.w = 1.0
    return pose


def byte_array(values: Bytes) -> array.array[int]:
    """A uint8[] field; rclpy takes an array.array as it is, and copies anything else element by element."""
    out = array.array("B")
    out.frombytes(np.ascontiguousarray(values).reshape(-1).data)
    return out


def _word_array(values: NDArray[np.integer]) -> array.array[int]:
    out = array.array("I")
    out.frombytes(np.ascontiguousarray(values, dtype=np.uint32).view(np.uint8).data)
    return out


def _run_starts(flat: Bytes) -> NDArray[np.int64]:
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])


def occupancy_to_message(occupancy: Occupancy, provenance: Provenance, *, encoding: str = DENSE) -> SemanticOccupancy:
    """The message.

    Args:
        occupancy: what to send.
        provenance: what is known of it besides.
        encoding: "dense" (a byte for every voxel), "sparse" (what is not free) or "run_length" (runs of equal labels).

    Raises:
        ValueError: an encoding that is none of these.
    """
    grid, labels = occupancy.grid, occupancy.label_set
    out = SemanticOccupancy()
    out.header.stamp = ns_to_stamp(occupancy.stamp_ns)
    out.header.frame_id = provenance.frame_id
    out.origin = grid_to_pose(grid)
    out.voxel_size.x, out.voxel_size.y, out.voxel_size.z = (float(v) for v in grid.voxel_size)
    out.size_x, out.size_y, out.size_z = grid.shape
    _encode(out, occupancy, encoding)
    out.free_label, out.unknown_label, out.label_set = labels.free, labels.unknown, labels.name
    out.class_names = list(labels.names)
    out.class_colors = byte_array(np.asarray(labels.colors, dtype=np.uint8))
    out.model, out.trained_on = occupancy.model, occupancy.trained_on
    out.cameras = list(provenance.cameras)
    out.camera_ages = array.array("f", provenance.camera_ages)
    out.missing, out.missing_causes = list(provenance.missing), list(provenance.missing.values())
    out.ego_motion = provenance.ego_motion
    out.camera_history, out.lidar_history = provenance.camera_history, provenance.lidar_history
    for name, seconds in provenance.times.items():
        setattr(out, f"{name}_time", float(seconds))
    return out


def _encode(out: SemanticOccupancy, occupancy: Occupancy, encoding: str) -> None:
    flat = np.ascontiguousarray(occupancy.labels).reshape(-1)
    confidence = None if occupancy.confidence is None else np.ascontiguousarray(occupancy.confidence).reshape(-1)
    if encoding == DENSE:
        out.encoding, out.labels = SemanticOccupancy.ENCODING_DENSE, byte_array(flat)
    elif encoding == SPARSE:
        kept = np.flatnonzero(flat != occupancy.label_set.free)
        out.encoding, out.indices = SemanticOccupancy.ENCODING_SPARSE, _word_array(kept)
        out.labels = byte_array(flat[kept])
        confidence = None if confidence is None else confidence[kept]
    elif encoding == RUN_LENGTH:
        starts = _run_starts(flat)
        out.encoding = SemanticOccupancy.ENCODING_RUN_LENGTH
        out.indices = _word_array(np.diff(starts, append=len(flat)))
        out.labels = byte_array(flat[starts])
    else:
        raise ValueError(f"encoding: {encoding!r} is not one of {DENSE}, {SPARSE}, {RUN_LENGTH}")
    if confidence is not None:
        out.confidence = byte_array(confidence)


def message_to_occupancy(message: SemanticOccupancy, *, frame: str = "ego") -> Occupancy:
    """The occupancy that a message carries.

    Args:
        message: in any encoding.
        frame: what header.frame_id means to the core: "ego" or "lidar".

    Raises:
        ValueError: an unknown encoding, arrays whose lengths do not fit the sizes, sizes beyond MOST_VOXELS, or an
            origin that is turned.
    """
    q = message.origin.orientation
    if not np.allclose(np.abs((q.x, q.y, q.z, q.w)), (0, 0, 0, 1), rtol=0, atol=1e-6):
        raise ValueError(
            f"SemanticOccupancy.origin.orientation is (x={q.x:g}, y={q.y:g}, z={q.z:g}, w={q.w:g}): expected the "
            "identity (0, 0, 0, 1); a grid that is turned in its frame is not handled"
        )
    if len(message.class_colors) != 3 * len(message.class_names):
        raise ValueError(
            f"SemanticOccupancy.class_colors has {len(message.class_colors)} values for "
            f"{len(message.class_names)} class_names; expected three (red, green, blue) a class"
        )
    size = (message.voxel_size.x, message.voxel_size.y, message.voxel_size.z)
    shape = (message.size_x, message.size_y, message.size_z)
    origin = (message.origin.position.x, message.origin.position.y, message.origin.position.z)
    labels = _decode(message, message_bytes(message.labels), rest=message.free_label)
    confidence = None
    if len(message.confidence):
        confidence = _decode(message, message_bytes(message.confidence), rest=0, one_each=True)
    x, y, z = (low + count * step for low, count, step in zip(origin, shape, size, strict=True))
    return Occupancy(
        labels=labels,
        grid=VoxelGrid(frame=frame, lower=origin, upper=(x, y, z), voxel_size=size),
        label_set=LabelSet(
            name=message.label_set,
            names=tuple(message.class_names),
            colors=tuple((int(r), int(g), int(b)) for r, g, b in np.asarray(message.class_colors).reshape(-1, 3)),
            free=message.free_label,
            unknown=message.unknown_label,
        ),
        stamp_ns=stamp_to_ns(message.header.stamp),
        confidence=confidence,
        model=message.model,
        trained_on=message.trained_on,
    )


def _decode(message: SemanticOccupancy, values: Bytes, *, rest: int, one_each: bool = False) -> Bytes:
    """(X, Y, Z) from the values of a message; ``one_each``: run length was not applied to them."""
    shape = (message.size_x, message.size_y, message.size_z)
    count = message.size_x * message.size_y * message.size_z
    words = np.frombuffer(message.indices, dtype=np.uint32)
    if count <= MOST_VOXELS:
        run_length = message.encoding == SemanticOccupancy.ENCODING_RUN_LENGTH
        if message.encoding == SemanticOccupancy.ENCODING_DENSE or (run_length and one_each):
            if len(values) == count:
                return values.reshape(shape).copy()
        elif run_length:
            if len(words) == len(values) and int(words.sum(dtype=np.uint64)) == count:
                return np.repeat(values, words).reshape(shape)
        elif message.encoding == SemanticOccupancy.ENCODING_SPARSE and len(words) == len(values):
            return _scatter(words, values, shape, rest)
    raise ValueError(
        f"SemanticOccupancy with encoding {message.encoding}, sizes {shape}, {len(values)} values and {len(words)} "
        "indices cannot be read: expected dense (0) with one value a voxel, sparse (1) with one index a value, or run "
        f"length (2) with one length a value that add up to the voxels; at most {MOST_VOXELS} voxels"
    )


def _scatter(indices: Words, values: Bytes, shape: tuple[int, int, int], rest: int) -> Bytes:
    flat = np.full(shape[0] * shape[1] * shape[2], rest, dtype=np.uint8)
    if len(indices) and int(indices.max()) >= len(flat):
        raise ValueError(
            f"SemanticOccupancy with sizes {shape} cannot be read: index {int(indices.max())} is not below {len(flat)}"
        )
    flat[indices] = values
    return flat.reshape(shape)
