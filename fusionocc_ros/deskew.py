"""Points measured while the vehicle moved, brought to one moment and one sensor's axes. NumPy only, no ROS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import inverse

Matrix = NDArray[np.float64]

KNOT_NS = 10_000_000
"""Poses are asked for at this spacing; between them points move in straight lines. A vehicle that turns by 1 rad/s and
a point 50 m away make an error of under a millimetre of that."""


def bring_points(
    points: NDArray[np.float32],
    times_ns: NDArray[np.int64] | int,
    sensor2fixed_at: Callable[[int], Matrix],
    target2fixed: Matrix,
) -> NDArray[np.float32]:
    """Points in the axes of a target.

    Args:
        points: (P, 3 or more); x, y, z in the sensor's axes at the time of each point, metres; other columns are kept.
        times_ns: (P,) stamp of each point, or one for all.
        sensor2fixed_at: the sensor's pose (4, 4) at a stamp, in a frame that does not move.
        target2fixed: (4, 4) pose of the target in that frame.

    Returns:
        A new array.
    """
    fixed2target = inverse(target2fixed)
    out = points.copy()
    first, last = int(np.min(times_ns)), int(np.max(times_ns))
    count = -(-(last - first) // KNOT_NS) + 1
    knots_ns = np.linspace(first, last, count).round().astype(np.int64)
    knots_K34 = np.stack([(fixed2target @ sensor2fixed_at(int(stamp)))[:3] for stamp in knots_ns])
    if count == 1:
        out[:, :3] = points[:, :3].astype(np.float64) @ knots_K34[0, :, :3].T + knots_K34[0, :, 3]
        return out
    place_P = (np.asarray(times_ns) - first) * ((count - 1) / (last - first))
    left_P = np.minimum(place_P.astype(np.int64), count - 2)
    weight_P11 = (place_P - left_P)[:, None, None]
    matrix_P34 = knots_K34[left_P] * (1 - weight_P11) + knots_K34[left_P + 1] * weight_P11
    out[:, :3] = np.einsum("pij,pj->pi", matrix_P34[:, :, :3], points[:, :3]) + matrix_P34[:, :, 3]
    return out
