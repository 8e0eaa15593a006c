"""The other reading of Occ3D's vertical layout: the road in the lowest level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUND_CLASSES = (11, 12, 13, 14)
_ROAD_LEVEL = 2
"""z index of a road at z = 0."""
_FREE = 17
Volume = NDArray[np.uint8]


def lowered_ground(
    semantics: Volume, mask_lidar: NDArray[np.bool_], mask_camera: NDArray[np.bool_]
) -> tuple[Volume, NDArray[np.bool_], NDArray[np.bool_]]:
    """Move the ground two levels (0.8 m) down and let what stands on it reach down to it.

    In the one genuine Occ3D label at hand the road lies at z index 0, objects begin there, and their tops fit a road at
    z = 0. The levels between the road and 0.6 m are mostly unobserved there; so they are here.
    """
    out = semantics.copy()
    ground = np.isin(semantics, GROUND_CLASSES)
    low = ground[..., : _ROAD_LEVEL + 2]
    has_ground = low.any(axis=2)
    level = np.where(has_ground, low.argmax(axis=2), 0)
    kind = np.take_along_axis(semantics[..., : _ROAD_LEVEL + 2], level[..., None], axis=2)[..., 0]
    out[..., : _ROAD_LEVEL + 2][low] = _FREE
    floor = np.maximum(level - _ROAD_LEVEL, 0)
    x, y = np.nonzero(has_ground)
    out[x, y, floor[x, y]] = kind[x, y]
    solid = ~np.isin(out, (*GROUND_CLASSES, _FREE))
    base = solid[..., : _ROAD_LEVEL + 2]
    stands = base.any(axis=2)
    first = np.where(stands, base.argmax(axis=2), 0)
    for z in range(_ROAD_LEVEL + 2):
        fill = stands & (z < first)
        out[..., z][fill] = np.take_along_axis(out, first[..., None], axis=2)[..., 0][fill]
    masks = []
    for mask in (mask_lidar, mask_camera):
        moved = mask.copy()
        moved[..., : _ROAD_LEVEL + 1] = False
        moved[..., 0] = mask[..., : _ROAD_LEVEL + 1].any(axis=2)
        masks.append(moved)
    return out, masks[0], masks[1]
