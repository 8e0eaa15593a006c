"""A made-up moment with everything in it; its prediction is wrong in ways that are known."""

from dataclasses import replace

import numpy as np

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.geometry import rotation_from_yaw
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.metrics.truth import OccupancyTruth
from fusionocc_core.structures import CameraImage, LidarSweep, Occupancy, SensorFrame
from fusionocc_core.viz.view_frame import ViewFrame

GRID = VoxelGrid(frame="ego", lower=(-8.0, -8.0, -1.0), upper=(8.0, 8.0, 3.0), voxel_size=(0.5, 0.5, 0.5))
FREE, UNKNOWN = OCC3D_LABELS.free, OCC3D_LABELS.unknown
CAR, ROAD, BUS, TREE = (OCC3D_LABELS.names.index(n) for n in ("car", "driveable_surface", "bus", "vegetation"))


def labels() -> np.ndarray:
    """A road with a car ahead and a tree behind on the left."""
    volume = np.full(GRID.shape, FREE, np.uint8)
    volume[:, :, 0] = ROAD
    volume[22:28, 14:18, 1:4] = CAR
    volume[4:6, 26:28, 1:7] = TREE
    return volume


def occupancy(volume=None, **kwargs) -> Occupancy:
    return Occupancy(
        labels=labels() if volume is None else volume, grid=GRID, label_set=OCC3D_LABELS, stamp_ns=10**9, **kwargs
    )


def with_gaussians() -> Occupancy:
    """The same, made of Gaussians: one in every tenth voxel."""
    solid = occupancy()
    voxels = solid.occupied()[::10]
    cloud = GaussianCloud(
        means_G3=GRID.centers(voxels).astype(np.float32),
        scales_G3=np.full((len(voxels), 3), 0.4, np.float32),
        rotations_G4=np.tile(np.array([1, 0, 0, 0], np.float32), (len(voxels), 1)),
        opacities_G=np.full(len(voxels), 0.9, np.float32),
        labels_G=solid.labels[tuple(voxels.T)],
    )
    return replace(solid, gaussians=cloud)


def camera(name="CAM_FRONT", yaw=0.0, size=(180, 320)) -> CameraImage:
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    cam2ego = np.eye(4)
    cam2ego[:3, :3] = np.stack([np.cross(forward, (0, 0, 1)), (0, 0, -1), forward], axis=1)
    cam2ego[:3, 3] = (1.0, 0.0, 1.5)
    return CameraImage(
        name=name,
        image=np.full((*size, 3), 90, np.uint8),
        intrinsics=np.array([[160.0, 0, size[1] / 2], [0, 160, size[0] / 2], [0, 0, 1]]),
        cam2ego=cam2ego,
        ego2global=np.eye(4),
        stamp_ns=10**9,
    )


def lidar(*points) -> LidarSweep:
    columns = np.zeros((len(points), 5), np.float32)
    columns[:, :3] = points
    return LidarSweep(points=columns, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=10**9)


def box(center=(4.5, 0.0, 0.25)) -> Box:
    return Box(
        center=np.asarray(center, float),
        size_lwh=np.array([3.0, 2.0, 1.5]),
        rotation=rotation_from_yaw(0.3),
        name="vehicle.car",
        token="t",
        instance="i",
        num_lidar_pts=3,
    )


def moment(step=0, **changes) -> ViewFrame:
    """With ``step``, later and further ahead."""
    ego2global = np.eye(4)
    ego2global[:3, 3] = (600.0 + 2.0 * step, 1600.0, 0.0)
    front, back = camera(), camera("CAM_BACK", np.pi)
    sensors = SensorFrame(
        stamp_ns=10**9 * (1 + step),
        ego2global=np.eye(4),
        cameras=(front, back),
        lidar=lidar((6.0, 0.0, 0.5), (-5.0, 1.0, 0.2)),
        scene="scene-1",
    )
    wrong = labels()
    wrong[22:28, 14:18, 1:4] = BUS
    values = {
        "stamp_ns": 10**9 * (1 + step),
        "ego2global": ego2global,
        "scene": "scene-1",
        "sensors": sensors,
        "prediction": occupancy(wrong, model="made-up"),
        "truth": OccupancyTruth(labels=labels(), grid=GRID, label_set=OCC3D_LABELS),
        "boxes": (box(),),
        "latencies_s": {"network": 0.05, "total": 0.07},
    }
    return ViewFrame(**{**values, **changes})


class Frames:
    """Stands in for a source."""

    name = "frames"

    def __init__(self, *frames: ViewFrame) -> None:
        self.frames, self.total = frames, len(frames)

    def __iter__(self):
        return iter(self.frames)
