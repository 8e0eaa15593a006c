"""What flows through the package: SensorFrame -> Batch -> Outputs -> Occupancy.

Tensor names carry their shape. Legend: B batch, T frames in time (0 = now, then earlier keyframes, newest first),
N cameras, H W image height and width, h w feature height and width, D depth bins, K classes, P points, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import check_rigid
from fusionocc_core.grids import LabelSet, VoxelGrid
from fusionocc_core.stream_pose import StreamPose

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fusionocc_core.gaussians import GaussianCloud, Gaussians

POINT_COLUMNS = ("x", "y", "z", "intensity", "ring")
"""Columns of LidarSweep.points; a sixth, "dt" (seconds after the sweep's stamp, negative = earlier), may follow."""


@dataclass(frozen=True, kw_only=True)
class CameraImage:
    """One picture with its calibration, its own stamp and the ego pose at that stamp."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, 3) uint8, RGB, undistorted; a view of BGR bytes is welcome, and is turned when the picture is small."""
    intrinsics: NDArray[np.float64]
    """(3, 3), pixels, at the resolution of ``image``."""
    cam2ego: NDArray[np.float64]
    """(4, 4); cam is optical: x right, y down, z forward."""
    ego2global: NDArray[np.float64]
    """(4, 4) at this camera's stamp."""
    stamp_ns: int

    def __post_init__(self) -> None:
        """Refuse what would give a wrong answer later."""
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or 0 in self.image.shape:
            raise ValueError(
                f"camera {self.name}: image is {self.image.dtype} {self.image.shape}; expected uint8 (H, W, 3) RGB"
            )
        k = self.intrinsics
        if k.shape != (3, 3) or not np.isfinite(k).all():
            raise ValueError(f"camera {self.name}: intrinsics must be 3x3 and finite, got {k.tolist()}")
        if k[0, 0] <= 0 or k[1, 1] <= 0:
            raise ValueError(
                f"camera {self.name}: focal lengths fx={k[0, 0]}, fy={k[1, 1]} must be positive pixels; "
                "an uncalibrated camera publishes zeros in CameraInfo.k: calibrate it"
            )
        check_rigid(f"camera {self.name}: cam2ego", self.cam2ego)
        check_rigid(f"camera {self.name}: ego2global", self.ego2global)


@dataclass(frozen=True, kw_only=True)
class LidarSweep:
    """One point cloud in the sensor's own axes, with the ego pose at its stamp."""

    points: NDArray[np.float32]
    """(P, 5) or (P, 6): see POINT_COLUMNS; metres, intensity 0..255, ring index from the lowest beam up."""
    lidar2ego: NDArray[np.float64]
    """(4, 4)."""
    ego2global: NDArray[np.float64]
    """(4, 4) at stamp_ns."""
    stamp_ns: int

    def __post_init__(self) -> None:
        """Refuse what would give a wrong answer later."""
        p = self.points
        if p.ndim != 2 or p.shape[1] not in (5, 6) or p.dtype != np.float32:
            raise ValueError(
                f"LidarSweep.points is {p.dtype} {p.shape}; expected float32 (P, 5) = {', '.join(POINT_COLUMNS)} "
                "or (P, 6) with dt"
            )
        if len(p) == 0:
            raise ValueError("LidarSweep.points is empty: the sensor sent a cloud without points")
        if not np.isfinite(p).all():
            bad = ~np.isfinite(p).all(axis=1)
            raise ValueError(
                f"LidarSweep.points: {int(bad.sum())} of {len(p)} points are not finite; leave them "
                "out: points[np.isfinite(points).all(axis=1)]"
            )
        check_rigid("LidarSweep: lidar2ego", self.lidar2ego)
        check_rigid("LidarSweep: ego2global", self.ego2global)


@dataclass(frozen=True, kw_only=True)
class SensorFrame:
    """Everything that the sensors saw around one reference time, and earlier keyframes for models with memory.

    The order of ``cameras`` matters to models that follow an official checkpoint (the first defines the key pose).
    """

    stamp_ns: int
    """The reference time; with a LiDAR, its stamp."""
    ego2global: NDArray[np.float64]
    """(4, 4) ego pose at the reference time."""
    cameras: tuple[CameraImage, ...]
    lidar: LidarSweep | None
    camera_history: tuple[tuple[CameraImage, ...], ...] = ()
    """Earlier keyframes' pictures, newest first; each entry may hold fewer cameras than ``cameras``."""
    lidar_history: tuple[LidarSweep, ...] = ()
    """Earlier keyframes' clouds, newest first."""
    token: str = ""
    """Where the frame comes from, for messages and file names: a nuScenes sample token, or empty."""
    scene: str = ""
    """Scene name, where there is one."""

    def __post_init__(self) -> None:
        """Refuse frames without any sensor and camera names that occur twice."""
        check_rigid("SensorFrame.ego2global", self.ego2global)
        if not self.cameras and self.lidar is None:
            raise ValueError("SensorFrame: no camera and no LiDAR; a frame needs at least one sensor")
        for group in (self.cameras, *self.camera_history):
            names = [camera.name for camera in group]
            if len(set(names)) != len(names):
                raise ValueError(f"SensorFrame: camera names must differ, got {names}")


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How a model wants its sensors: the contract between SensorFrame and Batch (data/pipeline.py carries it out).

    From ``channel_order`` on, the fields name habits of official checkpoints; where a habit is wrong, the default is
    the correct behaviour and the official-compatible presets switch the habit on.
    """

    image_size: tuple[int, int]
    """(H, W) of the network's input, pixels."""
    num_cameras: int = 6
    """Most cameras that a frame may hold; fewer are accepted, none is refused."""
    camera_history: int = 0
    """Earlier keyframes of pictures."""
    lidar_history: int = 0
    """Earlier keyframes of clouds."""
    remembered: int = 0
    """Earlier keyframes that a network with a memory runs through first, each with its own history."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    depth_range: tuple[float, float] = (1.0, 45.0)
    """Depths kept in the sparse depth map: start <= d < stop, metres."""
    resampling: str = "opencv"
    """"pillow" (bicubic, as the official pipelines) or "opencv" (halved, then bilinear; far cheaper)."""
    channel_order: str = "rgb"
    """"bgr": the picture's channels are swapped but mean and std are applied as they stand (BEVDet family)."""
    key_pose: str = "reference"
    """What the cameras are brought to: the ego pose at the "reference" time (LiDAR stamp), that of the "first_camera"
    (BEVDet family), or the "lidar" itself at its stamp (grids in the LiDAR's frame, such as SurroundOcc's)."""
    include_current_sweep: bool = True
    """False: only earlier sweeps enter the LiDAR branch (FusionOcc: a class method drops the current cloud)."""
    repeat_current_sweep: bool = False
    """True: missing history is filled with the current sweep, as often as needed (FusionOcc at a scene's start)."""
    thin_rings_up_to: int | None = None
    """Rings 0..this are thinned to ``thin_keep`` (FusionOcc: 16, also at test time); None keeps every point."""
    thin_keep: float = 0.2
    """A number of tenths."""
    range_margin: float = 1e-3
    """Points closer than this to the grid's border are dropped, metres; below zero, points up to that far outside are
    kept."""
    float32_poses: bool = False
    """True: poses are rounded to float32 before they are composed, as upstream (at map coordinates of a kilometre that
    costs some tenths of a millimetre)."""
    presence_masks: bool = False
    """True: the network obeys Batch.camera_present_BN and lidar_present_B, so that a frame may hold no camera at all,
    and training drops the sensors of each sample on its own."""

    def __post_init__(self) -> None:
        """Refuse values that the pipeline does not know."""
        choices = {
            "resampling": ("pillow", "opencv"),
            "channel_order": ("rgb", "bgr"),
            "key_pose": ("reference", "first_camera", "lidar"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"InputConfig.{name}={getattr(self, name)!r}: expected one of {allowed}")
        if not 0 < self.thin_keep <= 1 or abs(10 * self.thin_keep - round(10 * self.thin_keep)) > 1e-6:
            raise ValueError(f"InputConfig.thin_keep={self.thin_keep}: expected tenths, 0.1 to 1.0")
        histories = (self.camera_history, self.lidar_history, self.remembered)
        if min(self.image_size) < 1 or self.num_cameras < 1 or min(histories) < 0:
            raise ValueError(
                f"InputConfig: image_size={self.image_size}, num_cameras={self.num_cameras} must be positive, "
                f"camera_history={self.camera_history}, lidar_history={self.lidar_history} and "
                f"remembered={self.remembered} not negative"
            )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What enters a network. Made by data.pipeline, moved to a device by ``to``; all float32."""

    images_BTNCHW: Tensor
    """Normalised pictures. T = 1 + InputConfig.camera_history."""
    intrinsics_BTN33: Tensor
    """At the resolution of the source picture."""
    image_aug_BTN44: Tensor
    """Maps (u, v, depth, 1) of the source picture to the network's picture: resize, crop, flip, rotation."""
    cam2keyego_BTN44: Tensor
    """Camera at its own stamp -> ego at the key time; ego motion between the two is in it. Without BEV augmentation."""
    bev_aug_B44: Tensor
    """Ego -> augmented ego; the identity at test time. Already applied to ``points``."""
    points: tuple[Tensor, ...]
    """B clouds (P, 5) in the (augmented) key ego frame: x, y, z, intensity, ring."""
    depth_BNHW: Tensor
    """The current sweep seen by the current cameras, metres; 0 where no point falls."""
    camera_present_BN: Tensor | None = None
    """Bool: cameras that count; what the others hold means nothing (it may be NaN). None: all. Networks whose
    InputConfig has ``presence_masks`` obey it."""
    lidar_present_B: Tensor | None = None
    """Bool: samples whose cloud and depth map count, as above. A LiDAR may be present and see no point. None: all."""
    pose: StreamPose | None = None
    """For networks with a memory."""
    earlier: tuple[Batch, ...] = ()
    """InputConfig.remembered keyframes before this one, oldest first; their poses are given."""

    def __post_init__(self) -> None:
        """Check that the parts fit together (a programming error if not)."""
        b, t, n, c, h, w = self.images_BTNCHW.shape
        expected = {
            "intrinsics_BTN33": (b, t, n, 3, 3),
            "image_aug_BTN44": (b, t, n, 4, 4),
            "cam2keyego_BTN44": (b, t, n, 4, 4),
            "bev_aug_B44": (b, 4, 4),
            "depth_BNHW": (b, n, h, w),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Batch.{name}: shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if c != 3 or len(self.points) != b:
            raise ValueError(f"Batch: {c} image channels (expected 3), {len(self.points)} clouds for {b} samples")
        for name, present in (("camera_present_BN", (b, n)), ("lidar_present_B", (b,))):
            mask = getattr(self, name)
            if mask is not None and (tuple(mask.shape) != present or str(mask.dtype) != "torch.bool"):
                raise ValueError(f"Batch.{name}: {mask.dtype} {tuple(mask.shape)}, expected bool {present}")

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("points", "pose", "earlier")}
        moved = {name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None}
        points = tuple(p.to(device, non_blocking=True) for p in self.points)
        pose, earlier = self.pose and self.pose.to(device), tuple(batch.to(device) for batch in self.earlier)
        return replace(self, points=points, pose=pose, earlier=earlier, **moved)


def cameras_present(batch: Batch) -> Tensor:
    """(B, N) bool: which cameras count."""
    if batch.camera_present_BN is not None:
        return batch.camera_present_BN
    return batch.depth_BNHW.new_ones(batch.depth_BNHW.shape[:2]).bool()


def lidar_present(batch: Batch) -> Tensor:
    """(B,) bool: in which samples the LiDAR counts."""
    if batch.lidar_present_B is not None:
        return batch.lidar_present_B
    return batch.depth_BNHW.new_ones(batch.depth_BNHW.shape[0]).bool()


@dataclass(frozen=True, kw_only=True)
class CenterOutputs:
    """Objects as points of the bird's-eye view, K of them being the classes of objects, X Y the columns of the grid."""

    class_ids: tuple[int, ...]
    """The label of each of the K classes."""
    heatmap_logits_BKXY: Tensor
    """Unnormalised scores (one sigmoid each) that the centre of an object of the class lies in the column."""
    offset_B2XY: Tensor
    """Where in the column the centre lies: x and y from its lower corner, in columns."""
    height_BXY: Tensor
    """z of the centre, metres."""


@dataclass(frozen=True, kw_only=True)
class DensityOutputs:
    """A volume that rays can be sent through, K classes without free space."""

    density_BXYZ: Tensor
    """Not negative; what it means says RenderConfig.opacity."""
    semantic_BXYZK: Tensor
    """Unnormalised scores of what a voxel is, were it occupied."""
    occupied_logits_BXYZ: Tensor
    """Log-odds that the voxel is occupied."""


@dataclass(frozen=True, kw_only=True)
class RayOutputs:
    """Which points along the rays of pixels are occupied; h w cells of a picture, E = D depths and "none"."""

    logits_BNhwE: Tensor
    """Unnormalised scores of the points, and last that none of them is occupied."""
    projection_BN44: Tensor
    """Of (x, y, z, 1) in the grid's frame to (u d, v d, d, 1), pixels of the network's picture."""
    depths: tuple[float, ...]
    """D distances along the camera's z axis, metres."""
    image_size: tuple[int, int]
    """(H, W) of the network's picture."""
    grid: VoxelGrid


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a network gives back; None where a model has no such output."""

    logits_BKXYZ: Tensor
    """Unnormalised scores of the classes, public axis order."""
    depth_logits_BNDhw: Tensor | None = None
    """Of the current pictures."""
    seg_logits_BNKhw: Tensor | None = None
    """2D segmentation of the current pictures."""
    observed_B: Tensor | None = None
    """Bool: samples with a sensor that was present; of the others nothing is known, whatever the scores say. None: all
    have one."""
    centers: CenterOutputs | None = None
    """Where objects are, to tell those of one class apart."""
    density: DensityOutputs | None = None
    """Of networks that are made to be rendered; of the others it follows from the scores."""
    gaussians: Gaussians | None = None
    """What was splatted into the voxels, in the grid's frame; without the one that may stand for empty space."""
    earlier_logits: tuple[Tensor, ...] = ()
    """As ``logits_BKXYZ``, of earlier stages that are to learn, too; in training only."""
    rays: RayOutputs | None = None
    """Which points along the rays of pixels are occupied."""


@dataclass(frozen=True, kw_only=True)
class LabelOutputs:
    """What an exported network gives back: it decodes its scores itself."""

    labels_BXYZ: Tensor
    """uint8 class ids, public axis order."""
    confidence_BXYZ: Tensor | None = None
    """uint8 probability of the label, 0..255; None where it was exported without."""
    observed_B: Tensor | None = None
    """As in Outputs."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of one prediction went, seconds."""

    prepare_s: float
    network_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """The sum."""
        return self.prepare_s + self.network_s + self.decode_s


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """The answer: a class for every voxel of a grid."""

    labels: NDArray[np.uint8]
    """(X, Y, Z) class ids of ``label_set``, indexed [x, y, z]."""
    grid: VoxelGrid
    label_set: LabelSet
    stamp_ns: int
    confidence: NDArray[np.uint8] | None = None
    """(X, Y, Z) probability of the label, 0..255; None unless asked for."""
    instances: NDArray[np.uint16] | None = None
    """(X, Y, Z) number of the object, from 1; 0 where the network found none. None where it tells no objects apart."""
    gaussians: GaussianCloud | None = None
    """What the voxels were made from, in the grid's frame; None where the network has none."""
    model: str = ""
    """Preset or file that made it."""
    trained_on: str = ""
    """What the weights have seen; "untrained weights" where they are fresh."""
    timings: Timings | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit the grid."""
        for name in ("labels", "confidence"):
            array = getattr(self, name)
            if array is not None and (array.shape != self.grid.shape or array.dtype != np.uint8):
                raise ValueError(
                    f"Occupancy.{name}: {array.dtype} {array.shape}; expected uint8 {self.grid.shape} for its grid"
                )
        numbers = self.instances
        if numbers is not None and (numbers.shape != self.grid.shape or numbers.dtype != np.uint16):
            raise ValueError(
                f"Occupancy.instances: {numbers.dtype} {numbers.shape}; expected uint16 {self.grid.shape} for its grid"
            )

    def occupied(self) -> NDArray[np.int64]:
        """Indices (M, 3) of voxels that are neither free nor unknown, in memory order."""
        return np.argwhere((self.labels != self.label_set.free) & (self.labels != self.label_set.unknown))


UNTRAINED = "untrained weights"
"""Value of Occupancy.trained_on for fresh weights."""
