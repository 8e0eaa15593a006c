"""Pictures: from uint8 RGB of any size to the network's normalised input, by explicit parameters.

Legend: H W height and width in pixels, C channels.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fusionocc_core.data.augmentation import ImageAug
from fusionocc_core.structures import InputConfig

_HALF = 0.5
"""Below this scale bilinear sampling skips source pixels: pictures are halved first."""

IGNORED_SEG_LABEL = 17
SEG_STRIDE = 8
"""Stored 2D label maps hold every eighth pixel of the source picture."""


def transform_image(
    image_HWC: NDArray[np.uint8], aug: ImageAug, image_size: tuple[int, int], resampling: str
) -> NDArray[np.uint8]:
    """Resize, crop, mirror and turn a picture.

    Args:
        image_HWC: source picture, uint8.
        aug: what to do; see ImageAug.
        image_size: (H, W) of the result.
        resampling: "pillow": bicubic, turning with nearest neighbours, bit for bit what the official pipelines do with
            Pillow. "opencv": halved by means of four pixels until at most half is left to do, then bilinear; turning
            is bilinear.

    Returns:
        (H, W, 3) uint8; black where the source has no pixel. Channels lie in memory as they do in the source.
    """
    if channels_run_backwards(image_HWC):
        return transform_image(image_HWC[..., ::-1], aug, image_size, resampling)[..., ::-1]
    if resampling == "pillow":
        resized, rows = _resize_bicubic(Image.fromarray(image_HWC), aug)
        return _crop_with_pillow(resized, (aug.corner[0], aug.corner[1] - rows), aug, image_size)
    return _transform_with_opencv(np.ascontiguousarray(image_HWC), aug, image_size)


def channels_run_backwards(image_HWC: NDArray[np.uint8]) -> bool:
    """Whether this RGB picture is a view of BGR bytes, which libraries would copy pixel by pixel; turn it first."""
    return image_HWC.strides[2] < 0


def transform_seg_map(seg_hw: NDArray[np.uint8], aug: ImageAug, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a stored 2D label map (113, 200) to the network's picture (H, W), by nearest neighbours.

    As upstream, each stored value first fills 8x8 pixels (so 113 rows become 904, four more than the picture has, which
    squeezes the map a little), and pixels without source become 0 ("others"), not "ignore".
    """
    whole = seg_hw.repeat(SEG_STRIDE, axis=0).repeat(SEG_STRIDE, axis=1)
    resized = Image.fromarray(whole).resize(aug.resized, Image.Resampling.NEAREST)
    return _crop_with_pillow(resized, aug.corner, aug, image_size)


def normalize_into(out_CHW: NDArray[np.float32], image_HWC: NDArray[np.uint8], inputs: InputConfig) -> None:
    """Write (value - mean) / std, in float32, of an RGB picture to ``out_CHW``.

    With channel_order "bgr" the picture's channels are swapped while mean and std stay where they are.
    """
    backwards = channels_run_backwards(image_HWC)
    planes = cv2.split(image_HWC[..., ::-1] if backwards else image_HWC)
    if backwards != (inputs.channel_order == "bgr"):
        planes = planes[::-1]
    for channel, (plane, table) in enumerate(zip(planes, _tables(inputs.mean, inputs.std), strict=True)):
        out_CHW[channel] = cv2.LUT(plane, table)


def normalize(images_THWC: Tensor, inputs: InputConfig) -> Tensor:
    """(T, 3, H, W) float32 of RGB pictures (T, H, W, 3) uint8, where they are: the same numbers as normalize_into."""
    tables = torch.from_numpy(_tables(inputs.mean, inputs.std)).to(images_THWC.device)
    planes = images_THWC.long().unbind(dim=3)
    if inputs.channel_order == "bgr":
        planes = planes[::-1]
    return torch.stack([table[plane] for table, plane in zip(tables, planes, strict=True)], dim=1)


@lru_cache(maxsize=8)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Normalised value of each of the 256 bytes, one row a channel: a look-up is quicker than arithmetic."""
    values = np.arange(256, dtype=np.float32)
    rows = [(values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    return np.stack(rows).astype(np.float32)


def _resize_bicubic(picture: Image.Image, aug: ImageAug) -> tuple[Image.Image, int]:
    """The resized picture without rows that the crop leaves out at the top, and how many rows that are.

    Columns first, then rows, each rounded to bytes: the order of the Pillow that the official results were made with.
    Later ones choose the order by its cost, which changes some values by one.
    """
    width, height = aug.resized
    source_row, row = _rows_above(aug.corner[1], picture.height, height)
    below = (0, source_row, picture.width, picture.height)
    across = picture.resize((width, picture.height - source_row), Image.Resampling.BICUBIC, box=below)
    return across.resize((width, height - row), Image.Resampling.BICUBIC), row


def _crop_with_pillow(
    picture: Image.Image, corner: tuple[int, int], aug: ImageAug, image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    (x, y), (height, width) = corner, image_size
    picture = picture.crop((x, y, x + width, y + height))
    if aug.mirror:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if aug.turn_degrees:
        picture = picture.rotate(aug.turn_degrees)
    return np.array(picture)


def _rows_above(y: int, source_height: int, resized_height: int) -> tuple[int, int]:
    """How many rows at the top need not be resized, in the source and in the result, since the crop starts below.

    The two numbers are in the exact ratio of the heights, so that the rows kept come out the same.
    """
    common = gcd(source_height, resized_height)
    step = resized_height // common
    support = 3 * ceil(max(1.0, resized_height / source_height))
    steps = max(0, min(y, resized_height - 1) - support) // step
    return steps * (source_height // common), steps * step


def _transform_with_opencv(
    image_HWC: NDArray[np.uint8], aug: ImageAug, image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    height, width = image_size
    (x, y), (across, down) = aug.corner, aug.resized
    source = _halved(image_HWC, across)
    source_row, row = _rows_above(y, source.shape[0], down)
    resized = cv2.resize(source[source_row:], (across, down - row), interpolation=cv2.INTER_LINEAR)
    picture = _crop(np.asarray(resized, dtype=np.uint8), (x, y - row), image_size)
    if aug.mirror:
        picture = np.asarray(cv2.flip(picture, 1), dtype=np.uint8)
    if aug.turn_degrees:
        # Pixel centres lie at whole numbers for OpenCV, so the picture's centre is half a pixel up and left.
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), aug.turn_degrees, 1.0)
        picture = np.asarray(cv2.warpAffine(picture, turn, (width, height), flags=cv2.INTER_LINEAR), dtype=np.uint8)
    return picture


def _halved(image_HWC: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The picture halved, by means of four pixels, until it is at most twice as wide as ``width``.

    Far quicker than averaging over areas that are no whole pixels, and what a JPEG decoder does by itself.
    """
    while image_HWC.shape[1] * _HALF > width and min(image_HWC.shape[:2]) > 1:
        half = (image_HWC.shape[1] // 2, image_HWC.shape[0] // 2)
        image_HWC = np.asarray(cv2.resize(image_HWC, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return image_HWC


def _crop(image_HWC: NDArray[np.uint8], corner: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut out (H, W) pixels from ``corner`` (x, y) on; black where the picture does not reach."""
    (x, y), (height, width) = corner, size
    inside = image_HWC[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if inside.shape[:2] == size:
        return inside
    out = np.zeros((height, width, image_HWC.shape[2]), dtype=np.uint8)
    top, left = max(-y, 0), max(-x, 0)
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out
