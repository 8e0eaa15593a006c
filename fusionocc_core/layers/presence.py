"""Parts of a network that run on what is present only. Legend: B samples, N cameras."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionocc_core.layers.view_transform import Cameras


def spread(rows: Tensor, present: Tensor) -> Tensor:
    """Rows of what is present at their places in the shape of ``present``; zeros elsewhere."""
    if len(rows) == present.numel():
        return rows.unflatten(0, present.shape) if present.dim() > 1 else rows
    out = rows.new_zeros(present.numel(), *rows.shape[1:]).index_copy(0, present.flatten().nonzero()[:, 0], rows)
    return out.unflatten(0, present.shape) if present.dim() > 1 else out


def only_present(cameras: Cameras, camera_BN: Tensor) -> Cameras:
    """The cameras with unit matrices in place of the calibration of absent ones, which may hold anything."""

    def select(matrices: Tensor) -> Tensor:
        unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        return torch.where(camera_BN[:, :, None, None], matrices, unit)

    return Cameras(
        intrinsics_BN33=select(cameras.intrinsics_BN33),
        image_aug_BN44=select(cameras.image_aug_BN44),
        cam2keyego_BN44=select(cameras.cam2keyego_BN44),
        bev_aug_B44=cameras.bev_aug_B44,
    )


def unused(module: nn.Module) -> Tensor:
    """A zero that depends on every weight of a part that is not run: distributed training waits for all gradients."""
    return torch.stack([weight.sum() for weight in module.parameters()]).sum() * 0.0
