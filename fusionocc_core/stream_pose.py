"""When and where the samples of a batch were taken: what a network with a memory must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StreamPose:
    """When and where the samples of a batch were taken."""

    ego2global_B44: Tensor
    """float64; any fixed global frame."""
    stamp_ns_B: Tensor
    """int64."""

    def to(self, device: torch.device | str) -> StreamPose:
        """The same on another device."""
        return StreamPose(
            ego2global_B44=self.ego2global_B44.to(device, non_blocking=True),
            stamp_ns_B=self.stamp_ns_B.to(device, non_blocking=True),
        )


def join_poses(poses: Sequence[StreamPose | None]) -> StreamPose | None:
    """Those of several batches as that of one; None where one is not known."""
    known = [pose for pose in poses if pose is not None]
    if len(known) < len(poses):
        return None
    return StreamPose(
        ego2global_B44=torch.cat([pose.ego2global_B44 for pose in known]),
        stamp_ns_B=torch.cat([pose.stamp_ns_B for pose in known]),
    )


def known(pose: StreamPose | None) -> StreamPose:
    """The pose of a batch.

    Raises:
        ValueError: it has none.
    """
    if pose is None:
        raise ValueError("Batch.pose: this network remembers, and the batch has no pose; set it")
    return pose
