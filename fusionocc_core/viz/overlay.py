"""What lies over a camera's picture: LiDAR points by distance, voxels by class, annotated boxes. No GPU.

Legend: P points, F faces, C = 4 corners of a face, E = 12 edges of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.geometry import inverse
from fusionocc_core.structures import CameraImage, LidarSweep, Occupancy, SensorFrame
from fusionocc_core.viz.canvas import Picture, blank
from fusionocc_core.viz.faces import TANGENTS, voxel_faces
from fusionocc_core.viz.volume import forward_volume, palette

NEAR = 0.5
"""What is closer to the camera's plane than this is not drawn, metres."""

FAR = 50.0
"""Distance at which the colours of points end, metres."""

BOX_COLOR = (60, 255, 210)

SUBPIXEL = 4
"""Binary digits after the point in coordinates that OpenCV draws at."""

_EDGES = np.array([(0, 1), (0, 2), (1, 3), (2, 3), (4, 5), (4, 6), (5, 7), (6, 7), (0, 4), (1, 5), (2, 6), (3, 7)])


def distance_colors(distances: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(P, 3) sRGB of distances in metres: near is yellow, FAR and beyond dark blue; brightness falls all the way."""
    scaled = np.clip(255 * (1 - np.asarray(distances, np.float64) / FAR), 0, 255).astype(np.uint8)
    # One column: OpenCV's tables want a picture.
    bgr = cv2.applyColorMap(scaled.reshape(-1, 1), cv2.COLORMAP_PLASMA).reshape(-1, 3)
    return np.ascontiguousarray(bgr[:, ::-1])


def project_points(
    points: NDArray[np.floating], points2cam: NDArray[np.float64], camera: CameraImage
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Pixels (P, 2), depths (P,) in metres and whether each of the points (P, 3 or more) falls into the picture."""
    optical = np.asarray(points, np.float64)[:, :3] @ points2cam[:3, :3].T + points2cam[:3, 3]
    depths = optical[:, 2]
    pixels = optical @ camera.intrinsics.T
    uv = pixels[:, :2] / np.maximum(depths, NEAR)[:, None]
    height, width = camera.image.shape[:2]
    inside = (depths > NEAR) & (uv >= -0.5).all(axis=1) & (uv[:, 0] < width - 0.5) & (uv[:, 1] < height - 0.5)
    return uv, depths, inside


def cloud_from_above(lidar: LidarSweep, size: int, *, reach: float = FAR) -> Picture:
    """Picture (size, size, 3) of a cloud from straight above, forward up, the vehicle in the middle, by distance.

    Args:
        lidar: the cloud.
        size: of the picture, pixels.
        reach: from the vehicle to the picture's edge, metres.
    """
    in_ego = lidar.points[:, :3].astype(np.float64) @ lidar.lidar2ego[:3, :3].T + lidar.lidar2ego[:3, 3]
    cells = np.floor((1 - in_ego[:, :2] / reach) * size / 2).astype(np.int64)
    inside = ((cells >= 0) & (cells < size)).all(axis=1)
    picture = blank(size, size)
    picture[tuple(cells[inside].T)] = distance_colors(np.linalg.norm(in_ego[inside, :2], axis=1))
    return picture


def camera_overlay(
    camera: CameraImage,
    ego2global: NDArray[np.float64],
    *,
    lidar: LidarSweep | None = None,
    occupancy: Occupancy | None = None,
    boxes: Sequence[Box] = (),
    opacity: float = 0.55,
) -> Picture:
    """The camera's picture (H, W, 3) with voxels, then points, then boxes over it; a copy.

    Everything is brought to the moment of the picture: what the vehicle drove between the two stamps is in it.

    Args:
        camera: The picture.
        ego2global: (4, 4) of ``occupancy`` and ``boxes``, at the reference time.
        lidar: Points, coloured by distance.
        occupancy: Visible faces of its voxels in the colours of their classes; on an "ego" grid.
        boxes: In the ego frame.
        opacity: Of voxels, 0..1.

    Raises:
        ValueError: the opacity is no share, or the occupancy is not on an "ego" grid.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity}: expected 0 to 1")
    picture = camera.image.copy()
    global2cam = inverse(camera.ego2global @ camera.cam2ego)
    ego2cam = np.asarray(global2cam @ ego2global)
    if occupancy is not None:
        _draw_voxels(picture, camera, occupancy, ego2cam, opacity)
    if lidar is not None:
        _draw_points(picture, camera, lidar, np.asarray(global2cam @ lidar.ego2global @ lidar.lidar2ego))
    for box in boxes:
        _draw_box(picture, camera, box, ego2cam)
    return picture


def overlaid(frame: SensorFrame, *, occupancy: Occupancy | None = None, boxes: Sequence[Box] = ()) -> SensorFrame:
    """The frame with points, voxels and boxes drawn into its pictures, for ``camera_mosaic`` and its like."""
    drawn = (
        camera_overlay(camera, frame.ego2global, lidar=frame.lidar, occupancy=occupancy, boxes=boxes)
        for camera in frame.cameras
    )
    return replace(frame, cameras=tuple(replace(c, image=p) for c, p in zip(frame.cameras, drawn, strict=True)))


def _draw_points(picture: Picture, camera: CameraImage, lidar: LidarSweep, lidar2cam: NDArray[np.float64]) -> None:
    """Far points first, each a small square whose size goes with the picture's."""
    uv, depths, inside = project_points(lidar.points, lidar2cam, camera)
    order = np.flatnonzero(inside)[np.argsort(-depths[inside], kind="stable")]
    colors = distance_colors(depths[order])
    columns, rows = np.round(uv[order]).astype(np.int64).T
    height, width = picture.shape[:2]
    half = max(0, round(width / 1000))
    for dy in range(-half, half + 1):
        for dx in range(-half, half + 1):
            picture[np.clip(rows + dy, 0, height - 1), np.clip(columns + dx, 0, width - 1)] = colors


def _draw_voxels(
    picture: Picture, camera: CameraImage, occupancy: Occupancy, ego2cam: NDArray[np.float64], opacity: float
) -> None:
    """Painted from far to near as seen from the camera, then blended in."""
    if occupancy.grid.frame != "ego":
        raise ValueError(f"occupancy.grid.frame={occupancy.grid.frame!r}: voxels over pictures want an 'ego' grid")
    eye = np.asarray(inverse(ego2cam))[:3, 3]
    faces = voxel_faces(forward_volume(occupancy), palette(occupancy.label_set.colors), eye)
    corner = np.zeros((len(faces.axis_F), 4, 3))
    rows = np.arange(len(corner))
    for k, (a, b) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
        corner[:, k] = faces.origin_F3
        for amount, tangent in ((a, 0), (b, 1)):
            axis = TANGENTS[faces.axis_F, tangent]
            corner[rows, k, axis] += amount * faces.extent_F3[rows, axis]
    uv, depths, inside = project_points(corner.reshape(-1, 3), ego2cam, camera)
    drawn = np.flatnonzero((depths.reshape(-1, 4) > NEAR).all(axis=1) & inside.reshape(-1, 4).any(axis=1))
    shade = faces.light_FC.mean(axis=1, keepdims=True)
    colors = np.clip(faces.color_F3 * shade, 0, 255)[drawn].tolist()
    outline = np.round(uv.reshape(-1, 4, 2)[drawn].clip(-4000, 8000) * 2**SUBPIXEL).astype(np.int32)
    layer = picture.copy()
    for points, color in zip(outline, colors, strict=True):
        cv2.fillConvexPoly(layer, points, color, cv2.LINE_8, SUBPIXEL)
    cv2.addWeighted(layer, opacity, picture, 1 - opacity, 0, dst=picture)


def _draw_box(picture: Picture, camera: CameraImage, box: Box, ego2cam: NDArray[np.float64]) -> None:
    """The edges that lie wholly in front of the camera."""
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = box.center + (signs * box.size_lwh / 2) @ box.rotation.T
    uv, depths, inside = project_points(corners, ego2cam, camera)
    if not inside.any():
        return
    width = max(1, round(picture.shape[1] / 800))
    points = np.round(uv.clip(-4000, 8000) * 2**SUBPIXEL).astype(np.int32)
    for start, end in _EDGES:
        if depths[start] > NEAR and depths[end] > NEAR:
            ends = (points[start].tolist(), points[end].tolist())
            cv2.line(picture, *ends, BOX_COLOR, width, cv2.LINE_AA, SUBPIXEL)
