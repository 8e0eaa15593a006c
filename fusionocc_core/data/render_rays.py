"""Rays for volume rendering, from labelled LiDAR points that cameras see (RenderOcc), and which of them to train with.

Rays go through the pictures as they were taken, whatever is done to the network's input, so that they exist without
any picture. Rays of neighbouring frames show what is hidden now; they may lie in the future, which is for training
only.

Legend: P points, R rays.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionocc_core.geometry import apply, check_rigid, inverse, project
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.ops.volume_render_rays import Rays, RenderConfig
from fusionocc_core.structures import CameraImage, LidarSweep

logger = logging.getLogger(__name__)

NUSCENES_POINT_COUNTS = (
    2854504,
    7291443,
    141614,
    4239939,
    32248552,
    1583610,
    364372,
    2346381,
    582961,
    4829021,
    14073691,
    191019309,
    6249651,
    55095657,
    58484771,
    193834360,
    131378779,
)
"""Labelled points of each of the 17 classes that are not free, as RenderOcc samples with them."""


SOURCES = ("points", "maps", "none")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Which rays are made and drawn. The defaults correct what renderocc_rays() has from the reference."""

    count: int = 38_400
    """Most rays of a sample."""
    source: str = "points"
    """Where classes come from: "points" (nuScenes-lidarseg), "maps" (a label map for each picture, whoever made it; see
    data/imgseg.py for where it lies), or "none": rays with depth alone."""
    neighbours: tuple[int, ...] = (-3, -2, -1, 1, 2, 3)
    """Keyframes of the same scene that give rays too, counted from the current one."""
    farthest: float = 52.0
    """Depths beyond, metres, give no rays."""
    border: float = 1.0
    """Pixels at the picture's sides that give no rays."""
    whole_pixels: bool = False
    """Rays go through the middle of the pixel that a point falls on (RenderOcc), not through the point itself."""
    class_counts: tuple[int, ...] | None = NUSCENES_POINT_COUNTS
    """Rare classes are drawn more often by exp(balance * (most / count - 1)); None counts the rays at hand."""
    balance: float = 0.005
    most_balance: float | None = 10.0
    """Most that a class's rays are favoured by; None: no bound, which makes a bicycle's 933 times as likely."""
    neighbour_weight: float = 0.3
    """Of rays of other frames than the current one."""
    moving: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 9, 10)
    """Classes of things that may have moved: other frames give no rays of them."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.count < 1 or not self.farthest > 0 or self.border < 0 or self.balance < 0:
            raise ValueError(
                f"RayConfig: count={self.count} and farthest={self.farthest} must be positive, border={self.border} "
                f"and balance={self.balance} not negative"
            )
        if self.source not in SOURCES or 0 in self.neighbours:
            raise ValueError(
                f"RayConfig: source={self.source!r}; expected one of {SOURCES}; neighbours={self.neighbours} must not "
                "hold 0, the current keyframe"
            )
        if not 0 <= self.neighbour_weight <= 1 or (self.most_balance is not None and self.most_balance < 1):
            raise ValueError(
                f"RayConfig: expected 0 <= neighbour_weight={self.neighbour_weight} <= 1 and "
                f"most_balance={self.most_balance} of 1 or more"
            )
        if self.class_counts is not None and min(self.class_counts, default=0) < 1:
            raise ValueError(f"RayConfig.class_counts={self.class_counts}: expected 1 or more of every class")


def renderocc_rays() -> RayConfig:
    """As RenderOcc draws them: barriers count as moving, bicycles and motorcycles do not."""
    return RayConfig(whole_pixels=True, most_balance=None, moving=(0, 1, 3, 4, 5, 7, 9, 10))


@dataclass(frozen=True, kw_only=True)
class PixelDepths:
    """Points as a camera sees them."""

    uv_P2: NDArray[np.float64]
    """Pixels of the picture as it was taken."""
    depth_P: NDArray[np.float64]
    """z in the camera's axes, metres."""
    label_P: NDArray[np.integer]
    """Classes."""


@dataclass(frozen=True, kw_only=True)
class RayCamera:
    """A camera without its picture."""

    name: str
    image_size: tuple[int, int]
    """(H, W), pixels."""
    intrinsics: NDArray[np.float64]
    cam2global: NDArray[np.float64]
    """(4, 4) at the camera's own stamp."""


