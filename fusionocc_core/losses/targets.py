"""What a batch should have given.

Legend: B samples, N cameras, H W picture, h w feature map, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fusionocc_core.losses.centers import CenterTargets, collate_centers
from fusionocc_core.ops.volume_render_rays import Rays, collate_rays


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a batch should have given. None where a data set has no such labels."""

    labels_BXYZ: Tensor
    """uint8 class ids, augmented like the batch; the label set's ``unknown`` where nothing is known."""
    mask_camera_BXYZ: Tensor | None = None
    """Bool: voxels that a camera observed."""
    mask_lidar_BXYZ: Tensor | None = None
    """Bool: voxels that the LiDAR observed."""
    depth_bins_BNhw: Tensor | None = None
    """int64: 0 where nothing was measured, else 1 + the index of the depth bin."""
    segmentation_BNHW: Tensor | None = None
    """uint8 class of each pixel of the network's current pictures; ``free`` or ``unknown`` where there is no label."""
    centers: CenterTargets | None = None
    """Where objects are."""
    rays: Rays | None = None
    """What was measured along rays, in the (augmented) frame of the volume; there may be none at all."""

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        shape = self.labels_BXYZ.shape
        if len(shape) != 4:
            raise ValueError(f"Targets.labels_BXYZ: shape {tuple(shape)}, expected (B, X, Y, Z)")
        for name in ("mask_camera_BXYZ", "mask_lidar_BXYZ"):
            mask = getattr(self, name)
            if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
                raise ValueError(f"Targets.{name}: {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(shape)}")
        for name in ("depth_bins_BNhw", "segmentation_BNHW"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.dim() != 4 or len(tensor) != len(self.labels_BXYZ)):
                raise ValueError(f"Targets.{name}: shape {tuple(tensor.shape)}, expected 4 axes, {shape[0]} samples")

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None})


JOINED_BY: dict[str, Callable[..., Any]] = {"centers": collate_centers, "rays": collate_rays}
"""How the samples of those fields are put together that are no tensors."""


def collate_targets(samples: Sequence[Targets]) -> Targets:
    """One batch out of several, sample after sample.

    Raises:
        ValueError: some have a kind of label that others lack.
    """
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(Targets)):
        parts = [getattr(sample, name) for sample in samples]
        missing = sum(part is None for part in parts)
        if missing not in (0, len(parts)):
            raise ValueError(f"Targets.{name}: {missing} of {len(parts)} samples of a batch lack it")
        if not missing:
            join: Callable[..., Any] = JOINED_BY.get(name, torch.cat)
            joined[name] = join(parts)
    return replace(samples[0], **joined)
