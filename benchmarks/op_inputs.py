"""What the ops are measured on: a simulated street, made up but of the size of the official networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, VoxelGrid
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid
from fusionocc_core.ops.volume_render_rays import Rays


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is of everything."""

    grid: VoxelGrid
    """What is pooled into, and seen by rays; around the vehicle, in cubes."""
    gaussian_grid: SplatGrid
    sweeps: int
    azimuth_step: float
    """Degrees between two columns of the simulated LiDAR."""
    frustum: tuple[int, int, int, int]
    """Cameras, depths, rows, columns."""
    gaussians: int
    probable_gaussians: int
    """Where every pair is listed: they are larger and have more pairs each."""
    rays: int
    """Of the volume rendering."""
    scattered: int
    """Rows."""

    @property
    def lidar_grid(self) -> VoxelGrid:
        """Voxels of 5 cm, as fusionocc-base's LiDAR encoder has them."""
        return replace(self.grid, voxel_size=(0.05, 0.05, 0.05))


OFFICIAL = Size(
    grid=OCC3D_GRID,
    gaussian_grid=SplatGrid(lower=(-50.0, -50.0, -5.0), voxel_size=(0.5, 0.5, 0.5), shape_xyz=(200, 200, 16)),
    sweeps=7,
    azimuth_step=0.33,
    frustum=(6, 88, 32, 88),
    gaussians=25_600,
    probable_gaussians=1_280,
    rays=2_048,
    scattered=300_000,
)
"""fusionocc-base's clouds and frustums, GaussianFormer's number of Gaussians."""
SHORT = replace(OFFICIAL, gaussians=12_800, probable_gaussians=640, rays=1_024)
"""For `make bench`: the published algorithms take their time."""
TINY = Size(
    grid=replace(OCC3D_GRID, lower=(-3.2, -3.2, -1.0), upper=(3.2, 3.2, 5.4)),
    gaussian_grid=SplatGrid(lower=(-5.0, -5.0, -5.0), voxel_size=(0.5, 0.5, 0.5), shape_xyz=(20, 20, 16)),
    sweeps=1,
    azimuth_step=6.0,
    frustum=(2, 8, 4, 6),
    gaussians=40,
    probable_gaussians=5,
    rays=8,
    scattered=2_000,
)
"""To see that everything runs."""


def simulated_cloud(size: Size) -> Tensor:
    """(P, 5) x y z intensity ring of a 32-beam scanner 1.84 m above a street with walls, driven 3 m a sweep."""
    rng = np.random.default_rng(0)
    elevation = np.deg2rad(np.linspace(-30.67, 10.67, 32))[:, None]
    azimuth = np.deg2rad(np.arange(0, 360, size.azimuth_step))[None, :]
    # What stands in each direction: house fronts along the street, nearer things here and there.
    front = np.minimum(9.0 / np.maximum(np.abs(np.sin(azimuth)), 1e-3), 70.0)
    nearer = np.repeat(rng.choice([1.0, 0.3, 0.6], p=[0.6, 0.2, 0.2], size=(1, 91)), 12, axis=1)[:, : azimuth.size]
    clouds = []
    for sweep in range(size.sweeps):
        ground = np.where(elevation < -0.01, 1.84 / np.maximum(np.sin(-elevation), 1e-3), np.inf)
        distance = np.minimum(front * nearer / np.cos(elevation), ground) + rng.normal(0, 0.02, (32, azimuth.size))
        x = distance * np.cos(elevation) * np.cos(azimuth) - 3.0 * sweep
        y = distance * np.cos(elevation) * np.sin(azimuth) + rng.normal(0, 0.2)
        z = distance * np.sin(elevation) + 1.84 + 0 * azimuth
        ring = np.broadcast_to(np.arange(32.0)[:, None], x.shape)
        intensity = np.broadcast_to(rng.uniform(0, 255, (1, azimuth.size)), x.shape)
        clouds.append(np.stack([x, y, z, intensity, ring], axis=-1).reshape(-1, 5))
    return thinned(np.concatenate(clouds).astype(np.float32))


def thinned(points: NDArray[np.float32]) -> Tensor:
    """A fifth of the points of rings 0 to 16, all of the others: what FusionOcc's LiDAR branch gets."""
    kept = (points[:, 4] > 16) | (np.random.default_rng(1).random(len(points)) < 0.2)
    return torch.from_numpy(points[kept])