def camera_rays(
    sweep: LidarSweep,
    labels_P: NDArray[np.integer],
    camera: CameraImage,
    keyego2global: NDArray[np.float64],
    config: RayConfig,
) -> Rays:
    """As points_rays, for a camera with its picture."""
    seen = RayCamera(
        name=camera.name,
        image_size=(camera.image.shape[0], camera.image.shape[1]),
        intrinsics=camera.intrinsics,
        cam2global=camera.ego2global @ camera.cam2ego,
    )
    return points_rays(sweep, labels_P, seen, keyego2global, config)


def points_rays(
    sweep: LidarSweep,
    labels_P: NDArray[np.integer],
    camera: RayCamera,
    keyego2global: NDArray[np.float64],
    config: RayConfig,
    *,
    label_map: NDArray[np.uint8] | None = None,
) -> Rays:
    """One ray for each point that a camera sees, in the key ego frame; points behind others are kept, as in RenderOcc.

    Args:
        sweep: the cloud.
        labels_P: class of each of its points.
        camera: any camera, at its own stamp; that of another frame gives neighbouring rays.
        keyego2global: (4, 4) ego pose that the volume belongs to. RenderOcc takes that of the same camera at the key
            time for each camera, though its volume belongs to the first camera's.
        config: which.
        label_map: (h, w) classes of the picture at any resolution; a point then has the class of the pixel that it
            falls on instead of its own.

    Raises:
        ValueError: another number of labels than points, or a pose that is not rigid.
    """
    if labels_P.shape != (len(sweep.points),):
        raise ValueError(f"labels_P: shape {labels_P.shape}, expected ({len(sweep.points)},), one for each point")
    points_cam = apply(
        inverse(camera.cam2global) @ sweep.ego2global @ sweep.lidar2ego, sweep.points[:, :3].astype(np.float64)
    )
    uvz = project(camera.intrinsics, points_cam)
    size, margin = np.array(camera.image_size[::-1]), config.border
    with np.errstate(invalid="ignore"):
        inside = ((uvz[:, :2] > margin) & (uvz[:, :2] < size - margin)).all(axis=1)
        seen = inside & (uvz[:, 2] > 0) & (uvz[:, 2] <= config.farthest)
    if not seen.any():
        logger.info(
            "camera %s: sees none of %d points up to %g m, gives no rays", camera.name, len(uvz), config.farthest
        )
    labels = labels_P[seen]
    if label_map is not None:
        cells = (uvz[seen, 1::-1] * np.array(label_map.shape) / size[::-1]).astype(np.intp)
        labels = label_map[cells[:, 0], cells[:, 1]]
    pixels = PixelDepths(uv_P2=uvz[seen, :2], depth_P=uvz[seen, 2], label_P=labels)
    cam2keyego = inverse(check_rigid("keyego2global", keyego2global)) @ camera.cam2global
    return pixel_rays(pixels, camera.intrinsics, cam2keyego, whole_pixels=config.whole_pixels)


def pixel_rays(
    pixels: PixelDepths,
    intrinsics: NDArray[np.float64],
    cam2keyego: NDArray[np.float64],
    *,
    whole_pixels: bool = False,
) -> Rays:
    """Rays through pixels, in the key ego frame.

    Args:
        pixels: where, and what was measured.
        intrinsics: (3, 3), pixels.
        cam2keyego: (4, 4) from the camera at its stamp to the ego frame at the key time.
        whole_pixels: see RayConfig.

    Raises:
        ValueError: cam2keyego is not rigid.
    """
    cam2keyego = check_rigid("cam2keyego", cam2keyego)
    uv = np.trunc(pixels.uv_P2) + 0.5 if whole_pixels else np.asarray(pixels.uv_P2, dtype=np.float64)
    homogeneous = np.concatenate([uv, np.ones((len(uv), 1))], axis=1)
    direction = homogeneous @ np.linalg.inv(np.asarray(intrinsics, dtype=np.float64)).T @ cam2keyego[:3, :3].T
    return Rays(
        origin_R3=torch.tensor(cam2keyego[:3, 3], dtype=torch.float32).repeat(len(uv), 1),
        direction_R3=torch.tensor(direction, dtype=torch.float32),
        depth_R=torch.tensor(pixels.depth_P, dtype=torch.float32),
        label_R=torch.tensor(pixels.label_P.astype(np.int64)),
        sample_R=torch.zeros(len(uv), dtype=torch.int64),
        current_R=torch.ones(len(uv), dtype=torch.bool),
    )


