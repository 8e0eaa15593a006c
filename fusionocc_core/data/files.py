"""Pictures and clouds from disk, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

REDUCTIONS = (1, 2, 4, 8)

POINT_BYTES = 20
"""Bytes a point in a nuScenes cloud: x, y, z, intensity, ring as float32."""

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND\xaeB`\x82"
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
    """Read a picture as uint8 (H, W, 3) RGB.

    Orientation tags are ignored, since intrinsics belong to the pixels as stored.

    Args:
        path: a JPEG or PNG file.
        reduce: decode at 1/reduce of the size (1, 2, 4 or 8); for JPEG the decoder itself then does less.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or not a picture.
    """
    data = read_bytes(Path(path), what)
    _refuse_truncated(data, Path(path), what)
    image = decode_image(data, reduce=reduce)
    if image is None:
        raise ValueError(
            f"{what}: {path} ({len(data)} bytes, starts with {data[:4]!r}) cannot be decoded; "
            "expected a JPEG or PNG file"
        )
    return image


def decode_image(data: bytes, *, reduce: int = 1) -> NDArray[np.uint8] | None:
    """Decode a compressed picture to uint8 (H, W, 3) RGB; None where the bytes are not a picture.

    For JPEG the result equals Pillow's in every bit (both use libjpeg-turbo), at less than half the cost.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}: expected one of {REDUCTIONS}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED_FLAGS[reduce] | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _refuse_truncated(data: bytes, path: Path, what: str) -> None:
    """OpenCV fills the missing rest of a truncated picture with grey and goes on; look for the end mark instead."""
    if data.startswith(_JPEG_START):
        # An embedded preview has an end mark of its own, so the mark must come after the last scan has begun.
        whole = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN) > 0
    elif data.startswith(_PNG_START):
        whole = _PNG_END in data[-64:]
    else:
        return
    if not whole:
        raise ValueError(
            f"{what}: {path} is truncated ({len(data)} bytes without the end mark of its format); "
            "copy or download it again"
        )


def read_cloud(path: str | Path, *, what: str = "cloud") -> NDArray[np.float32]:
    """Read a nuScenes cloud (.pcd.bin) as float32 (P, 5): x, y, z in metres, intensity 0..255, ring.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, truncated, or holding numbers that are not finite.
    """
    data = read_bytes(Path(path), what)
    if len(data) % POINT_BYTES:
        raise ValueError(
            f"{what}: {path} has {len(data)} bytes, which is no multiple of {POINT_BYTES} "
            "(x, y, z, intensity, ring as float32): truncated or of another format"
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, 5).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{what}: {path}: {len(bad)} of {len(points)} points are not finite, the first at row {bad[0]}: "
            f"{points[bad[0]].tolist()}; expected finite x, y, z, intensity, ring: "
            "drop such points when writing the file"
        )
    return points
