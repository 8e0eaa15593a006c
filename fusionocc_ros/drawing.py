"""Voxels for screens: PointCloud2, MarkerArray, Foxglove's VoxelGrid, pictures of depth and confidence."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.grids import LabelSet
from fusionocc_core.structures import Occupancy
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.marker_bytes import markers_to_bytes
from fusionocc_ros.occupancy_messages import byte_array, grid_to_pose
from fusionocc_ros.voxels import occupied_mask, packed_colors, surface_mask

_VOXEL_OFFSETS = {"x": 0, "y": 4, "z": 8, "rgb": 12, "label": 16, "confidence": 17}
_VOXEL_POINT = np.dtype(
    {
        "names": list(_VOXEL_OFFSETS),
        "formats": ["<f4", "<f4", "<f4", "<u4", "u1", "u1"],
        "offsets": list(_VOXEL_OFFSETS.values()),
        "itemsize": 20,
    }
)
_VOXEL_FIELDS = [
    # rgb is a float in name only: rviz and PCL read the bits of 0x00RRGGBB from it.
    PointField(name=name, offset=offset, datatype=PointField.FLOAT32 if offset < 16 else PointField.UINT8, count=1)
    for name, offset in _VOXEL_OFFSETS.items()
]


def occupied_indices(occupancy: Occupancy, drawn: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices (P,) and centres (P, 3) in metres, in the grid's frame, of the voxels that are to be drawn."""
    grid = occupancy.grid
    flat = np.flatnonzero(drawn)
    centers = np.empty((len(flat), 3), dtype=np.float32)
    described = zip(grid.lower, grid.shape, grid.voxel_size, strict=True)
    axes = [lower + (np.arange(n) + 0.5) * size for lower, n, size in described]
    rest, z = np.divmod(flat, grid.shape[2])
    x, y = np.divmod(rest, grid.shape[1])
    for column, (values, index) in enumerate(zip(axes, (x, y, z), strict=True)):
        centers[:, column] = values.astype(np.float32)[index]
    return flat, centers


def occupancy_to_cloud(occupancy: Occupancy, frame_id: str) -> PointCloud2:
    """Centres of all occupied voxels, coloured by class; fields x y z rgb label confidence (255 where not computed)."""
    flat, centers = occupied_indices(occupancy, occupied_mask(occupancy))
    points = np.zeros(len(flat), dtype=_VOXEL_POINT)
    for column, axis in enumerate("xyz"):
        points[axis] = centers[:, column]
    points["label"] = occupancy.labels.reshape(-1)[flat]
    points["rgb"] = packed_colors(occupancy.label_set)[points["label"]]
    points["confidence"] = 255 if occupancy.confidence is None else occupancy.confidence.reshape(-1)[flat]
    out = PointCloud2(
        height=1, width=len(points), point_step=_VOXEL_POINT.itemsize, is_dense=True, fields=_VOXEL_FIELDS
    )
    out.header.stamp, out.header.frame_id = ns_to_stamp(occupancy.stamp_ns), frame_id
    out.row_step = out.point_step * out.width
    out.data = byte_array(points.view(np.uint8))
    return out


def _empty_marker(occupancy: Occupancy, frame_id: str, label: int, alpha: float, *, drawn: bool) -> Marker:
    marker = Marker(ns=occupancy.label_set.name, id=label, type=Marker.CUBE_LIST)
    marker.header.stamp, marker.header.frame_id = ns_to_stamp(occupancy.stamp_ns), frame_id
    marker.action = Marker.ADD if drawn else Marker.DELETE
    marker.pose.orientation.w = 1.0
    marker.scale.x, marker.scale.y, marker.scale.z = (float(v) for v in occupancy.grid.voxel_size)
    r, g, b = occupancy.label_set.colors[label]
    marker.color = ColorRGBA(r=r / 255, g=g / 255, b=b / 255, a=alpha)
    return marker