def cloud_from_files(paths: list[Path], sweeps: int = 7) -> Tensor:
    """Sweeps of nuScenes (x right, y forward, z up, intensity, ring) in ego axes; repeated, moved, to ``sweeps``."""
    clouds = []
    for sweep in range(sweeps):
        lidar = np.fromfile(paths[sweep % len(paths)], dtype=np.float32).reshape(-1, 5)
        x, y, z, intensity, ring = lidar.T
        clouds.append(np.stack([y - 3.0 * sweep, -x + 0.1 * sweep, z + 1.84, intensity, ring], axis=-1))
    return thinned(np.concatenate(clouds))


def frustum_voxels(size: Size) -> Tensor:
    """(1, N, D, h, w, 3) voxels of the grid: cameras around the car, depths of 1 m to 44.5 m."""
    cameras, depths, rows, columns = size.frustum
    u, v = np.linspace(-0.63, 0.63, columns), np.linspace(-0.22, 0.35, rows)
    u, v, depth = np.meshgrid(u, v, np.linspace(1, 44.5, depths))
    forward, left, up = (np.moveaxis(a, -1, 0) for a in (depth, -u * depth, 1.5 - v * depth))
    lower, size_3 = np.array(size.grid.lower), np.array(size.grid.voxel_size)
    found = []
    for yaw in np.deg2rad([0, 180, 55, -55, 110, -110][:cameras]):
        x, y = np.cos(yaw) * forward - np.sin(yaw) * left, np.sin(yaw) * forward + np.cos(yaw) * left
        found.append(np.floor((np.stack([x, y, up], axis=-1) - lower) / size_3).astype(np.int64))
    return torch.from_numpy(np.stack(found)[None])


def gaussians(kind: str, num: int, scale: float = 1.0, grid: SplatGrid = OFFICIAL.gaussian_grid) -> Gaussians:
    """Anywhere in the grid, turned in any direction, with the scales at which GaussianFormer's training starts.

    Args:
        kind: "solid" (additive) or "prob" (probabilistic).
        num: how many.
        scale: factor on all scales.
        grid: where.
    """
    generator = torch.Generator().manual_seed(0)
    lower, size = torch.tensor(grid.lower), torch.tensor(grid.shape_xyz) * torch.tensor(grid.voxel_size)
    if kind == "solid":
        scales = 0.08 + 0.56 * torch.rand(1, num, 3, generator=generator)
    else:
        scales = 0.01 + 1.79 * torch.randn(1, num, 3, generator=generator).sigmoid()
    return Gaussians(
        means_BG3=lower + size * torch.rand(1, num, 3, generator=generator),
        scales_BG3=scale * scales,
        rotations_BG4=torch.randn(1, num, 4, generator=generator),
        opacities_BG=torch.rand(1, num, generator=generator),
        semantics_BGC=torch.randn(1, num, 18 if kind == "solid" else 17, generator=generator).softmax(dim=2),
    )


def street(seed: int) -> NDArray[np.uint8]:
    """Labels (200, 200, 16) of road, terrain, houses on both sides, cars and trees, on Occ3D's grid."""
    rng = np.random.default_rng(seed)
    labels = np.full(OCC3D_GRID.shape, OCC3D_LABELS.free, np.uint8)
    labels[:, :, 2] = 14
    labels[:, 85:115, 2] = 11
    for start in range(0, 200, 20):
        for side in (rng.integers(55, 75), rng.integers(125, 145)):
            labels[start : start + 15, side : side + 10, 2 : rng.integers(8, 16)] = 15
    for label, count, size in ((4, 14, (11, 5, 4)), (16, 30, (5, 5, 9)), (7, 10, (2, 2, 4))):
        for x, y in rng.integers((0, 70), (188, 130), (count, 2)):
            labels[x : x + size[0], y : y + size[1], 3 : 3 + size[2]] = label
    return labels


def street_around(size: Size) -> NDArray[np.uint8]:
    """The middle of the street, on the size's grid."""
    n = size.grid.shape[0] // 2
    return np.ascontiguousarray(street(0)[100 - n : 100 + n, 100 - n : 100 + n])


def a_voxel_off(truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A prediction that is a voxel off in places."""
    return np.where(np.random.default_rng(0).random(truth.shape) < 0.8, truth, np.roll(truth, 1, axis=0))


def view_rays(size: Size) -> Rays:
    """Rays from the middle of the street in all directions, most of them nearly level."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(size.rays, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.15])
    nothing = torch.zeros(size.rays, dtype=torch.int64)
    return Rays(
        origin_R3=torch.tensor([0.1, 0.2, 1.84]).expand(size.rays, 3).clone(),
        direction_R3=direction / direction.norm(dim=1, keepdim=True),
        depth_R=torch.full((size.rays,), 10.0),
        label_R=nothing,
        sample_R=nothing,
        current_R=nothing == 0,
    )
