"""Text, swatches and placing of pictures on a larger one."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fusionocc_core.grids import Color

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

PAPER: Color = (250, 250, 251)
INK: Color = (32, 36, 42)
FAINT_INK: Color = (120, 126, 134)
WARNING: Color = (196, 60, 20)


def blank(height: int, width: int, color: Color = PAPER) -> Picture:
    """A picture of one colour."""
    return np.full((height, width, 3), color, np.uint8)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface; releases before 10.1 have it in one size only."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def text_size(text: str, size: int) -> tuple[int, int]:
    """Width and height in pixels that ``write`` will cover."""
    left, top, right, bottom = _font(size).getbbox(text)
    return int(np.ceil(right - min(left, 0))), int(np.ceil(bottom - min(top, 0)))


def shortened(text: str, size: int, width: int) -> str:
    """The text, or as much of its beginning as is at most ``width`` pixels wide, and an ellipsis."""
    if text_size(text, size)[0] <= width:
        return text
    while text and text_size(f"{text}...", size)[0] > width:
        text = text[:-1]
    return f"{text}..."


def write(
    picture: Picture, at: tuple[int, int], text: str, size: int = 16, color: Color = INK, halo: Color | None = None
) -> None:
    """Write text into ``picture`` in place; ``at`` is the (x, y) of its upper left corner, ``halo`` a thin outline."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    if halo is None:
        draw.text(at, text, fill=color, font=_font(size))
    else:
        draw.text(at, text, fill=color, font=_font(size), stroke_width=2, stroke_fill=halo)
    picture[:] = np.asarray(image)


def fit(picture: Picture, height: int, width: int, background: Color = PAPER) -> Picture:
    """Scale a picture into a field of the given size, keeping its proportions; the rest is background."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    h, w = max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))
    scaled = cast(Picture, cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))
    field = blank(height, width, background)
    top, left = (height - h) // 2, (width - w) // 2
    field[top : top + h, left : left + w] = scaled
    return field


def paste(picture: Picture, at: tuple[int, int], part: Picture) -> None:
    """Copy ``part`` into ``picture`` in place with its upper left corner at (x, y)."""
    x, y = at
    picture[y : y + part.shape[0], x : x + part.shape[1]] = part
