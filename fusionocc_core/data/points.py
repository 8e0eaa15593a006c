"""Clouds: history brought to the key time, thinning, range filter, and the sparse depth map that the cameras see.

Legend: P points, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fusionocc_core.data.augmentation import BevAug
from fusionocc_core.geometry import inverse
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.structures import CameraImage, InputConfig, LidarSweep, SensorFrame

COLUMNS = 5
"""x, y, z, intensity, ring; a sixth column of a sweep (dt) is not for networks."""
CPU = torch.device("cpu")


def gather_points(
    frame: SensorFrame,
    inputs: InputConfig,
    grid: VoxelGrid,
    bev_aug: BevAug,
    generator: torch.Generator,
    device: torch.device = CPU,
) -> Tensor:
    """The cloud (P, 5) that enters the LiDAR branch, in the augmented key ego frame.

    Earlier sweeps are brought to the key sweep's axes, then thinned (before anything is filtered, as upstream: the
    draws depend on it), brought to the augmented key ego frame and filtered there. Upstream filters before it mirrors,
    which is the same in a range that is symmetric; turned or scaled, the cloud fills the grid as it will at test time.

    Args:
        frame: with a LiDAR sweep.
        inputs: which sweeps, how many, how thinned.
        grid: the range to keep, in the augmented frame.
        bev_aug: what is done to the space around the vehicle.
        generator: a CPU generator for the thinning.
        device: where to do it, and where the cloud then is.
    """
    if frame.lidar is None:
        return torch.zeros(0, COLUMNS, device=device)
    sweeps = chosen_sweeps(frame.lidar, frame.lidar_history, inputs)
    clouds = [sweep_in_key_lidar(sweep, frame.lidar, inputs.float32_poses, device) for sweep in sweeps]
    points = torch.cat([torch.zeros(0, COLUMNS, device=device), *clouds])
    if inputs.thin_rings_up_to is not None:
        points = thin_rings(points, inputs.thin_rings_up_to, inputs.thin_keep, generator)
    if inputs.key_pose != "lidar":  # whose axes are those of the key frame
        points = _transformed(points, _float32(lidar2keyego(frame)))
    if bev_aug != BevAug():
        points = _transformed(points, _float32(bev_aug.matrix()))
    return points[in_range(points, grid, inputs.range_margin)]


def chosen_sweeps(current: LidarSweep, history: Sequence[LidarSweep], inputs: InputConfig) -> list[LidarSweep]:
    """The sweeps that make up the cloud, under InputConfig's rules for the current one and for missing ones."""
    earlier = list(history[: inputs.lidar_history])
    if inputs.repeat_current_sweep:
        earlier += [current] * (inputs.lidar_history - len(earlier))
    return [current, *earlier] if inputs.include_current_sweep else earlier


def sweep_in_key_lidar(sweep: LidarSweep, key: LidarSweep, float32_poses: bool, device: torch.device = CPU) -> Tensor:
    """Points (P, 5) of an earlier sweep in the axes that the key sweep's LiDAR had at its stamp."""
    points = torch.tensor(sweep.points[:, :COLUMNS], device=device)
    if sweep is key and not float32_poses:
        return points
    lidar2global, key2global = ((s.ego2global, s.lidar2ego) for s in (sweep, key))
    return _transformed(points, relative(lidar2global, key2global, float32_poses))


def relative(
    a2global: tuple[NDArray[np.float64], NDArray[np.float64]],
    b2global: tuple[NDArray[np.float64], NDArray[np.float64]],
    float32_poses: bool,
) -> Tensor:
    """a2b (4, 4) float32 from two chains, each (ego2global, sensor2ego).

    With ``float32_poses`` the products and the inverse are float32 as in FusionOcc's official pipeline, which at map
    coordinates of a kilometre costs some tenths of a millimetre; otherwise float64 until the result is there.
    """
    if float32_poses:
        (ego_a, sensor_a), (ego_b, sensor_b) = (
            tuple(_float32(matrix) for matrix in chain) for chain in (a2global, b2global)
        )
        return torch.inverse(ego_b @ sensor_b) @ (ego_a @ sensor_a)
    return _float32(inverse(b2global[0] @ b2global[1]) @ a2global[0] @ a2global[1])


def lidar2keyego(frame: SensorFrame) -> NDArray[np.float64]:
    """(4, 4) from the LiDAR at its stamp to the ego frame at the reference time."""
    assert frame.lidar is not None, "the caller has a sweep"
    if np.array_equal(frame.lidar.ego2global, frame.ego2global):
        return frame.lidar.lidar2ego
    return np.asarray(inverse(frame.ego2global) @ frame.lidar.ego2global @ frame.lidar.lidar2ego)


