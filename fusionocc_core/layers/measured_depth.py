"""Measured depth in place of predicted depth, as UniOcc's teacher has it (Pan et al., 2023), and FlashFusion always.

Legend: B samples, N cameras, M pictures, D depth bins, H W picture, h w feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.grids import DepthBins
from fusionocc_core.layers.view_transform import measured_depth_bins


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


def certain_depth(
    depth_BNHW: Tensor, camera_BN: Tensor, lidar_B: Tensor, bins: DepthBins, stride: int
) -> tuple[Tensor, Tensor]:
    """Of the pictures whose camera is present: depth that is certain, (M, D, h, w), and in which cells, (M, 1, h, w).

    Args:
        depth_BNHW: measured, metres; 0 where no point fell.
        camera_BN: bool: the cameras that are present.
        lidar_B: bool: without it nothing was measured.
        bins: of depth.
        stride: pixels a feature cell.
    """
    depth_BNHW = torch.where(lidar_B[:, None, None, None], depth_BNHW, 0.0)
    bin_Mhw = measured_depth_bins(depth_BNHW, bins, stride)[camera_BN]
    one_hot_MDhw = F.one_hot(bin_Mhw, bins.num + 1)[..., 1:].movedim(-1, 1)
    return one_hot_MDhw.to(depth_BNHW.dtype), (bin_Mhw > 0)[:, None]
