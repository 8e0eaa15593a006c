"""Measured depth in place of predicted depth, as UniOcc's teacher has it (Pan et al., 2023).

Legend: M pictures, D depth bins, h w feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def override_depth(depth_MDhw: Tensor, measured_Mhw: Tensor) -> Tensor:
    """A depth distribution that is certain where a point was measured, and as predicted elsewhere.

    Args:
        depth_MDhw: sums to one over D.
        measured_Mhw: view_transform.measured_depth_bins: 0 where the cell holds no point, else 1 + the bin's index.

    Raises:
        ValueError: shapes that do not fit.
    """
    if measured_Mhw.shape != (len(depth_MDhw), *depth_MDhw.shape[2:]):
        raise ValueError(
            f"override_depth: measured_Mhw has shape {tuple(measured_Mhw.shape)}, depth_MDhw {tuple(depth_MDhw.shape)}"
        )
    bins_D = torch.arange(1, depth_MDhw.shape[1] + 1, device=depth_MDhw.device)
    certain_MDhw = (measured_Mhw[:, None] == bins_D[:, None, None]).to(depth_MDhw.dtype)
    return torch.where(measured_Mhw[:, None] > 0, certain_MDhw, depth_MDhw)
