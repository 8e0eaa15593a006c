"""Occupancy as a solid street of cubes, seen by a camera: exact painter's algorithm, then shading pixel by pixel.

Needs NumPy and OpenCV and nothing else: no display, no GPU, no OpenGL library.

Legend: F faces, C = 4 corners of a face, Q pixels that show something.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.canvas import PAPER, Picture
from fusionocc_core.viz.faces import TANGENTS, Faces, Floats, car_faces, floor_faces, join, voxel_faces
from fusionocc_core.viz.volume import ForwardVolume, forward_volume, palette

SUBPIXEL = 4
"""Binary digits after the point in coordinates that OpenCV draws at."""

SUPERSAMPLING = 2
"""Pixels drawn along each axis for one pixel of the picture."""

NEAR = 0.2
"""Faces with a corner closer to the camera's plane than this are left out, metres."""

SKY_TOP = (214, 225, 238)
"""The background fades from this to paper at the bottom."""

VIEW_ELEVATION, VIEW_AZIMUTH, VIEW_FIELD = 33.0, 10.0, 26.0
"""Of the default camera: degrees above the ground, degrees to the left of straight behind, vertical field of view."""

THROUGH = 0.35
"""How much the vehicle shines through what hides it."""

OUTLINE_WIDTH = 0.06
"""Of the line around each face, relative to the face's edge."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A pinhole camera in the forward frame (x forward, y left, z up), upright."""

    eye: tuple[float, float, float]
    """Metres."""
    target: tuple[float, float, float]
    """What it looks at, metres."""
    field_of_view: float = 40.0
    """Vertical, degrees."""

    def __post_init__(self) -> None:
        """Refuse cameras that do not define a picture."""
        direction = np.asarray(self.target, float) - np.asarray(self.eye, float)
        if not np.isfinite(direction).all() or np.linalg.norm(direction[:2]) < 1e-6:
            raise ValueError(
                f"View: eye={self.eye}, target={self.target}: expected finite points, not straight above each other"
            )
        if not 1.0 <= self.field_of_view <= 150.0:
            raise ValueError(f"View.field_of_view={self.field_of_view}: expected 1 to 150 degrees")

    def rotation(self) -> NDArray[np.float64]:
        """(3, 3) forward frame -> optical axes (x right, y down, z into the picture)."""
        z = np.asarray(self.target, float) - np.asarray(self.eye, float)
        z /= np.linalg.norm(z)
        x = np.cross(z, (0.0, 0.0, 1.0))
        x /= np.linalg.norm(x)
        return np.stack([x, np.cross(z, x), z])


def default_view(volume: ForwardVolume, aspect: float) -> View:
    """From behind and above, as near as shows the whole grid in a picture ``aspect`` times as wide as high."""
    ends = np.stack([volume.lower, volume.upper])
    corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    span = ends[1] - ends[0]
    ground = np.array([ends[:, 0].mean() - 0.04 * span[0], ends[:, 1].mean(), ends[0, 2]])
    elevation, azimuth = np.radians(VIEW_ELEVATION), np.radians(VIEW_AZIMUTH)
    back = np.array([-np.cos(azimuth), np.sin(azimuth), np.tan(elevation)])
    near, far = 0.1 * float(span.max()), 20.0 * float(span.max())
    for _ in range(30):
        middle = (near + far) / 2
        view = View(eye=_point(ground + middle * back), target=_point(ground), field_of_view=VIEW_FIELD)
        optical = (corners - np.asarray(view.eye)) @ view.rotation().T
        half = np.tan(np.radians(VIEW_FIELD) / 2) * np.array([aspect, 1.0])
        fits = (optical[:, 2] > NEAR).all() and (np.abs(optical[:, :2]) <= 0.98 * half * optical[:, 2:]).all()
        near, far = (near, middle) if fits else (middle, far)
    return View(eye=_point(ground + far * back), target=_point(ground), field_of_view=VIEW_FIELD)


