"""Labels of pictures from the simulated cloud, painted by the rule that FusionOcc trains with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.data.imgseg import NEAREST_M, paint_cells


def paint(
    uv: NDArray[np.floating], depth: NDArray[np.floating], label: NDArray[np.uint8], image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The map (ceil(H / 8), ceil(W / 8)) of projected points (P, 2) with their depths, metres, and classes (P,).

    Unlike `fusionocc prepare`, which repeats the official painter's way through map coordinates in float32, the
    simulation projects in float64: a point may then paint from the next pixel.
    """
    h, w = image_size
    inside = (depth > NEAREST_M) & (uv[:, 0] >= 0) & (uv[:, 0] < w) & (uv[:, 1] >= 0) & (uv[:, 1] < h)
    u, v = uv[inside].T.astype(np.intp)
    return paint_cells(u, v, label[inside], image_size)
