"""Memory of a map seen from above: brought to where the vehicle is now, and taken in cell by cell.

After the voxel state of GDFusion (Chen et al., 2025), on a map instead of a volume. Everything is a pure function of
the inputs and the state; nobody keeps a state inside a module.

Legend: B samples, C channels, y x cells of the map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.layers.pull_lift import BevMap
from fusionocc_core.stream_pose import StreamPose


@dataclass(frozen=True, kw_only=True)
class BevState:
    """What is remembered of each stream: one map, its place and its time."""

    map_BCyx: Tensor
    valid_B1yx: Tensor
    """Bool: cells that hold something."""
    map2global_B44: Tensor
    """float64; of the (augmented) ego frame that the map lies in."""
    stamp_ns_B: Tensor
    """int64, when the map was written."""


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """When a memory goes on, and when it is written anew."""

    longest_gap_s: float = 1.5
    """A memory that is older, or younger than now, is forgotten."""
    farthest_jump_m: float = 5.0
    """A pose that has moved by more than this and ``fastest_m_s`` times the gap is taken for an error: forgotten."""
    fastest_m_s: float = 50.0
    widest_turn_degrees: float = 45.0
    """Since the last writing; likewise."""
    write_after_s: float = 0.4
    """The memory is read in every frame and written after this time, or this way, whichever comes first: labels, and so
    what a training has seen, come at 2 Hz, frames at 10 Hz or more."""
    write_after_m: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Warp:
    """From the map as it is now to the map of the memory."""

    now2then_B44: Tensor
    """float64."""
    seconds_B: Tensor
    """float64, since the memory was written."""

    @property
    def moved_B(self) -> Tensor:
        """Metres between the two origins."""
        return self.now2then_B44[:, :3, 3].norm(dim=1)

    def continues(self, limits: StreamLimits) -> Tensor:
        """(B,) bool: samples whose memory belongs to the same drive."""
        cos_B = (self.now2then_B44[:, 0, 0] + self.now2then_B44[:, 1, 1]) / 2
        farthest_B = torch.maximum(self.seconds_B * limits.fastest_m_s, self.seconds_B * 0 + limits.farthest_jump_m)
        return (
            (self.seconds_B >= 0)
            & (self.seconds_B <= limits.longest_gap_s)
            & (self.moved_B <= farthest_B)
            & (cos_B >= math.cos(math.radians(limits.widest_turn_degrees)))
        )

    def is_due(self, limits: StreamLimits) -> Tensor:
        """(B,) bool: samples whose memory is to be written."""
        return (self.seconds_B >= limits.write_after_s) | (self.moved_B >= limits.write_after_m)


def warp_to(state: BevState, map2global_B44: Tensor, stamp_ns_B: Tensor) -> Warp:
    """How the memory lies to a map that is placed and stamped as given."""
    return Warp(
        now2then_B44=torch.linalg.inv(state.map2global_B44) @ map2global_B44,
        seconds_B=(stamp_ns_B - state.stamp_ns_B).double() / 1e9,
    )


def warped(state: BevState, warp: Warp, bev: BevMap) -> tuple[Tensor, Tensor]:
    """The memory at the cells of the map as it is now, and where it holds something.

    Bilinear between the middles of cells. A cell is valid where everything that it is made of is: inside the old map,
    remembered, and finite. The others are zero.

    Returns:
        (B, C, y, x) float32, whatever the memory holds, and bool (B, 1, y, x).
    """
    known_B1yx = state.valid_B1yx & state.map_BCyx.isfinite().all(dim=1, keepdim=True)
    clean_BCyx = torch.where(known_B1yx, state.map_BCyx, 0.0)
    now_P3 = bev.centers((0.0,), warp.now2then_B44[0, 0, 0]).flatten(0, 2)
    then_BP2 = now_P3 @ warp.now2then_B44[:, :2, :3].transpose(1, 2) + warp.now2then_B44[:, None, :2, 3]
    lower, size = (then_BP2.new_tensor(values) for values in (bev.lower, bev.cell_size))
    extent = size * then_BP2.new_tensor(bev.shape)
    place_Byx2 = (2 * (then_BP2 - lower) / extent - 1).view(len(then_BP2), bev.shape[1], bev.shape[0], 2)
    # In half precision a place would be off by parts of a cell, and the shares of no cell would sum to one.
    both = torch.cat([clean_BCyx, known_B1yx.to(clean_BCyx.dtype)], dim=1).float()
    out = F.grid_sample(both, place_Byx2.float(), mode="bilinear", padding_mode="zeros", align_corners=False)
    valid_B1yx = out[:, -1:] > 0.999
    return torch.where(valid_B1yx, out[:, :-1], 0.0), valid_B1yx


class RecurrentUpdate(nn.Module):
    """Adds to each cell what its memory lets it see better; fresh weights add nothing.

    Cells without a valid memory keep their value to the bit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(2 * channels + 1, 2 * channels, 1)
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        self.change = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.change.weight)
        assert self.change.bias is not None
        nn.init.zeros_(self.change.bias)

    def forward(self, now_BCyx: Tensor, then_BCyx: Tensor, valid_B1yx: Tensor, seconds_B: Tensor) -> Tensor:
        """The map, its warped memory, where that is valid, and its age to the map (B, C, y, x)."""
        age_B111 = seconds_B.clamp(min=0).log1p().to(now_BCyx)[:, None, None, None]
        age_B1yx = age_B111.expand_as(now_BCyx[:, :1])
        hidden = torch.relu(self.hidden(torch.cat([now_BCyx, then_BCyx, age_B1yx], dim=1)))
        changed = now_BCyx + self.gate(hidden).sigmoid() * self.change(hidden)
        return torch.where(valid_B1yx, changed, now_BCyx)


