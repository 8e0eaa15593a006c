"""What goes wrong in pictures: pure functions from picture and severity (1 to 5) to picture.

Kinds and grading follow the idea of nuScenes-C and RoboBEV; the numbers are our own. Legend: image is (H, W, 3) uint8
RGB.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.simulation.textures import fractal
from fusionocc_core.structures import CameraImage

Image = NDArray[np.uint8]
CRASHED_CAMERAS = (1, 2, 3, 4, 5)
LOST_SHARE = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)
BLUR_SHARE = (0.006, 0.010, 0.015, 0.022, 0.030)
"""Length of the smear as a share of the picture's width."""
BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)
EXPOSURE = (0.50, 0.36, 0.25, 0.16, 0.09)
PHOTONS = (900.0, 500.0, 260.0, 130.0, 60.0)
"""Photons of a white pixel before the loss of light: fewer give more noise."""
BITS = (5, 4, 3, 2, 1)
FOG_PER_M = (0.008, 0.015, 0.028, 0.045, 0.07)
SNOW_COVER = (0.012, 0.025, 0.045, 0.07, 0.11)
_HORIZON_M = 70.0


def motion_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Smeared along a mostly horizontal line, as by shaking or turning."""
    length = max(3, round(BLUR_SHARE[severity - 1] * image.shape[1]))
    return _as_image(cv2.filter2D(image, -1, _line_kernel(length, rng.normal(0, 0.35))))


def _line_kernel(length: int, angle: float) -> NDArray[np.float32]:
    size = length | 1
    kernel = np.zeros((size, size), np.uint8)
    middle, half = size // 2, length / 2
    dx, dy = half * np.cos(angle), half * np.sin(angle)
    ends = [(round(middle + sign * dx), round(middle + sign * dy)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], (1,), 1)
    return kernel.astype(np.float32) / kernel.sum()


def brightness(image: Image, severity: int) -> Image:
    """Over-exposed: a constant added to the value of HSV, clipped."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2].astype(np.int16) + round(255 * BRIGHTER[severity - 1]), 0, 255)
    return _as_image(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def low_light(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Less light, and the noise of few photons."""
    light = (image.astype(np.float32) / 255) ** 2 * EXPOSURE[severity - 1]
    photons = PHOTONS[severity - 1]
    noisy = light + np.sqrt(light / photons) * rng.standard_normal(light.shape, dtype=np.float32)
    noisy += 0.004 * rng.standard_normal(light.shape, dtype=np.float32) * severity / 5
    return _as_image(255 * np.sqrt(np.clip(noisy, 0, 1)))


def color_quantization(image: Image, severity: int) -> Image:
    """Fewer bits a channel."""
    levels = 2 ** BITS[severity - 1] - 1
    return _as_image(np.round(image.astype(np.float32) / 255 * levels) / levels * 255)


def fog(camera: CameraImage, severity: int, rng: np.random.Generator) -> Image:
    """Haze that thickens with distance; distances are those of a flat road, and a constant one above the horizon."""
    h, w = camera.image.shape[:2]
    rows = np.linspace(0, h - 1, 64)
    fy, cy = camera.intrinsics[1, 1], camera.intrinsics[1, 2]
    down = camera.cam2ego[2, 1] * (rows - cy) / fy + camera.cam2ego[2, 2]
    distance = np.where(down < -1e-3, np.maximum(camera.cam2ego[2, 3], 0.5) / np.maximum(-down, 1e-3), _HORIZON_M)
    distance = np.interp(np.arange(h), rows, np.minimum(distance, _HORIZON_M))[:, None]
    swirl = cv2.resize(fractal(rng, 256, 4, 64), (w, h), interpolation=cv2.INTER_LINEAR)
    thick = FOG_PER_M[severity - 1] * distance * np.clip(1 + 0.18 * swirl, 0.3, 2)
    veil = (1 - np.exp(-thick))[..., None].astype(np.float32)
    return _as_image(camera.image * (1 - veil) + veil * np.array([200, 203, 206], np.float32))


def snow(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Falling flakes of several sizes, smeared by their motion, and a paler scene."""
    h, w = image.shape[:2]
    layer = np.zeros((h, w), np.float32)
    angle = np.pi / 2 + rng.normal(0, 0.35)
    for scale, share in ((2, 0.4), (4, 0.35), (8, 0.25)):
        size = max(2, h * scale // 900 + 1)
        small = rng.random((-(-h // size), -(-w // size)), dtype=np.float32) < SNOW_COVER[severity - 1] * share
        flakes = cv2.resize(small.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
        flakes = cv2.filter2D(flakes, -1, _line_kernel(max(3, 2 * size + severity), angle) * 1.6)
        layer = np.maximum(layer, np.clip(flakes, 0, 1))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    pale = 0.06 * severity
    scene = image * (1 - pale) + pale * np.maximum(image, 0.6 * grey + 90)
    return _as_image(scene * (1 - layer[..., None]) + 250 * layer[..., None])


def black(image: Image) -> Image:
    """No picture: what a receiver puts in the place of a missing one."""
    return np.zeros_like(image)


def _as_image(values: NDArray[np.generic]) -> Image:
    return np.clip(np.asarray(values, np.float32) + 0.5, 0, 255).astype(np.uint8)
