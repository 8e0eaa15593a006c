"""What may be done to a sample on its way into a network, as explicit parameters, and how to draw them.

The rules are those of the BEVDet family (FusionOcc's official pipeline): a picture is resized, cropped to the network's
size, mirrored, then turned; the space around the vehicle is mirrored along x and y. That space may be turned and
scaled, too, which no default asks for: upstream moves the picture branch then, but neither the points nor the labels.
Here points, labels, masks and the cameras' geometry move together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fusionocc_core.geometry import rotation_from_yaw
from fusionocc_core.grids import VoxelGrid


@dataclass(frozen=True, kw_only=True)
class ImageAug:
    """One camera's way from the source picture to the network's: resize, crop, mirror, turn, in this order."""

    scale: float
    """Network pixels a source pixel; the nominal ratio, which ``resized`` truncates to whole pixels."""
    resized: tuple[int, int]
    """(W, H) of the whole picture after resizing."""
    corner: tuple[int, int]
    """(x, y) in the resized picture of the crop's upper left pixel; what lies outside is black."""
    mirror: bool = False
    """Left and right are swapped."""
    turn_degrees: float = 0.0
    """Counter-clockwise as seen on the screen, about the crop's centre."""

    def matrix(self, image_size: tuple[int, int]) -> NDArray[np.float64]:
        """(4, 4) that maps (u, v, depth, 1) of the source picture to the network's picture of (H, W) pixels."""
        height, width = image_size
        linear, shift = np.eye(2) * self.scale, -np.array(self.corner, dtype=np.float64)
        if self.mirror:
            flip = np.diag([-1.0, 1.0])
            linear, shift = flip @ linear, flip @ shift + [width, 0.0]
        angle = np.deg2rad(self.turn_degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        center = np.array([width, height]) / 2
        out = np.eye(4)
        out[:2, :2], out[:2, 3] = turn @ linear, turn @ (shift - center) + center
        return out


@dataclass(frozen=True, kw_only=True)
class BevAug:
    """Turns, scales, mirrors the space around the vehicle: points, labels, the cameras' geometry, never the pictures.

    About the ego frame's origin, in this order: turned about z, scaled along all three axes, mirrored.
    """

    flip_x: bool = False
    """x becomes -x: front and back are swapped."""
    flip_y: bool = False
    """y becomes -y: left and right are swapped."""
    turn_degrees: float = 0.0
    """From x towards y: counter-clockwise as seen from above."""
    scale: float = 1.0
    """Metres after for one metre before."""

    def __post_init__(self) -> None:
        """Refuse what cannot be undone."""
        if not (0 < self.scale < np.inf and np.isfinite(self.turn_degrees)):
            raise ValueError(
                f"BevAug: scale={self.scale}, turn_degrees={self.turn_degrees}; expected a positive scale and finite "
                "degrees"
            )

    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) ego -> augmented ego; no rigid transform where it mirrors or scales."""
        out = np.eye(4)
        out[:3, :3] = self.scale * rotation_from_yaw(np.deg2rad(self.turn_degrees))
        mirror = np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0, 1.0])
        return mirror @ out + 0.0  # no negative zeros

    def move_volume(
        self, volume_XYZ: NDArray[np.generic], grid: VoxelGrid, *, outside: int | bool
    ) -> NDArray[np.generic]:
        """Labels or masks (X, Y, Z) over a grid in the ego frame, seen over the same grid in the augmented ego frame.

        Every voxel takes the value of the voxel that its centre comes from. Exact where centres come from centres
        (mirroring a grid that is symmetric about the origin, quarter turns of a square one); elsewhere surfaces move by
        up to half a voxel's diagonal.

        Args:
            volume_XYZ: the values.
            grid: that they are on.
            outside: the value of voxels that come from outside the grid, such as ``LabelSet.unknown``.
        """
        x, y, z = self._sources(grid)
        nx, ny, nz = grid.shape
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        columns = np.where(inside, x * ny + y, 0)
        moved = volume_XYZ.reshape(nx * ny, nz)[columns]
        moved[~inside] = outside
        levels = (z >= 0) & (z < nz)
        if levels.all() and (z == np.arange(nz)).all():
            return moved
        moved = np.take(moved, z.clip(0, nz - 1), axis=2)
        moved[:, :, ~levels] = outside
        return moved

    def _sources(self, grid: VoxelGrid) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Voxel indices that the centres come from: x and y (X, Y), z (Z); they may lie outside the grid."""
        aug2ego = np.linalg.inv(self.matrix()[:3, :3])
        nx, ny, nz = grid.shape
        floor = np.stack([*np.indices((nx, ny)).reshape(2, -1), np.zeros(nx * ny, dtype=np.int64)], axis=1)
        upright = np.stack([np.zeros(nz, dtype=np.int64)] * 2 + [np.arange(nz)], axis=1)
        x, y = grid.indices(grid.centers(floor) @ aug2ego.T)[:, :2].T.reshape(2, nx, ny)
        return x, y, grid.indices(grid.centers(upright) @ aug2ego.T)[:, 2]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Ranges of the draws in training; the defaults are FusionOcc's."""

    scale_offset: tuple[float, float] = (-0.06, 0.11)
    """Added to the scale that fits the source picture's width."""
    turn_degrees: tuple[float, float] = (-5.4, 5.4)
    """Of each picture."""
    mirror_chance: float = 0.5
    flip_x_chance: float = 0.5
    flip_y_chance: float = 0.5
    bev_turn_degrees: tuple[float, float] = (0.0, 0.0)
    """Of the space around the vehicle; see BevAug."""
    bev_scale: tuple[float, float] = (1.0, 1.0)
    """Likewise."""

    def __post_init__(self) -> None:
        """Refuse ranges that run backwards or scale to nothing."""
        for name in ("scale_offset", "turn_degrees", "bev_turn_degrees", "bev_scale"):
            low, high = getattr(self, name)
            if not -np.inf < low <= high < np.inf or (name == "bev_scale" and low <= 0):
                kind = "positive numbers" if name == "bev_scale" else "numbers"
                raise ValueError(
                    f"AugmentationConfig.{name}={getattr(self, name)}: expected two finite {kind}, the lower first"
                )


