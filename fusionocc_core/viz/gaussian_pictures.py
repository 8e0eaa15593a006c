"""Gaussians as lit ellipsoids, from straight above and in perspective: every pixel asks which one its ray meets first.

Needs NumPy and OpenCV and nothing else: no display, no GPU, no OpenGL library.

Legend: G Gaussians, Q pairs of Gaussian and pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.structures import Occupancy
from fusionocc_core.viz.birds_eye import draw_marks
from fusionocc_core.viz.canvas import Picture, blank
from fusionocc_core.viz.faces import Floats, car_faces, floor_faces
from fusionocc_core.viz.perspective import NEAR, SUPERSAMPLING, THROUGH, Canvas, View, default_view
from fusionocc_core.viz.volume import SUN, ForwardVolume, forward_volume, palette

AMBIENT, SKY, SUNLIGHT = 0.5, 0.2, 0.35
"""Brightness of every place, what looking up adds to it, and what looking at the sun adds."""
PAIRS_AT_ONCE = 2**20
"""Pairs of ellipsoid and pixel that are looked at together; decides the memory, a few hundred megabytes."""


@dataclass(frozen=True, kw_only=True)
class EllipsoidStyle:
    """Which Gaussians are drawn, and how large."""

    deviations: float = 1.0
    """Half an ellipsoid's axes, in standard deviations. At 1 a probabilistic Gaussian occupies its surface with
    probability 0.61."""
    least_opacity: float = 0.1
    """Gaussians below this are left out."""

    def __post_init__(self) -> None:
        """Refuse ellipsoids without a size."""
        if not (np.isfinite(self.deviations) and self.deviations > 0):
            raise ValueError(f"EllipsoidStyle.deviations={self.deviations}: expected a positive number")


def gaussians_from_above(
    occupancy: Occupancy, *, voxel_pixels: int = 4, marks: bool = True, style: EllipsoidStyle | None = None
) -> Picture:
    """Picture (X * voxel_pixels, Y * voxel_pixels, 3) of ellipsoids in the grid's range; X, Y along forward and left.

    Args:
        occupancy: with Gaussians; their grid in the "ego" frame, or in the "lidar" frame with nuScenes axes.
        voxel_pixels: pixels an edge of a voxel of the grid.
        marks: draw the vehicle, rings every 10 m and a scale bar.
        style: None for the defaults.

    Raises:
        ValueError: the occupancy has no Gaussians, voxel_pixels is not positive, or the grid's frame is unknown.
    """
    if voxel_pixels < 1:
        raise ValueError(f"voxel_pixels={voxel_pixels}: expected at least 1")
    volume = forward_volume(occupancy)
    ellipsoids = _ellipsoids(occupancy, style or EllipsoidStyle())
    height, width = (SUPERSAMPLING * voxel_pixels * count for count in volume.labels.shape[:2])
    scene = _Scene(picture=blank(height, width).astype(np.float32), depth=np.full((height, width), np.inf, np.float32))
    pixels_a_metre = SUPERSAMPLING * voxel_pixels / volume.voxel_size
    # Camera axes: right, down, into the picture = right of the vehicle, backwards, downwards.
    seen = ellipsoids.turned(np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1.0]]), volume.upper)
    half_G3 = seen.half_extents()
    for index_G in seen.in_chunks(
        (seen.means_G3[:, [0, 1]] - half_G3[:, :2]) * pixels_a_metre[[1, 0]],
        (seen.means_G3[:, [0, 1]] + half_G3[:, :2]) * pixels_a_metre[[1, 0]],
        scene,
    ):
        starts_Q3 = np.zeros((len(index_G.gaussian_Q), 3))
        starts_Q3[:, 0] = (index_G.u_Q + 0.5) / pixels_a_metre[1]
        starts_Q3[:, 1] = (index_G.v_Q + 0.5) / pixels_a_metre[0]
        starts_Q3[:, 2] = -1e4  # above everything
        scene.paint(seen, index_G, starts_Q3, np.broadcast_to(np.array([0.0, 0.0, 1.0]), starts_Q3.shape))
    picture = scene.finished(height // SUPERSAMPLING, width // SUPERSAMPLING)
    if marks:
        draw_marks(picture, volume, voxel_pixels)
    return picture


def gaussians_in_perspective(
    occupancy: Occupancy,
    *,
    height: int = 720,
    width: int = 1280,
    view: View | None = None,
    style: EllipsoidStyle | None = None,
) -> Picture:
    """Picture (height, width, 3) of the ellipsoids and the vehicle, from behind and above unless told otherwise.

    Ellipsoids that reach behind the camera's plane are left out.

    Args:
        occupancy: with Gaussians; their grid in the "ego" frame, or in the "lidar" frame with nuScenes axes.
        height: pixels.
        width: pixels.
        view: the camera, in the forward frame (x forward, y left, z up) of the grid.
        style: None for the defaults.

    Raises:
        ValueError: the occupancy has no Gaussians, a size is not positive, or the grid's frame is unknown.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height={height}, width={width}: expected positive numbers of pixels")
    volume = forward_volume(occupancy)
    ellipsoids = _ellipsoids(occupancy, style or EllipsoidStyle())
    canvas = Canvas(view or default_view(volume, width / height), height * SUPERSAMPLING, width * SUPERSAMPLING)
    if canvas.eye[2] > volume.lower[2]:
        canvas.paint(floor_faces(volume))
    seen = ellipsoids.turned(canvas.rotation, canvas.eye)
    seen = seen.select(seen.means_G3[:, 2] - seen.half_extents()[:, 2] > NEAR)
    middle = np.array([canvas.width, canvas.height]) / 2
    low_G2, high_G2 = (np.stack([_outline(seen, axis, sign) for axis in (0, 1)], axis=1) for sign in (-1, 1))
    scene = _Scene(picture=canvas.picture, depth=canvas.depth)
    for pairs in seen.in_chunks(low_G2 * canvas.focal + middle, high_G2 * canvas.focal + middle, scene):
        rays_Q3 = np.stack([pairs.u_Q + 0.5 - middle[0], pairs.v_Q + 0.5 - middle[1]], axis=1) / canvas.focal
        rays_Q3 = np.concatenate([rays_Q3, np.ones_like(rays_Q3[:, :1])], axis=1)
        scene.paint(seen, pairs, np.zeros_like(rays_Q3), rays_Q3)
    canvas.paint(car_faces(volume, canvas.eye), through=THROUGH)
    return scene.finished(height, width)


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Pixels of a picture that an ellipsoid may show in."""

    gaussian_Q: NDArray[np.int64]
    u_Q: NDArray[np.int64]
    v_Q: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Ellipsoids:
    """In some frame; where the sun and the sky are in it."""

    means_G3: NDArray[np.float64]
    axes_G33: NDArray[np.float64]
    """Rows: unit axes."""
    radii_G3: NDArray[np.float64]
    color_G3: Floats
    sun_3: NDArray[np.float64]
    up_3: NDArray[np.float64]

    def turned(self, rotation_33: NDArray[np.float64], origin_3: NDArray[np.float64]) -> _Ellipsoids:
        """The same in the frame with this origin whose axes are the rotation's rows."""
        return replace(
            self,
            means_G3=(self.means_G3 - origin_3) @ rotation_33.T,
            axes_G33=self.axes_G33 @ rotation_33.T,
            sun_3=rotation_33 @ self.sun_3,
            up_3=rotation_33 @ self.up_3,
        )

    def select(self, index: NDArray[np.bool_]) -> _Ellipsoids:
        """Some of them."""
        names = ("means_G3", "axes_G33", "radii_G3", "color_G3")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def squares_G33(self) -> NDArray[np.float64]:
        """Matrices S with half extents sqrt(n' S n) along any direction n."""
        scaled = self.axes_G33 * self.radii_G3[:, :, None]
        squares: NDArray[np.float64] = np.einsum("gai,gaj->gij", scaled, scaled)
        return squares

    def half_extents(self) -> NDArray[np.float64]:
        """(G, 3) along the frame's axes."""
        return np.sqrt(np.einsum("gii->gi", self.squares_G33()))

    def in_chunks(self, low_G2: NDArray[np.float64], high_G2: NDArray[np.float64], scene: _Scene) -> Iterator[_Pairs]:
        """Pairs of all ellipsoids with the pixels of their boxes (u, v), so many at a time; a large one comes alone."""
        size = np.array([scene.depth.shape[1], scene.depth.shape[0]])
        first_G2 = np.clip(np.floor(low_G2), 0, size).astype(np.int64)
        sizes_G2 = np.clip(np.ceil(high_G2), 0, size).astype(np.int64) - first_G2
        counts_G = np.prod(np.maximum(sizes_G2, 0), axis=1)
        ends_G, start = np.cumsum(counts_G), 0
        while start < len(counts_G):
            before = ends_G[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends_G, before + PAIRS_AT_ONCE, side="right")))
            gaussian_Q = np.repeat(np.arange(start, stop), counts_G[start:stop])
            within_Q = np.arange(len(gaussian_Q)) - (ends_G - counts_G)[gaussian_Q] + before
            rows_Q, columns_Q = np.divmod(within_Q, sizes_G2[gaussian_Q, 0]) if len(gaussian_Q) else (within_Q,) * 2
            yield _Pairs(
                gaussian_Q=gaussian_Q, u_Q=first_G2[gaussian_Q, 0] + columns_Q, v_Q=first_G2[gaussian_Q, 1] + rows_Q
            )
            start = stop


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A picture in the making, and how far away what each pixel shows is."""

    picture: Floats
    depth: Floats

    def paint(
        self,
        ellipsoids: _Ellipsoids,
        pairs: _Pairs,
        starts_Q3: NDArray[np.float64],
        rays_Q3: NDArray[np.float64],
    ) -> None:
        """Draw what is nearer than what is there. Depths are where along its ray (third part 1) a pixel is met."""
        g = pairs.gaussian_Q
        whitening_G33 = ellipsoids.axes_G33 / ellipsoids.radii_G3[:, :, None]
        start_Q3 = np.einsum("qij,qj->qi", whitening_G33[g], starts_Q3 - ellipsoids.means_G3[g])
        ray_Q3 = np.einsum("qij,qj->qi", whitening_G33[g], rays_Q3)
        square_Q, half_Q = (ray_Q3**2).sum(axis=1), (ray_Q3 * start_Q3).sum(axis=1)
        # The nearest point of the ray to the centre first: no difference of large numbers.
        nearest_Q3 = start_Q3 - (half_Q / square_Q)[:, None] * ray_Q3
        left_Q = 1 - (nearest_Q3**2).sum(axis=1)
        step_Q = -(half_Q + np.sqrt(square_Q * np.maximum(left_Q, 0))) / square_Q
        depth_Q = (starts_Q3[:, 2] + step_Q * rays_Q3[:, 2]).astype(np.float32)
        pixel_Q = pairs.v_Q * self.depth.shape[1] + pairs.u_Q
        flat = self.depth.reshape(-1)
        hit_Q = (left_Q > 0) & (depth_Q < flat[pixel_Q])
        np.minimum.at(flat, pixel_Q[hit_Q], depth_Q[hit_Q])
        shown = np.flatnonzero(hit_Q & (depth_Q == flat[pixel_Q]))
        on_Q3 = start_Q3[shown] + step_Q[shown, None] * ray_Q3[shown]
        normal_Q3 = np.einsum("qij,qi->qj", whitening_G33[g[shown]], on_Q3)
        normal_Q3 /= np.linalg.norm(normal_Q3, axis=1, keepdims=True)
        light_Q = (
            AMBIENT + SKY * (1 + normal_Q3 @ ellipsoids.up_3) + SUNLIGHT * np.maximum(normal_Q3 @ ellipsoids.sun_3, 0)
        )
        self.picture.reshape(-1, 3)[pixel_Q[shown]] = ellipsoids.color_G3[g[shown]] * light_Q[:, None]

    def finished(self, height: int, width: int) -> Picture:
        """The picture at its final size."""
        picture = cv2.resize(self.picture, (width, height), interpolation=cv2.INTER_AREA)
        return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _ellipsoids(occupancy: Occupancy, style: EllipsoidStyle) -> _Ellipsoids:
    """In the forward frame: those that are opaque enough and whose middle lies in the grid."""
    if occupancy.gaussians is None:
        raise ValueError(f"{occupancy.model or 'the network'} makes no Gaussians: there are no ellipsoids to draw")
    volume, cloud = forward_volume(occupancy), occupancy.gaussians
    turn_33 = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]) if occupancy.grid.frame == "lidar" else np.eye(3)
    kept = (cloud.opacities_G >= style.least_opacity) & _inside(cloud, turn_33, volume)
    cloud = cloud.select(kept)
    sun_3 = np.asarray(SUN) / np.linalg.norm(SUN)
    return _Ellipsoids(
        means_G3=cloud.means_G3 @ turn_33.T,
        axes_G33=np.swapaxes(cloud.local2frame_G33(), 1, 2) @ turn_33.T,
        radii_G3=np.maximum(style.deviations * cloud.scales_G3.astype(np.float64), 1e-3),
        color_G3=palette(occupancy.label_set.colors)[cloud.labels_G],
        sun_3=sun_3,
        up_3=np.array([0.0, 0.0, 1.0]),
    )


def _inside(cloud: GaussianCloud, turn_33: NDArray[np.float64], volume: ForwardVolume) -> NDArray[np.bool_]:
    means_G3 = cloud.means_G3 @ turn_33.T
    return np.asarray(((means_G3 >= volume.lower) & (means_G3 <= volume.upper)).all(axis=1), np.bool_)


def _outline(seen: _Ellipsoids, axis: int, sign: int) -> NDArray[np.float64]:
    """(G,) where the planes through the eye that touch an ellipsoid on either side cut the plane of depth 1.

    The plane p[axis] = t p[2] touches where its distance from the centre equals the half extent along its normal.
    """
    squares, middle, depth = seen.squares_G33(), seen.means_G3[:, axis], seen.means_G3[:, 2]
    a = depth**2 - squares[:, 2, 2]
    b = middle * depth - squares[:, axis, 2]
    c = middle**2 - squares[:, axis, axis]
    return (b + sign * np.sqrt(np.maximum(b**2 - a * c, 0))) / a
