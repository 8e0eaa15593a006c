"""What may be done to a sample on its way into a network, as explicit parameters, and how to draw them.

The rules are those of the BEVDet family (FusionOcc's official pipeline): a picture is resized, cropped to the network's
size, mirrored, then turned; the space around the vehicle is mirrored along x and y. Turning or scaling that space is
left out on purpose: upstream it would move the picture branch but neither the points nor the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


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
    """Mirrors the space around the vehicle: points, labels and the cameras' geometry, never the pictures."""

    flip_x: bool = False
    """x becomes -x: front and back are swapped."""
    flip_y: bool = False
    """y becomes -y: left and right are swapped."""

    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) ego -> augmented ego."""
        return np.diag([-1.0 if self.flip_x else 1.0, -1.0 if self.flip_y else 1.0, 1.0, 1.0])

    def flip_volume(self, volume_XYZ: NDArray[np.generic]) -> NDArray[np.generic]:
        """Labels or masks (X, Y, Z) over a grid that is symmetric in x and y, seen in the augmented ego frame."""
        steps = (-1 if self.flip_x else 1, -1 if self.flip_y else 1)
        return np.ascontiguousarray(volume_XYZ[:: steps[0], :: steps[1]])


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Ranges of the draws in training; the defaults are FusionOcc's."""

    scale_offset: tuple[float, float] = (-0.06, 0.11)
    """Added to the scale that fits the source picture's width."""
    turn_degrees: tuple[float, float] = (-5.4, 5.4)
    mirror_chance: float = 0.5
    flip_x_chance: float = 0.5
    flip_y_chance: float = 0.5


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
    """Draw the mirroring of the space around the vehicle."""
    flip_x, flip_y = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return BevAug(flip_x=flip_x < config.flip_x_chance, flip_y=flip_y < config.flip_y_chance)


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
