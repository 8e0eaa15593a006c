"""From a camera's calibration to the intrinsics of its pictures. NumPy only, no ROS."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_ros.causes import BAD_CALIBRATION, DISTORTED, UNCALIBRATED, DropFrame

Matrix = NDArray[np.float64]

REFUSE, RECTIFIED, UNDISTORT = "refuse", "rectified", "undistort"
DISTORTION_POLICIES = (REFUSE, RECTIFIED, UNDISTORT)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a camera says about itself (the fields of CameraInfo)."""

    size: tuple[int, int]
    """(height, width) of the calibrated picture, pixels; zeros where not said."""
    k: Matrix
    """(3, 3) intrinsics of the pictures as taken."""
    p: Matrix
    """(3, 4) projection of the rectified pictures."""
    r: Matrix
    """(3, 3) rotation of the rectified camera."""
    model: str = ""
    distortion: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Lens:
    """How a camera maps directions to pixels."""

    intrinsics: Matrix
    """(3, 3), pixels, at the resolution of the picture it was asked for."""
    model: str = ""
    distortion: tuple[float, ...] = ()
    """Coefficients that are still to be removed from the picture; empty for none."""


def lens_of_reduced(lens: Lens, whole: tuple[int, int], size: tuple[int, int]) -> Lens:
    """The lens behind a picture of ``size`` (height, width) that was decoded at a fraction of ``whole``.

    Pixel centres count as they do in the picture: for ``undistort``, and for nothing else (see scale_intrinsics).
    """
    return lens if size == whole else replace(lens, intrinsics=_scaled(lens.intrinsics, whole, size, "a reduced one"))


def choose_lens(calibration: Calibration, *, size: tuple[int, int], policy: str, name: str) -> Lens:
    """The lens behind a picture.

    Args:
        calibration: what the camera says.
        size: (height, width) of the picture; intrinsics are scaled where it is a scaled version of the calibrated one.
        policy: "refuse" takes K and refuses distortion; "rectified" takes P, the pictures being rectified already;
            "undistort" takes K and hands the distortion on for removal.
        name: the camera, for messages.

    Raises:
        DropFrame: uncalibrated, not finite, distorted where that is refused, or contradictory.
        ValueError: an unknown policy.
    """
    if policy not in DISTORTION_POLICIES:
        raise ValueError(f"distortion: {policy!r} is not one of {', '.join(DISTORTION_POLICIES)}")
    matrix = _rectified(calibration, name) if policy == RECTIFIED else calibration.k
    which = "P" if policy == RECTIFIED else "K"
    distortion = calibration.distortion if policy != RECTIFIED and any(calibration.distortion) else ()
    if not (np.isfinite(matrix).all() and np.isfinite(distortion).all()):
        raise DropFrame(
            BAD_CALIBRATION,
            f"{name}: CameraInfo has numbers that are not finite: {which}={matrix.reshape(-1).tolist()}, "
            f"D={list(distortion)}; calibrate the camera (camera_calibration), or give its intrinsics in rig_file",
        )
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DropFrame(
            UNCALIBRATED,
            f"{name}: CameraInfo is uncalibrated: {which}[0]={matrix[0, 0]:g}, fy={matrix[1, 1]:g}; expected focal "
            "lengths in pixels: calibrate the camera (camera_calibration), or give its intrinsics in rig_file",
        )
    if distortion and policy == REFUSE:
        raise DropFrame(
            DISTORTED,
            f"{name}: CameraInfo has distortion ({calibration.model}, D={[round(v, 4) for v in distortion]}), which "
            "parameter distortion: refuse does not allow; set it to undistort, or to rectified where the pictures are "
            "rectified already (image_proc)",
        )
    return Lens(
        intrinsics=_scaled(matrix, calibration.size, size, name), model=calibration.model, distortion=distortion
    )


def _rectified(calibration: Calibration, name: str) -> Matrix:
    p, r = calibration.p, calibration.r
    if np.any(p[:, 3] != 0) or (np.any(r != 0) and not np.allclose(r, np.eye(3), atol=1e-4)):
        raise DropFrame(
            BAD_CALIBRATION,
            f"{name}: CameraInfo describes one half of a stereo pair (P[3]={p[0, 3]:g}, R not the identity): its "
            "rectified pictures do not belong to header.frame_id; use the others with distortion: undistort",
        )
    return p[:, :3]


def _scaled(matrix: Matrix, calibrated: tuple[int, int], size: tuple[int, int], name: str) -> Matrix:
    if calibrated in ((0, 0), size):
        return matrix
    (from_height, from_width), (height, width) = calibrated, size
    # Binning and resizing keep the shape; a crop does not, and shifts the principal point.
    if min(calibrated) < 1 or abs(width / from_width - height / from_height) > 1.5 / min(size):
        raise DropFrame(
            BAD_CALIBRATION,
            f"{name}: the picture is {width}x{height} but CameraInfo is for {from_width}x{from_height}, not a scaled "
            "version of it; publish CameraInfo for the pictures as they are",
        )
    scale = np.array([width / from_width, height / from_height])
    out = matrix.copy()
    out[:2] *= scale[:, None]
    # Pixel centres lie at whole numbers: the border of the picture is at -0.5.
    out[:2, 2] += 0.5 * (scale - 1)
    return out
