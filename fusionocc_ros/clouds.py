"""Bytes of point clouds to arrays with the columns that networks expect. NumPy only, no ROS."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusionocc_ros.causes import BAD_CLOUD, EMPTY_CLOUD, TOO_LARGE, DropFrame

DATATYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""sensor_msgs/PointField.datatype to NumPy."""
INTENSITY_NAMES = ("intensity", "i")
RING_NAMES = ("ring", "channel", "line")
TIME_NAMES = ("time", "t", "timestamp", "time_stamp", "time_offset", "offset_time")
LONGEST_SWEEP_S = 1.0
"""A point's time further than this from the cloud's stamp is not understood."""
MAX_POINTS = 2_000_000
FARTHEST_M = 1e9
"""No sensor measures as far: such points are left out like those that are not finite, which sums over them would be."""


@dataclass(frozen=True, kw_only=True)
class BeamLayout:
    """A spinning LiDAR's beams, from which a ring is derived where the cloud has none.

    The defaults are those of the sensor behind nuScenes: 32 beams, evenly spaced.
    """

    beams: int = 32
    lowest_deg: float = -30.67
    """Elevation of ring 0."""
    highest_deg: float = 10.67
    """Elevation of the last ring."""

    def rings(self, xyz: NDArray[np.float32]) -> NDArray[np.float32]:
        """The ring whose elevation is nearest, for points (P, 3) in the sensor's axes (z up)."""
        elevation = np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))
        spacing = (self.highest_deg - self.lowest_deg) / max(self.beams - 1, 1)
        return np.clip(np.rint((elevation - self.lowest_deg) / spacing), 0, self.beams - 1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class CloudLayout:
    """Where a cloud's values lie: what a PointCloud2 says besides its data."""

    fields: tuple[tuple[str, int, int, int], ...]
    """(name, offset in bytes, datatype, count) of each field."""
    height: int
    width: int
    point_step: int
    row_step: int
    is_bigendian: bool


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """A readable cloud."""

    points: NDArray[np.float32]
    """(P, 5): x, y, z, intensity, ring; finite."""
    dropped: int
    """Points left out because x, y or z was not finite."""
    filled: tuple[str, ...] = field(default=())
    """Columns that the cloud did not have: "intensity" is 0, "ring" derived from the elevation."""
    times_ns: NDArray[np.int64] | None = None
    """(P,) when each point was measured, nanoseconds after the cloud's stamp; None where the cloud does not say."""
    odd_times: bool = False
    """There is a field of times, but what it means is not understood."""


def _structure(layout: CloudLayout, name: str) -> np.dtype[np.void]:
    order = ">" if layout.is_bigendian else "<"
    names, formats, offsets = [], [], []
    for field_name, offset, datatype, count in layout.fields:
        kind = DATATYPES.get(datatype)
        if kind is None or field_name in names or not field_name:
            continue  # Padding and private extensions are not ours to read.
        if offset + np.dtype(kind).itemsize * max(count, 1) > layout.point_step:
            raise DropFrame(
                BAD_CLOUD,
                f"{name}: PointCloud2 field {field_name!r} at offset {offset} reaches past the end of a point "
                f"(point_step {layout.point_step})",
            )
        names.append(field_name)
        formats.append(order + kind)
        offsets.append(offset)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": layout.point_step})


def _check_layout(num_bytes: int, layout: CloudLayout, name: str, max_points: int) -> np.dtype[np.void]:
    """The structure of a point, after checking that the bytes of a PointCloud2 hold what its layout says.

    Raises:
        DropFrame: no points, or too many; truncated; sizes or fields that contradict each other.
    """
    row = layout.width * layout.point_step
    if layout.width == 0 or layout.height == 0:
        raise DropFrame(
            EMPTY_CLOUD, f"{name}: PointCloud2 is {layout.width}x{layout.height}: the sensor sent no points"
        )
    if layout.width * layout.height > max_points:
        raise DropFrame(
            TOO_LARGE,
            f"{name}: PointCloud2 has {layout.width * layout.height} points, more than lidar.max_points ({max_points})",
        )
    if layout.point_step < 1 or (layout.row_step < row and layout.height > 1):
        raise DropFrame(
            BAD_CLOUD,
            f"{name}: PointCloud2 has point_step {layout.point_step} and row_step {layout.row_step}; {layout.width} "
            f"points a row need a row_step of at least {row}",
        )
    needed = layout.row_step * (layout.height - 1) + row
    if num_bytes < needed:
        raise DropFrame(
            BAD_CLOUD,
            f"{name}: PointCloud2.data has {num_bytes} bytes, {layout.width}x{layout.height} points of "
            f"{layout.point_step} bytes need {needed}: truncated",
        )
    return _structure(layout, name)


def check_for_sensor_msgs_py(num_bytes: int, layout: CloudLayout, name: str, *, max_points: int = MAX_POINTS) -> None:
    """Refuse what sensor_msgs_py would fail on, or read wrongly.

    Raises:
        DropFrame: as for read_cloud; also padded rows and fields of unknown datatype, which read_cloud can read.
    """
    _check_layout(num_bytes, layout, name, max_points)
    problem = ""
    unknown = [field_name for field_name, _, datatype, _ in layout.fields if datatype not in DATATYPES]
    if unknown:
        problem = f"fields of unknown datatype ({', '.join(unknown)})"
    elif layout.height > 1 and layout.row_step != layout.width * layout.point_step:
        problem = f"padded rows (row_step {layout.row_step}, {layout.width} points of {layout.point_step} bytes)"
    if problem:
        raise DropFrame(
            BAD_CLOUD,
            f"{name}: PointCloud2 has {problem}, which sensor_msgs_py cannot read; set lidar.reader to builtin",
        )


def _records(data: NDArray[np.uint8], layout: CloudLayout, name: str, max_points: int) -> NDArray[np.void]:
    structure = _check_layout(len(data), layout, name, max_points)
    row = layout.width * layout.point_step
    rows = np.lib.stride_tricks.as_strided(data, (layout.height, row), (layout.row_step, 1))
    return np.ascontiguousarray(rows).reshape(-1).view(structure)


def read_cloud(
    data: NDArray[np.uint8],
    layout: CloudLayout,
    *,
    beams: BeamLayout,
    intensity_scale: float,
    name: str,
    stamp_ns: int = 0,
    max_points: int = MAX_POINTS,
) -> Cloud:
    """Points (P, 5) from the bytes of a PointCloud2, whatever the order, offsets and types of its fields.

    Args:
        data: the bytes, one-dimensional.
        layout: how they are to be read.
        beams: from which rings are derived where the cloud has none.
        intensity_scale: factor that brings the sensor's intensity to 0..255.
        name: the topic, for messages.
        stamp_ns: the cloud's, for times of points that are absolute.
        max_points: more are refused.

    Raises:
        DropFrame: no x, y, z; truncated; empty, without finite points, or too large.
    """
    records = _records(data, layout, name, max_points)
    return points_from_records(records, beams=beams, intensity_scale=intensity_scale, name=name, stamp_ns=stamp_ns)


def points_from_records(
    records: NDArray[np.void], *, beams: BeamLayout, intensity_scale: float, name: str, stamp_ns: int = 0
) -> Cloud:
    """Points (P, 5) from a structured array with a field for each value; arguments and errors as for read_cloud."""
    names = records.dtype.names or ()
    missing = [axis for axis in "xyz" if axis not in names]
    if missing:
        raise DropFrame(
            BAD_CLOUD,
            f"{name}: PointCloud2 has no field {', '.join(missing)}; its fields are {', '.join(names) or 'none'}; "
            "expected x, y, z and, where the sensor has them, intensity and ring",
        )
    points = np.zeros((len(records), 5), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, axis in enumerate("xyz"):
            points[:, column] = records[axis]
    usable = np.ones(len(points), dtype=bool)
    for column in range(3):
        usable &= np.abs(points[:, column]) < FARTHEST_M
    dropped = len(records) - int(usable.sum())
    if dropped == len(records):
        raise DropFrame(EMPTY_CLOUD, f"{name}: none of the {len(records)} points of the PointCloud2 is finite")
    if dropped:
        records, points = records[usable], points[usable]
    intensity = next((n for n in INTENSITY_NAMES if n in names), None)
    if intensity is not None:
        points[:, 3] = _finite(records[intensity], intensity_scale)
    ring = next((n for n in RING_NAMES if n in names), None)
    points[:, 4] = beams.rings(points[:, :3]) if ring is None else _finite(records[ring], 1.0)
    filled = tuple(column for column, found in (("intensity", intensity), ("ring", ring)) if found is None)
    time = next((n for n in TIME_NAMES if n in names), None)
    times_ns = None if time is None else _times_ns(records[time], stamp_ns)
    return Cloud(
        points=points,
        dropped=dropped,
        filled=filled,
        times_ns=times_ns,
        odd_times=time is not None and times_ns is None,
    )


def _finite(values: NDArray[np.generic], scale: float) -> NDArray[np.float32]:
    """The values times ``scale``; 0 where that is not finite."""
    out = values.astype(np.float32)
    if scale != 1.0:
        out *= np.float32(scale)
    if not np.isfinite(out).all():
        out[~np.isfinite(out)] = 0.0
    return out


def _times_ns(values: NDArray[np.generic], stamp_ns: int) -> NDArray[np.int64] | None:
    """Nanoseconds after the stamp, from the habits of drivers; None where the numbers fit none of them.

    Integers are nanoseconds after the stamp (Ouster, Autoware) or since the epoch (Livox); floating-point numbers are
    seconds after the stamp (Velodyne) or since the epoch (Hesai, RoboSense), or nanoseconds since the epoch (Livox).
    """
    longest_ns = int(LONGEST_SWEEP_S * 1e9)
    if np.issubdtype(values.dtype, np.integer):
        whole = values.astype(np.int64)
        guesses = [whole, whole - stamp_ns]
    else:
        finite = np.nan_to_num(values.astype(np.float64), nan=np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            floats = [finite * 1e9, (finite - stamp_ns / 1e9) * 1e9, finite - stamp_ns]
        guesses = [np.clip(f, -2.0 * longest_ns, 2.0 * longest_ns).astype(np.int64) for f in floats]
    return next((guess for guess in guesses if np.abs(guess).max() <= longest_ns), None)
