"""Bytes of pictures to RGB arrays. NumPy and OpenCV only, no ROS."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.files import REDUCTIONS, decode_image, picture_kind
from fusionocc_core.data.images import channels_run_backwards
from fusionocc_ros.causes import BAD_ENCODING, BAD_IMAGE, DISTORTED, TOO_LARGE, DropFrame

Picture = NDArray[np.uint8]

_CHANNELS = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "uyvy": 2,
    "yuv422": 2,
    "yuyv": 2,
    "yuv422_yuy2": 2,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
}
_TO_RGB = {
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUYV,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUYV,
    # The names of ROS are the first four pixels; those of OpenCV are the second row's, from its second pixel on.
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
}
ENCODINGS = tuple(_CHANNELS)
"""Encodings of sensor_msgs/Image that are read here."""

VIEWED = ("rgb8", "bgr8")
"""Of these the bytes are used as they are."""
_PAIRED = frozenset({"uyvy", "yuv422", "yuyv", "yuv422_yuy2"})
"""Encodings in which two neighbouring pixels share their colour."""
_MOSAIC_EDGE = 3
"""Fewest rows and columns of a Bayer mosaic from which colours can be made."""
MAX_PIXELS = 64_000_000
"""Pictures with more are refused before they are decoded: a few bytes of JPEG may promise gigabytes."""


def decode_raw(data: NDArray[np.uint8], *, height: int, width: int, step: int, encoding: str, name: str) -> Picture:
    """RGB picture (H, W, 3) from rows of pixels; that of rgb8 and bgr8 is a view of ``data``.

    Args:
        data: the bytes, one-dimensional.
        height: rows.
        width: pixels a row.
        step: bytes from one row to the next, padding included.
        encoding: one of ENCODINGS.
        name: the camera, for messages.

    Raises:
        DropFrame: unknown encoding, zero size, more than MAX_PIXELS, an odd width where pixels come in pairs, or fewer
            bytes than the header says.
    """
    channels = _CHANNELS.get(encoding)
    if channels is None:
        raise DropFrame(
            BAD_ENCODING,
            f"{name}: Image.encoding {encoding!r} is not handled (handled: {', '.join(ENCODINGS)}); set "
            "image_decoder: cv_bridge where cv_bridge is installed, or convert the pictures before",
        )
    row = width * channels
    if height < 1 or width < 1 or step < row:
        raise DropFrame(
            BAD_IMAGE,
            f"{name}: Image is {width}x{height} with step {step}; expected at least one row of at least {row} bytes",
        )
    if encoding in _PAIRED and width % 2:
        raise DropFrame(
            BAD_IMAGE,
            f"{name}: Image of encoding {encoding!r} has width {width}; pixels come in pairs, so it must be even",
        )
    if encoding.startswith("bayer") and min(height, width) < _MOSAIC_EDGE:
        raise DropFrame(
            BAD_IMAGE,
            f"{name}: Image of encoding {encoding!r} is {width}x{height}; a mosaic needs at least "
            f"{_MOSAIC_EDGE}x{_MOSAIC_EDGE} pixels",
        )
    _refuse_too_large(width, height, name)
    needed = step * (height - 1) + row
    if len(data) < needed:
        raise DropFrame(
            BAD_IMAGE,
            f"{name}: Image.data has {len(data)} bytes, {width}x{height} {encoding} needs {needed}: truncated",
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, width, channels), (step, channels, 1))
    if encoding in VIEWED:
        return rows if encoding == "rgb8" else rows[..., ::-1]
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rows), _TO_RGB[encoding]), dtype=np.uint8)


def _refuse_too_large(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise DropFrame(
            TOO_LARGE,
            f"{name}: a picture of {width}x{height} pixels; at most {MAX_PIXELS} are taken: scale it down before",
        )


_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold the size of a JPEG (SOF0 to SOF15)."""


def size_in_header(content: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG or PNG file promises; zeros where it has no such header."""
    if picture_kind(content) == "PNG":
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        if content[at + 1] in _JPEG_SIZES:
            return int.from_bytes(content[at + 7 : at + 9], "big"), int.from_bytes(content[at + 5 : at + 7], "big")
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 0, 0


def decode_compressed(data: NDArray[np.uint8], *, image_format: str, name: str, least_width: int = 0) -> Picture:
    """RGB picture (H, W, 3) from a JPEG or PNG file, judged as files of a data set are (data.files.decode_image).

    Args:
        data: the file's bytes, one-dimensional.
        image_format: CompressedImage.format; only its hint about swapped channels is used, the file says what it is.
        name: the camera, for messages.
        least_width: a JPEG is decoded at a half, a quarter or an eighth of its size as long as it keeps this many
            columns, in a fraction of the time; 0: at its whole size.

    Raises:
        DropFrame: neither JPEG nor PNG, more than MAX_PIXELS, or truncated (decoders would fill the rest with grey and
            say nothing).
    """
    content = data.tobytes()
    if picture_kind(content) is None:
        raise DropFrame(
            BAD_ENCODING,
            f"{name}: CompressedImage of format {image_format!r} begins with {content[:8].hex(' ') or 'nothing'}; "
            "expected a JPEG or PNG file",
        )
    width, height = size_in_header(content)
    _refuse_too_large(width, height, name)
    reduce = _reduction(width, height, least_width) if picture_kind(content) == "JPEG" else 1
    try:
        picture = decode_image(content, reduce=reduce, what=f"{name}: CompressedImage")
    except ValueError as error:
        raise DropFrame(BAD_IMAGE, str(error)) from error
    if re.search(r"compressed rgb", image_format):
        return picture[..., ::-1]
    return picture


def _reduction(width: int, height: int, least_width: int) -> int:
    """The largest part of its size at which a picture keeps ``least_width`` columns and loses no row or column."""
    fitting = [r for r in REDUCTIONS if width >= r * least_width and not (width % r or height % r)]
    return max(fitting, default=1) if least_width else 1


@lru_cache(maxsize=32)
def _undistortion_maps(
    model: str, intrinsics: tuple[float, ...], distortion: tuple[float, ...], size: tuple[int, int]
) -> tuple[Any, Any]:
    k, d = np.array(intrinsics).reshape(3, 3), np.array(distortion)
    make = cv2.fisheye.initUndistortRectifyMap if model == "equidistant" else cv2.initUndistortRectifyMap
    return make(k, d, np.eye(3), k, size, cv2.CV_16SC2)


_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


def undistort(
    picture: Picture, intrinsics: NDArray[np.float64], model: str, distortion: tuple[float, ...], *, name: str
) -> Picture:
    """The picture that a camera of the same intrinsics without distortion would have taken; black where unseen.

    Raises:
        DropFrame: a distortion model that OpenCV does not know, or a wrong number of coefficients.
    """
    if len(distortion) not in _COEFFICIENTS.get(model, ()):
        raise DropFrame(
            DISTORTED,
            f"{name}: distortion model {model!r} with {len(distortion)} coefficients is not handled (handled: "
            "plumb_bob with 4 or 5, rational_polynomial with 8, 12 or 14, equidistant with 4); rectify them first",
        )
    if channels_run_backwards(picture):
        return undistort(picture[..., ::-1], intrinsics, model, distortion, name=name)[..., ::-1]
    height, width = picture.shape[:2]
    maps = _undistortion_maps(model, tuple(float(v) for v in intrinsics.ravel()), distortion, (width, height))
    return np.asarray(cv2.remap(picture, *maps, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