def sampling_weights(label_R: Tensor, neighbour_R: Tensor, config: RayConfig, *, unknown: int | None = None) -> Tensor:
    """(R,) float64: how likely each ray is drawn, up to a factor.

    Rays without a class are drawn like those of the most frequent one; those of other frames never are, since they may
    end in what has moved.

    Args:
        label_R: int64 classes.
        unknown: label of rays without a class; None: all have one.
        neighbour_R: Bool: rays of other frames than the current one.
        config: how.

    Raises:
        ValueError: labels beyond the classes of class_counts, or negative ones.
    """
    known_R = torch.ones_like(label_R, dtype=torch.bool) if unknown is None else label_R != unknown
    weight_R = torch.where(neighbour_R, 0.0, torch.ones(len(label_R), dtype=torch.float64))
    weight_R[known_R] = _class_weights(label_R[known_R], neighbour_R[known_R], config)
    return weight_R


def _class_weights(label_R: Tensor, neighbour_R: Tensor, config: RayConfig) -> Tensor:
    lowest, highest = (int(label_R.min()), int(label_R.max())) if len(label_R) else (0, 0)
    if lowest < 0 or (config.class_counts is not None and highest >= len(config.class_counts)):
        classes = "or more" if config.class_counts is None else f"to {len(config.class_counts) - 1}"
        raise ValueError(
            f"label_R holds {lowest} to {highest}; expected 0 {classes}; leave rays without a class out with "
            "Rays.select"
        )
    if config.class_counts is None:
        counts = torch.bincount(label_R).clamp(min=1).double()
    else:
        counts = torch.tensor(config.class_counts, dtype=torch.float64)
    favour = torch.exp(config.balance * (counts.max() / counts - 1)) if len(counts) else counts
    if config.most_balance is not None:
        favour = favour.clamp(max=config.most_balance)
    moves_R = torch.isin(label_R, torch.tensor(config.moving, dtype=torch.int64))
    in_time_R = torch.where(neighbour_R, config.neighbour_weight * (~moves_R).double(), 1.0)
    return favour[label_R] * in_time_R


def sample_rays(
    current: Rays, neighbours: Rays, config: RayConfig, generator: torch.Generator, *, unknown: int | None = None
) -> Rays:
    """At most ``config.count`` rays of one sample, drawn by their weights without replacement.

    Rays of weight zero (what may have moved in other frames) and those beyond ``farthest`` are never drawn; RenderOcc
    takes all where there are fewer than ``count``, and drops the far ones after drawing.

    Args:
        current: of the current frame.
        neighbours: of other frames, in the same frame of reference; may be empty.
        config: how many, and how.
        generator: a CPU generator.
        unknown: label of rays without a class; None: all have one.
    """
    current, neighbours = current.within(config.farthest), neighbours.within(config.farthest)
    neighbours = replace(neighbours, current_R=torch.zeros_like(neighbours.current_R))
    both = join_rays([replace(current, current_R=torch.ones_like(current.current_R)), neighbours])
    weight_R = sampling_weights(both.label_R, ~both.current_R, config, unknown=unknown)
    possible = weight_R.nonzero()[:, 0]
    if not len(possible):
        logger.info("rays: none of %d can be drawn; this sample gives nothing to render", len(both))
    if len(possible) > config.count:
        possible = possible[torch.multinomial(weight_R[possible], config.count, generator=generator)]
    possible = possible.sort().values
    return both.select(possible)


def rendering_of(grid: VoxelGrid, *, step: float = 0.5) -> RenderConfig:
    """How to render a volume over any grid: metric in every respect, with surfaces where log-odds change their sign.

    The sphere inside which space is not contracted touches the sides of the grid but for 2.5 %, as RenderOcc's does.

    Args:
        grid: of square columns, as wide as it is deep, and centred on the vehicle's z axis as Occ3D's is.
        step: between places along a ray, voxels.

    Raises:
        ValueError: voxels or sides along x and y differ.
    """
    sides = [upper - lower for lower, upper in zip(grid.lower, grid.upper, strict=True)]
    if abs(sides[0] - sides[1]) > 1e-6 or grid.voxel_size[0] != grid.voxel_size[1]:
        raise ValueError(
            f"rendering_of: {grid}: expected a square of square columns; make a RenderConfig for it by hand"
        )
    x, y, z = ((lower + upper) / 2 for lower, upper in zip(grid.lower, grid.upper, strict=True))
    return RenderConfig(
        center=(x, y, z),
        radius=sides[0] / 2 / 40 * 39,
        extent=sides[0] / 2,
        box_lower=grid.lower,
        box_upper=grid.upper,
        cells_across=grid.shape[0],
        step=step,
        opacity="log_odds",
    )


def join_rays(parts: list[Rays]) -> Rays:
    """Rays of several cameras or frames of one sample, one after the other.

    Raises:
        ValueError: no part at all.
    """
    if not parts:
        raise ValueError("join_rays: expected one part or more")
    return Rays(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Rays)})
