"""Pictures and clouds from disk, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

REDUCTIONS = (1, 2, 4, 8)

POINT_BYTES = 20
"""Bytes a point in a nuScenes cloud: x, y, z, intensity, ring as float32."""

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a file that a data set lists.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: {path} is listed in the tables but not on disk; "
            "extract the archive that holds it, or choose scenes that are complete"
        ) from error
    if not data:
        raise ValueError(f"{what}: {path} is empty (0 bytes); copy or download it again")
    return data


def read_image(path: str | Path, *, reduce: int = 1, what: str = "picture") -> NDArray[np.uint8]:
    """Read a picture as uint8 (H, W, 3) RGB; see ``decode_image``.

    Args:
        path: a JPEG or PNG file.
        reduce: decode at 1/reduce of the size (1, 2, 4 or 8); for JPEG the decoder itself then does less.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or not a picture.
    """
    return decode_image(read_bytes(Path(path), what), reduce=reduce, what=f"{what}: {path}")


def decode_image(data: bytes, *, reduce: int = 1, what: str = "picture") -> NDArray[np.uint8]:
    """Decode a JPEG or PNG file to uint8 (H, W, 3) RGB.

    Orientation tags are ignored, since intrinsics belong to the pixels as stored. For JPEG the result equals Pillow's
    in every bit (both use libjpeg-turbo), at less than half the cost.

    Args:
        data: the file's bytes.
        reduce: decode at 1/reduce of the size (1, 2, 4 or 8).
        what: what the bytes are, for messages.

    Raises:
        ValueError: an unknown reduction, or bytes that are truncated or not a picture.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: expected one of {REDUCTIONS}")
    refuse_truncated(data, what)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED_FLAGS[reduce] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # a header that promises more pixels than OpenCV takes
        image = None
    if image is None:
        raise ValueError(f"{what}: {picture_kind(data)} of {len(data)} bytes cannot be decoded: damaged")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def picture_kind(data: bytes) -> str | None:
    """The format that a file begins like: "JPEG" or "PNG"; None for any other."""
    return "JPEG" if data.startswith(_JPEG_START) else "PNG" if data.startswith(_PNG_START) else None


def refuse_truncated(data: bytes, what: str) -> None:
    """Look for the end mark of a picture: OpenCV fills a missing rest with grey and goes on.

    Padding behind the mark, as some cameras leave it, is allowed.

    Args:
        data: the file's bytes.
        what: what they are, for messages.

    Raises:
        ValueError: truncated, or neither JPEG nor PNG.
    """
    kind = picture_kind(data)
    if kind is None:
        raise ValueError(
            f"{what} ({len(data)} bytes, begins with {data[:8].hex(' ') or 'nothing'}) cannot be decoded; "
            "expected a JPEG or PNG file"
        )
    # A preview inside a JPEG has an end mark of its own, so the mark must come after the last scan has begun.
    jpeg_ends = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN) > 0
    if not (jpeg_ends if kind == "JPEG" else _PNG_END in data):
        raise ValueError(
            f"{what} is truncated: {kind} of {len(data)} bytes without the end mark of its format; "
            "copy, download or record it again"
        )


def read_cloud_bytes(path: Path, what: str) -> bytes:
    """The content of a nuScenes cloud: POINT_BYTES for each point.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, or no whole number of points.
    """
    data = read_bytes(path, what)
    if len(data) % POINT_BYTES:
        raise ValueError(
            f"{what}: {path} has {len(data)} bytes, which is no multiple of {POINT_BYTES} "
            "(x, y, z, intensity, ring as float32): truncated or of another format; copy or download it again"
        )
    return data


def read_cloud(path: str | Path, *, what: str = "cloud") -> NDArray[np.float32]:
    """Read a nuScenes cloud (.pcd.bin) as float32 (P, 5): x, y, z in metres, intensity 0..255, ring.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, truncated, or holding numbers that are not finite.
    """
    data = read_cloud_bytes(Path(path), what)
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 5).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{what}: {path}: {len(bad)} of {len(points)} points are not finite, the first at row {bad[0]}: "
            f"{points[bad[0]].tolist()}; expected finite x, y, z, intensity, ring: "
            "drop such points when writing the file"
        )
    return points