class BevMemory(nn.Module):
    """Reads and writes memories: (map, state) to (map, state')."""

    def __init__(self, channels: int, bev: BevMap, limits: StreamLimits) -> None:
        super().__init__()
        self.bev, self.limits = bev, limits
        self.update = RecurrentUpdate(channels)

    def forward(
        self, map_BCyx: Tensor, here_B1yx: Tensor, state: BevState | None, pose: StreamPose, bev_aug_B44: Tensor
    ) -> tuple[Tensor, BevState]:
        """The map with its memory taken in, and the memory after this frame.

        Args:
            map_BCyx: of this frame.
            here_B1yx: bool, cells where a present sensor looked.
            state: from the previous frame; None forgets.
            pose: of this frame.
            bev_aug_B44: ego to the augmented ego frame that the map lies in.

        Raises:
            ValueError: the state is of another number of streams.
        """
        map2global_B44 = pose.ego2global_B44.double() @ torch.linalg.inv(bev_aug_B44.double())
        if state is None:
            place = {"map2global_B44": map2global_B44, "stamp_ns_B": pose.stamp_ns_B}
            return map_BCyx, BevState(map_BCyx=map_BCyx, valid_B1yx=here_B1yx, **place)
        if len(state.stamp_ns_B) != len(map_BCyx):
            raise ValueError(
                f"BevMemory: the state is of {len(state.stamp_ns_B)} streams, the batch of {len(map_BCyx)}; keep one "
                "state a stream, or pass None"
            )
        warp = warp_to(state, map2global_B44, pose.stamp_ns_B)
        goes_on_B = warp.continues(self.limits)
        then_BCyx, valid_B1yx = warped(state, warp, self.bev)
        valid_B1yx = valid_B1yx & goes_on_B[:, None, None, None]
        map_BCyx = self.update(map_BCyx, then_BCyx, valid_B1yx, warp.seconds_B)
        written_B = warp.is_due(self.limits) | ~goes_on_B
        samples = written_B[:, None, None, None]
        return map_BCyx, BevState(
            map_BCyx=torch.where(samples, map_BCyx, state.map_BCyx),
            valid_B1yx=torch.where(samples, here_B1yx | valid_B1yx, state.valid_B1yx),
            map2global_B44=torch.where(written_B[:, None, None], map2global_B44, state.map2global_B44),
            stamp_ns_B=torch.where(written_B, pose.stamp_ns_B, state.stamp_ns_B),
        )