def thin_rings(points: Tensor, up_to: int, keep: float, generator: torch.Generator) -> Tensor:
    """Keep all points of rings above ``up_to`` and a random share ``keep`` of the others.

    One whole number of 0..9 is drawn for every point, whether it is needed or not, as upstream does; so ``keep`` counts
    in tenths.
    """
    draws = torch.randint(0, 10, (len(points),), generator=generator).to(points.device)
    return points[(points[:, 4] > up_to) | (draws >= 10 - round(10 * keep))]


def in_range(points: Tensor, grid: VoxelGrid, margin: float) -> Tensor:
    """Which points (P,) bool lie inside the grid by more than ``margin`` metres; points are in the grid's frame."""
    inside = torch.ones(len(points), dtype=torch.bool, device=points.device)
    # Column by column: reducing over rows of three takes several times as long.
    for axis, (lower, upper) in enumerate(zip(_float32(grid.lower), _float32(grid.upper), strict=True)):
        inside &= (points[:, axis] > lower + margin) & (points[:, axis] < upper - margin)
    return inside


def depth_maps(
    sweep: LidarSweep,
    cameras: Sequence[CameraImage],
    aug_N44: Tensor,
    inputs: InputConfig,
    device: torch.device = CPU,
) -> Tensor:
    """Depths (N, H, W) in metres of the sweep's points in the network's pictures; the nearest wins, 0 where none is.

    Points are moved by the ego motion between the stamps. Upstream sorts by a float32 key that resolves 1/16 pixel rank
    only, so that its "nearest" is approximate; here it is exact.

    Args:
        sweep: with points in the LiDAR's frame.
        cameras: N of them.
        aug_N44: float32 from each camera's pixels to those of the network's picture.
        inputs: size of the pictures, range of depths.
        device: where to do it, and where the maps then are.
    """
    height, width = inputs.image_size
    if not cameras:
        return torch.zeros(0, height, width, device=device)
    lidar2image_N44 = torch.stack([_lidar2image(sweep, camera, inputs.float32_poses) for camera in cameras]).to(device)
    aug_N44 = aug_N44.to(device)
    # Coordinates first: a 3 x 3 matrix times a wide one is eight times as quick as a long thin one times it.
    xyz_3P = torch.tensor(sweep.points[:, :3].T, device=device)
    uvz_N3P = lidar2image_N44[:, :3, :3] @ xyz_3P + lidar2image_N44[:, :3, 3:]
    depth_NP = uvz_N3P[:, 2].clone()
    uvz_N3P[:, :2] /= depth_NP[:, None]
    uvz_N3P = aug_N44[:, :3, :3] @ uvz_N3P + aug_N44[:, :3, 3:]
    column_NP, row_NP = uvz_N3P[:, 0].round(), uvz_N3P[:, 1].round()
    start, stop = inputs.depth_range
    seen_NP = (depth_NP >= start) & (depth_NP < stop)
    seen_NP &= (column_NP >= 0) & (column_NP < width) & (row_NP >= 0) & (row_NP < height)
    camera_S, _ = seen_NP.nonzero(as_tuple=True)
    pixel_S = (camera_S * height + row_NP[seen_NP].long()) * width + column_NP[seen_NP].long()
    nearest = torch.full((len(cameras) * height * width,), torch.inf, device=device)
    nearest.scatter_reduce_(0, pixel_S, depth_NP[seen_NP], "amin")
    return nearest.masked_fill_(nearest.isinf(), 0.0).view(-1, height, width)


def _lidar2image(sweep: LidarSweep, camera: CameraImage, float32_poses: bool) -> Tensor:
    """(4, 4) float32 from the LiDAR at its stamp to the camera's pixels at its own, times the depth."""
    lidar2global, cam2global = (sweep.ego2global, sweep.lidar2ego), (camera.ego2global, camera.cam2ego)
    intrinsics = torch.eye(4)
    intrinsics[:3, :3] = _float32(camera.intrinsics)
    return intrinsics @ relative(lidar2global, cam2global, float32_poses)


def _transformed(points: Tensor, a2b_44: Tensor) -> Tensor:
    """A copy of points (P, 3 or more) with x, y, z mapped from frame a to frame b."""
    a2b_44 = a2b_44.to(points.device)
    xyz_3P = a2b_44[:3, :3] @ points[:, :3].t().contiguous() + a2b_44[:3, 3:]
    return torch.cat([xyz_3P.t(), points[:, 3:]], dim=1)


def _float32(values: ArrayLike) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)
