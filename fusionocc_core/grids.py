"""Voxel grids, depth bins and label sets: the three things that must agree before two tensors may be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VoxelGrid:
    """A regular grid in a named frame. Public arrays over it are indexed [x, y, z].

    Voxel (i, j, k) spans ``lower + (i, j, k) * voxel_size`` to ``lower + (i+1, j+1, k+1) * voxel_size``.
    """

    frame: str
    """The frame its axes belong to: "ego" (x forward, y left, z up, at the reference time) or "lidar"."""
    lower: tuple[float, float, float]
    """The outer corner of voxel (0, 0, 0), metres."""
    upper: tuple[float, float, float]
    """The opposite corner, metres."""
    voxel_size: tuple[float, float, float]
    """Edge lengths, metres."""

    def __post_init__(self) -> None:
        """Refuse ranges that are not a whole number of voxels (rounding would hide a typing error)."""
        for axis, lo, hi, size in zip("xyz", self.lower, self.upper, self.voxel_size, strict=True):
            if not size > 0:
                raise ValueError(f"voxel_size.{axis}: expected a positive length in metres, got {size}")
            if not hi > lo:
                raise ValueError(f"VoxelGrid {axis}: upper ({hi}) must lie above lower ({lo})")
            count = (hi - lo) / size
            if abs(count - round(count)) > 1e-4:
                raise ValueError(
                    f"VoxelGrid {axis}: {lo} to {hi} m is {count:.4f} voxels of {size} m; "
                    "choose a range that is a whole number of voxels"
                )

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along x, y, z."""
        x, y, z = (
            round((hi - lo) / size) for lo, hi, size in zip(self.lower, self.upper, self.voxel_size, strict=True)
        )
        return x, y, z

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Number of voxels in the order that models use for volumes (B, C, Z, Y, X)."""
        x, y, z = self.shape
        return z, y, x

    def indices(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Voxel indices (P, 3) of points (P, 3) in this grid's frame, by floor; may lie outside the grid."""
        lower, size = np.asarray(self.lower), np.asarray(self.voxel_size)
        return np.floor((np.asarray(points)[:, :3] - lower) / size).astype(np.int64)

    def contains(self, indices: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of the voxel indices (P, 3) lie inside the grid."""
        return ((indices >= 0) & (indices < np.asarray(self.shape))).all(axis=1)

    def centers(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Centres (P, 3) in metres, in this grid's frame, of voxel indices (P, 3)."""
        return np.asarray(self.lower) + (np.asarray(indices) + 0.5) * np.asarray(self.voxel_size)


SPACINGS = ("linear", "log", "log_official")


@dataclass(frozen=True, kw_only=True)
class DepthBins:
    """Depths along a camera ray: bin k covers [edges[k], edges[k + 1]), metres."""

    start: float
    stop: float
    step: float
    """Width of a bin, and where ``spacing`` is not linear what decides their number: (stop - start) / step."""
    spacing: str = "linear"
    """"linear": bins of equal width. "log": each bin wider than the last by the same factor, so that a bin is about as
    long as depth is uncertain there (spacing-increasing, as in DORN). "log_official": the same with the last bin's
    lower edge at stop - 1 m instead of where it would end at ``stop`` (BEVDet family; there too bins are counted from
    steps)."""

    def __post_init__(self) -> None:
        """Refuse bins that are empty or do not fill the range."""
        count = (self.stop - self.start) / self.step if self.step > 0 else 0.0
        if not (self.start > 0 and count >= 1 and abs(count - round(count)) < 1e-4):
            raise ValueError(
                f"DepthBins: start={self.start}, stop={self.stop}, step={self.step} must give a whole number of bins "
                "in front of the camera"
            )
        if self.spacing not in SPACINGS:
            raise ValueError(f"DepthBins.spacing={self.spacing!r}: expected one of {SPACINGS}")
        if self.spacing == "log_official" and (self.num < 2 or self.stop - 1 <= self.start):
            raise ValueError(
                f"DepthBins: spacing='log_official' wants two bins or more and start={self.start} below "
                f"stop - 1 = {self.stop - 1} m"
            )

    @cached_property
    def num(self) -> int:
        """How many bins."""
        return round((self.stop - self.start) / self.step)

    @cached_property
    def log_step(self) -> float:
        """Logarithm of the factor between neighbouring edges.

        Raises:
            ValueError: the bins are linear.
        """
        if self.spacing == "linear":
            raise ValueError("DepthBins.log_step: linear bins have no factor between their edges; use step")
        if self.spacing == "log":
            return math.log(self.stop / self.start) / self.num
        return math.log((self.stop - 1) / self.start) / (self.num - 1)

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """The num + 1 borders of the bins, metres, rising."""
        if self.spacing == "linear":
            return tuple(self.start + k * self.step for k in range(self.num + 1))
        return tuple(self.start * math.exp(k * self.log_step) for k in range(self.num + 1))


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Names, colours and special ids of the classes that a volume holds."""

    name: str
    names: tuple[str, ...]
    """Class names; the position is the id."""
    colors: tuple[Color, ...]
    """sRGB 0-255, one a class."""
    free: int
    """The id of empty space."""
    unknown: int = 255
    """The id of voxels about which nothing is known; never a class."""

    def __post_init__(self) -> None:
        """Refuse sets whose parts disagree."""
        if len(self.names) != len(self.colors):
            raise ValueError(f"LabelSet {self.name}: {len(self.names)} names but {len(self.colors)} colors")
        if not 0 <= self.free < len(self.names):
            raise ValueError(f"LabelSet {self.name}: free={self.free} is not one of 0..{len(self.names) - 1}")
        if 0 <= self.unknown < len(self.names) or not 0 <= self.unknown <= 255:
            raise ValueError(f"LabelSet {self.name}: unknown={self.unknown} must be a byte that is not a class id")

    @property
    def num(self) -> int:
        """How many classes, free space included."""
        return len(self.names)


OCC3D_GRID = VoxelGrid(frame="ego", lower=(-40.0, -40.0, -1.0), upper=(40.0, 40.0, 5.4), voxel_size=(0.4, 0.4, 0.4))
"""Occ3D-nuScenes: 200 x 200 x 16 voxels in the ego frame at the LiDAR keyframe's time."""

SURROUNDOCC_GRID = VoxelGrid(
    frame="lidar", lower=(-50.0, -50.0, -5.0), upper=(50.0, 50.0, 3.0), voxel_size=(0.5, 0.5, 0.5)
)
"""SurroundOcc: the same 200 x 200 x 16, but in the LiDAR's frame and with half-metre voxels."""

_CLASSES: tuple[tuple[str, Color], ...] = (
    ("others", (110, 110, 110)),
    ("barrier", (255, 120, 50)),
    ("bicycle", (255, 192, 203)),
    ("bus", (255, 221, 0)),
    ("car", (0, 150, 245)),
    ("construction_vehicle", (0, 211, 211)),
    ("motorcycle", (200, 180, 0)),
    ("pedestrian", (235, 30, 30)),
    ("traffic_cone", (255, 240, 150)),
    ("trailer", (135, 60, 0)),
    ("truck", (160, 32, 240)),
    ("driveable_surface", (172, 104, 186)),
    ("other_flat", (139, 137, 137)),
    ("sidewalk", (104, 38, 108)),
    ("terrain", (150, 220, 80)),
    ("manmade", (192, 184, 168)),
    ("vegetation", (0, 155, 40)),
    ("free", (255, 255, 255)),
)

OCC3D_LABELS = LabelSet(
    name="occ3d", names=tuple(n for n, _ in _CLASSES), colors=tuple(c for _, c in _CLASSES), free=len(_CLASSES) - 1
)
"""The 18 classes of Occ3D-nuScenes: 0 others to 16 vegetation as in nuScenes-lidarseg, 17 free."""

_LIDARSEG_NAMES: dict[str, tuple[str, ...]] = {
    "others": (
        "noise",
        "animal",
        "human.pedestrian.personal_mobility",
        "human.pedestrian.stroller",
        "human.pedestrian.wheelchair",
        "movable_object.debris",
        "movable_object.pushable_pullable",
        "static_object.bicycle_rack",
        "vehicle.emergency.ambulance",
        "vehicle.emergency.police",
        "static.other",
        "vehicle.ego",
    ),
    "barrier": ("movable_object.barrier",),
    "bicycle": ("vehicle.bicycle",),
    "bus": ("vehicle.bus.bendy", "vehicle.bus.rigid"),
    "car": ("vehicle.car",),
    "construction_vehicle": ("vehicle.construction",),
    "motorcycle": ("vehicle.motorcycle",),
    "pedestrian": (
        "human.pedestrian.adult",
        "human.pedestrian.child",
        "human.pedestrian.construction_worker",
        "human.pedestrian.police_officer",
    ),
    "traffic_cone": ("movable_object.trafficcone",),
    "trailer": ("vehicle.trailer",),
    "truck": ("vehicle.truck",),
    "driveable_surface": ("flat.driveable_surface",),
    "other_flat": ("flat.other",),
    "sidewalk": ("flat.sidewalk",),
    "terrain": ("flat.terrain",),
    "manmade": ("static.manmade",),
    "vegetation": ("static.vegetation",),
}

LIDARSEG_TO_OCC3D: dict[str, int] = {
    raw: OCC3D_LABELS.names.index(name) for name, raws in _LIDARSEG_NAMES.items() for raw in raws
}
"""Name of each of the 32 nuScenes-lidarseg categories -> Occ3D class."""