def marker_parts(
    occupancy: Occupancy, frame_id: str, *, alpha: float, surface_only: bool
) -> list[tuple[Marker, NDArray[np.float64]]]:
    """One CUBE_LIST for every class but free, and its points (P, 3), which the marker does not hold.

    ADD where there are voxels, DELETE where not, so that none goes stale.

    Args:
        occupancy: the voxels.
        frame_id: that of the grid.
        alpha: opacity, 0..1.
        surface_only: leave out voxels that are hidden on all six sides.
    """
    drawn = occupied_mask(occupancy)
    flat, centers = occupied_indices(occupancy, surface_mask(drawn) if surface_only else drawn)
    labels = occupancy.labels.reshape(-1)[flat]
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(257))
    points = centers[order].astype(np.float64)
    parts = []
    for label in range(occupancy.label_set.num):
        if label != occupancy.label_set.free:
            mine = points[ends[label] : ends[label + 1]]
            parts.append((_empty_marker(occupancy, frame_id, label, alpha, drawn=len(mine) > 0), mine))
    return parts


def occupancy_to_markers(occupancy: Occupancy, frame_id: str, *, alpha: float, surface_only: bool) -> bytes:
    """A serialised MarkerArray of marker_parts: Point objects of all voxels would cost ten times as much."""
    return markers_to_bytes(marker_parts(occupancy, frame_id, alpha=alpha, surface_only=surface_only))


def clearing_markers() -> MarkerArray:
    """Takes every marker off the screen."""
    return MarkerArray(markers=[Marker(action=Marker.DELETEALL)])


def occupancy_to_foxglove(occupancy: Occupancy, frame_id: str, messages: Any) -> Any:
    """A foxglove_msgs/VoxelGrid: red, green, blue, alpha and label of every voxel; alpha 0 where nothing is drawn.

    Args:
        occupancy: the voxels.
        frame_id: that of the grid.
        messages: the module foxglove_msgs.msg.
    """
    grid = occupancy.grid
    x, y, _ = grid.shape
    names = ("red", "green", "blue", "alpha", "label")
    stride = len(names)
    cells = _foxglove_colors(occupancy.label_set)[occupancy.labels.transpose(2, 1, 0)]
    cells[..., 4] = occupancy.labels.transpose(2, 1, 0)
    out = messages.VoxelGrid()
    out.timestamp, out.frame_id = ns_to_stamp(occupancy.stamp_ns), frame_id
    out.pose = grid_to_pose(grid)
    out.row_count, out.column_count = y, x
    out.cell_size.x, out.cell_size.y, out.cell_size.z = (float(v) for v in grid.voxel_size)
    out.slice_stride, out.row_stride, out.cell_stride = stride * x * y, stride * x, stride
    kind = messages.PackedElementField.UINT8
    out.fields = [messages.PackedElementField(name=name, offset=k, type=kind) for k, name in enumerate(names)]
    out.data = byte_array(cells)
    return out


def _foxglove_colors(labels: LabelSet) -> NDArray[np.uint8]:
    """(256, 5): red, green, blue, alpha, room for the label; zeros for what is free or unknown."""
    out = np.zeros((256, 5), dtype=np.uint8)
    out[: labels.num, :3] = labels.colors
    out[: labels.num, 3] = 255
    out[labels.free] = 0
    return out


def picture_message(pixels: NDArray[Any], *, stamp_ns: int, frame_id: str) -> Image:
    """An Image of float32 (32FC1) or uint8 (mono8) pixels (H, W)."""
    encodings = {"float32": "32FC1", "uint8": "mono8"}
    height, width = pixels.shape
    out = Image(height=height, width=width, encoding=encodings[pixels.dtype.name], step=width * pixels.itemsize)
    out.header.stamp, out.header.frame_id = ns_to_stamp(stamp_ns), frame_id
    out.data = array.array("B", np.ascontiguousarray(pixels).tobytes())
    return out