def _point(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def perspective(occupancy: Occupancy, *, height: int = 720, width: int = 1280, view: View | None = None) -> Picture:
    """Picture (height, width, 3) of the occupied voxels and the vehicle, from behind and above unless told otherwise.

    Args:
        occupancy: The grid to draw; in the "ego" frame, or in the "lidar" frame with nuScenes axes.
        height: Pixels.
        width: Pixels.
        view: The camera, in the forward frame (x forward, y left, z up) of the grid.

    Raises:
        ValueError: a size is not positive, or the grid's frame is unknown.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height={height}, width={width}: expected positive numbers of pixels")
    volume = forward_volume(occupancy)
    canvas = Canvas(view or default_view(volume, width / height), height * SUPERSAMPLING, width * SUPERSAMPLING)
    voxels = voxel_faces(volume, palette(occupancy.label_set.colors), canvas.eye)
    canvas.paint(join(floor_faces(volume), voxels) if canvas.eye[2] > volume.lower[2] else voxels)
    canvas.paint(car_faces(volume, canvas.eye), through=THROUGH)
    picture = cv2.resize(canvas.picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


class Canvas:
    """A picture in the making: colour and depth of every pixel so far."""

    def __init__(self, view: View, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.eye = np.asarray(view.eye, np.float64)
        self.rotation = view.rotation()
        self.focal = height / 2 / np.tan(np.radians(view.field_of_view) / 2)
        fade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        rows = (1 - fade) * np.asarray(SKY_TOP, np.float32) + fade * np.asarray(PAPER, np.float32)
        self.picture: Floats = np.ascontiguousarray(np.broadcast_to(rows, (height, width, 3)), dtype=np.float32)
        self.depth: Floats = np.full((height, width), np.inf, np.float32)

    def paint(self, faces: Faces, through: float = 0.0) -> None:
        """Draw faces over what is there already, where they are nearer; elsewhere blend them in by ``through``."""
        ids = self._face_of_pixel(faces).reshape(-1)
        pixel_Q = np.flatnonzero(ids)
        face_Q = ids[pixel_Q] - 1
        axis_Q = faces.axis_F[face_Q]
        for axis in range(3):
            of_axis = np.flatnonzero(axis_Q == axis)
            self._paint_pixels(pixel_Q[of_axis], face_Q[of_axis], axis, faces, through)

    def _paint_pixels(
        self, pixel_Q: NDArray[np.int64], face_Q: NDArray[np.int32], axis: int, faces: Faces, through: float
    ) -> None:
        depth_Q, color_Q3 = self._shade(pixel_Q, face_Q, axis, faces)
        picture, depth = self.picture.reshape(-1, 3), self.depth.reshape(-1)
        before_Q = depth[pixel_Q]
        nearer_Q = depth_Q < before_Q
        if through:
            weight_Q1 = np.where(nearer_Q, np.float32(1), np.float32(through))[:, None]
            color_Q3 = weight_Q1 * color_Q3 + (1 - weight_Q1) * picture[pixel_Q]
            picture[pixel_Q] = color_Q3
        elif nearer_Q.all():
            picture[pixel_Q] = color_Q3
        else:
            picture[pixel_Q[nearer_Q]] = color_Q3[nearer_Q]
        depth[pixel_Q] = np.minimum(depth_Q, before_Q)

    def _face_of_pixel(self, faces: Faces) -> NDArray[np.int32]:
        """(height, width) 1 + index of the face that each pixel shows, 0 for none."""
        corner = np.zeros((len(faces.axis_F), 4, 3))
        for k, (u, v) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
            reach = np.zeros_like(faces.extent_F3)
            rows = np.arange(len(reach))
            for amount, tangent in ((u, 0), (v, 1)):
                axis = TANGENTS[faces.axis_F, tangent]
                reach[rows, axis] = amount * faces.extent_F3[rows, axis]
            corner[:, k] = faces.origin_F3 + reach
        optical = (corner - self.eye) @ self.rotation.T
        depth = np.maximum(optical[..., 2], NEAR)
        pixels = optical[..., :2] / depth[..., None] * self.focal + np.array([self.width, self.height]) / 2 - 0.5
        inside = (pixels.max(axis=1) >= 0) & (pixels.min(axis=1) <= (self.width - 1, self.height - 1))
        visible = np.flatnonzero((optical[..., 2].min(axis=1) > NEAR) & inside.all(axis=1))
        outline = np.round(pixels[visible] * 2**SUBPIXEL).astype(np.int32)
        ids = np.zeros((self.height, self.width), np.int32)
        for number, points in zip((visible + 1).tolist(), outline, strict=True):
            cv2.fillConvexPoly(ids, points, number, cv2.LINE_8, SUBPIXEL)
        return ids

    def _shade(
        self, pixel_Q: NDArray[np.int64], face_Q: NDArray[np.int32], axis: int, faces: Faces
    ) -> tuple[Floats, Floats]:
        """Depth (Q,) in metres and colour (Q, 3) of pixels, each on the plane of its face; all faces across an axis."""
        rotation, eye, focal = self.rotation.astype(np.float32), self.eye.astype(np.float32), np.float32(self.focal)
        v_Q, u_Q = np.divmod(pixel_Q.astype(np.int32), np.int32(self.width))
        across_Q = (u_Q.astype(np.float32) + np.float32(0.5 - self.width / 2)) / focal
        down_Q = (v_Q.astype(np.float32) + np.float32(0.5 - self.height / 2)) / focal

        def ray(along: int) -> Floats:
            return np.asarray(rotation[0, along] * across_Q + rotation[1, along] * down_Q + rotation[2, along])

        depth_Q = (faces.origin_F3[:, axis] - eye[axis])[face_Q] / ray(axis)
        place = []
        for along in TANGENTS[axis].tolist():
            on_face_Q = ray(along) * depth_Q - (faces.origin_F3[:, along] - eye[along])[face_Q]
            place.append(np.clip(on_face_Q / faces.extent_F3[:, along][face_Q], 0, 1))
        a_Q, b_Q = place
        light_QC = faces.light_FC[face_Q]
        light_Q = (light_QC[:, 0] * (1 - a_Q) + light_QC[:, 1] * a_Q) * (1 - b_Q)
        light_Q += (light_QC[:, 2] * (1 - a_Q) + light_QC[:, 3] * a_Q) * b_Q
        border_Q = np.minimum(np.minimum(a_Q, 1 - a_Q), np.minimum(b_Q, 1 - b_Q))
        line_Q = np.clip(1.5 - border_Q / OUTLINE_WIDTH, 0, 1)
        # Lines much thinner than a pixel would shimmer: small faces get the same darkness spread evenly.
        edge_pixels_Q = faces.extent_F3.max(axis=1)[face_Q] * focal / depth_Q
        near_Q = np.clip((edge_pixels_Q - 6) / 10, 0, 1)
        light_Q *= 1 - faces.outline_F[face_Q] * (near_Q * line_Q + (1 - near_Q) * 4 * OUTLINE_WIDTH)
        return depth_Q, faces.color_F3[face_Q] * light_Q[:, None]