def fit_image(source_size: tuple[int, int], image_size: tuple[int, int]) -> ImageAug:
    """The fixed way at test time: resize to the network's width, keep the lower part.

    Args:
        source_size: (H, W) of the source picture.
        image_size: (H, W) of the network's picture.
    """
    return _resize_and_crop(source_size, image_size, image_size[1] / source_size[1], 0.0)


def draw_image_aug(
    source_size: tuple[int, int], image_size: tuple[int, int], config: AugmentationConfig, generator: torch.Generator
) -> ImageAug:
    """Draw one camera's augmentation; sizes are (H, W)."""
    offset, across, mirror, turn = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    scale = image_size[1] / source_size[1] + _between(config.scale_offset, offset)
    aug = _resize_and_crop(source_size, image_size, scale, across)
    return ImageAug(
        scale=scale,
        resized=aug.resized,
        corner=aug.corner,
        mirror=mirror < config.mirror_chance,
        turn_degrees=_between(config.turn_degrees, turn),
    )


def draw_bev_aug(config: AugmentationConfig, generator: torch.Generator) -> BevAug:
    """Draw what is done to the space around the vehicle.

    Two numbers are drawn, and two more where the configuration turns or scales: without, every later draw stays what it
    was before there was a choice.
    """
    flip_x, flip_y = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    mirrored = BevAug(flip_x=flip_x < config.flip_x_chance, flip_y=flip_y < config.flip_y_chance)
    if config.bev_turn_degrees == (0.0, 0.0) and config.bev_scale == (1.0, 1.0):
        return mirrored
    turn, scale = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return replace(
        mirrored, turn_degrees=_between(config.bev_turn_degrees, turn), scale=_between(config.bev_scale, scale)
    )


def _resize_and_crop(
    source_size: tuple[int, int], image_size: tuple[int, int], scale: float, across: float
) -> ImageAug:
    # The small addend keeps a product such as 900 * 0.88 from being truncated to one pixel less.
    resized = (int(source_size[1] * scale + 1e-6), int(source_size[0] * scale + 1e-6))
    if min(resized) < 1:
        raise ValueError(
            f"a picture of {source_size[1]}x{source_size[0]} pixels resized by {scale:.4f} has no pixel left; "
            "narrow AugmentationConfig.scale_offset, or use larger pictures"
        )
    left = int(across * max(0, resized[0] - image_size[1]))
    return ImageAug(scale=scale, resized=resized, corner=(left, resized[1] - image_size[0]))


def _between(limits: tuple[float, float], draw: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * draw
