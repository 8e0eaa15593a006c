"""Maps seen from above: LiDAR branch, gated fusion, encoder, and the head that turns channels into height.

Legend: B samples, C channels, Y X cells, Z voxels along the height, K classes. Capital Y X: full resolution, small y x:
half of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.layers.conv_blocks import BasicBlock2d
from fusionocc_core.layers.thin_image_net import conv_norm
from fusionocc_core.ops.column_labels import column_labels
from fusionocc_core.ops.raster import RASTER_FEATURES, rasterize


@dataclass(frozen=True, kw_only=True)
class BevNetConfig:
    """Stages of a residual network on the fused map; the first keeps its resolution, each further one halves it."""

    channels: tuple[int, ...] = (48, 96, 128)
    blocks: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self) -> None:
        """Refuse stages that do not fit together."""
        if len(self.channels) != len(self.blocks) or not self.channels or min(self.blocks) < 1:
            raise ValueError(
                f"BevNetConfig: channels={self.channels} and blocks={self.blocks} must hold one positive number a stage"
            )

    @property
    def stride(self) -> int:
        """How much smaller the last map is than the first."""
        return int(2 ** (len(self.channels) - 1))


class LidarRaster(nn.Module):
    """ops.raster.rasterize on one map. Has no parameters."""

    def __init__(
        self, lower: tuple[float, float, float], cell_size: tuple[float, float, float], shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.lower, self.cell_size, self.shape = lower, cell_size, shape
        self.channels = (shape[2] + 2) * RASTER_FEATURES

    def forward(self, points: Sequence[Tensor]) -> Tensor:
        """B clouds (P, C) to (B, channels, Y, X)."""
        return rasterize(points, self.lower, self.cell_size, self.shape)


class LidarBevNet(nn.Module):
    """The raster to channels at full resolution, which the head takes, and to a map of half of that.

    Where nothing happens at full resolution, the map is made of the raster itself.

    Args:
        in_channels: of the raster.
        scale: raster cells an edge of a cell of full resolution.
        skip_channels: at full resolution.
        skip_blocks: residual blocks at full resolution.
        channels: of the map.
        blocks: residual blocks on the map.
    """

    def __init__(
        self, in_channels: int, *, scale: int, skip_channels: int, skip_blocks: int, channels: int, blocks: int
    ) -> None:
        super().__init__()
        self.from_skip = scale > 1 or skip_blocks > 0
        self.skip = conv_norm(in_channels, skip_channels, kernel=scale, stride=scale)
        self.skip_blocks = nn.Sequential(*(BasicBlock2d(skip_channels) for _ in range(skip_blocks)))
        self.down = conv_norm(skip_channels if self.from_skip else in_channels, channels, kernel=2, stride=2)
        self.blocks = nn.Sequential(*(BasicBlock2d(channels) for _ in range(blocks)))

    def forward(self, raster_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        """The raster (B, C, scale * Y, scale * X) to (B, skip_channels, Y, X) and (B, channels, y, x)."""
        skip_BCYX = self.skip_blocks(self.skip(raster_BCYX))
        return skip_BCYX, self.blocks(self.down(skip_BCYX if self.from_skip else raster_BCYX))


class GatedFusion(nn.Module):
    """Cell by cell, a mean of the branches that are present there, weighted by what each says about itself.

    The weight of a branch is the softmax of its score over the present ones; where only one is present it is exactly 1,
    and the values of the other (NaN included) have no way into the result. Cells without any are zero.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.values = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.scores = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in in_channels)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = conv_norm(channels, channels)

    def forward(self, branches_BCyx: list[Tensor], present_B1yx: list[Tensor]) -> Tensor:
        """Maps of the branches and where each is present (bool) to (B, channels, y, x)."""
        pairs = list(zip(self.scores, branches_BCyx, present_B1yx, strict=True))
        scores = torch.stack([score(x).masked_fill(~here, -math.inf) for score, x, here in pairs])
        highest = scores.detach().amax(dim=0)
        shares = (scores - highest.masked_fill(highest.isinf(), 0.0)).exp()
        total = shares.sum(dim=0)
        fused = torch.zeros_like(shares[0])
        for value, x, here, share in zip(self.values, branches_BCyx, present_B1yx, shares, strict=True):
            weight = share / total.masked_fill(total == 0, 1.0)
            fused = fused + torch.where(here, weight * value(x), 0.0)
        return self.mix(torch.relu(self.norm(fused)))


class BevNet(nn.Module):
    """A residual network on the fused map whose stages are joined at its own resolution."""

    def __init__(self, config: BevNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stages, self.laterals = nn.ModuleList(), nn.ModuleList()
        width = in_channels
        for number, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            enter = conv_norm(width, channels, kernel=2, stride=2) if number else nn.Identity()
            if not number and width != channels:
                enter = conv_norm(width, channels, kernel=1)
            self.stages.append(nn.Sequential(enter, *(BasicBlock2d(channels) for _ in range(blocks))))
            self.laterals.append(nn.Conv2d(channels, out_channels, 1, bias=False))
            width = channels
        self.norm = nn.BatchNorm2d(out_channels)
        self.join = conv_norm(out_channels, out_channels)

    def norm_pairs(self) -> list[tuple[tuple[str, ...], str]]:
        """For layers.folding: what the norm takes; resizing keeps sums."""
        return [(tuple(f"laterals.{number}" for number in range(len(self.laterals))), "norm")]

    def forward(self, x_BCyx: Tensor) -> Tensor:
        """(B, in_channels, y, x) to (B, out_channels, y, x)."""
        maps = []
        for stage in self.stages:
            x_BCyx = stage(x_BCyx)
            maps.append(x_BCyx)
        joined = self.laterals[-1](maps[-1])
        for lateral, fine in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            joined = lateral(fine) + F.interpolate(joined, scale_factor=2, mode="bilinear", align_corners=False)
        return self.join(torch.relu(self.norm(joined)))


class HeightHead(nn.Module):
    """Class scores of every voxel from a map: channel ``z * K + class`` of a 1x1 convolution.

    Args:
        in_channels: of the fused map.
        skip_channels: of the LiDAR's channels at full resolution.
        channels: after the 3x3 convolution.
        hidden_channels: of the layer in front of the scores, which sees the LiDAR's channels once more.
        size_z: voxels along the height.
        num_classes: classes, free space included.
        free: the class of free space.
        free_prior: how probable free space is before anything was learned.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        channels: int,
        hidden_channels: int,
        *,
        size_z: int,
        num_classes: int,
        free: int,
        free_prior: float,
    ) -> None:
        super().__init__()
        self.size_z, self.num_classes = size_z, num_classes
        self.reduce = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = conv_norm(channels + skip_channels, channels)
        self.hidden = nn.Linear(channels + skip_channels, hidden_channels)
        self.scores = nn.Linear(hidden_channels, size_z * num_classes)
        with torch.no_grad():
            self.scores.weight.mul_(0.1)
            prior = torch.full((num_classes,), math.log((1 - free_prior) / (num_classes - 1)))
            prior[free] = math.log(free_prior)
            self.scores.bias.copy_(prior.repeat(size_z))

    def norm_pairs(self) -> list[tuple[tuple[str, ...], str]]:
        """For layers.folding: what the norm takes."""
        return [(("reduce",), "norm")]

    def forward(self, map_BCyx: Tensor, skip_BCYX: Tensor, margin: int) -> Tensor:
        """Map and LiDAR channels to logits (B, K, X, Y, Z), classes last in memory.

        Args:
            map_BCyx: at half resolution.
            skip_BCYX: at full resolution.
            margin: cells of full resolution to leave out on every side.
        """
        column_BYXC = torch.cat(self._columns(map_BCyx, skip_BCYX, margin), dim=1).permute(0, 2, 3, 1)
        scores_BYXS = self.scores(torch.relu(self.hidden(column_BYXC)))
        return scores_BYXS.unflatten(3, (self.size_z, self.num_classes)).permute(0, 4, 2, 1, 3)

    def labels(
        self, map_BCyx: Tensor, skip_BCYX: Tensor, margin: int, *, confidence: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The classes of the highest logits of ``forward`` (B, X, Y, Z) uint8, and their probabilities or None.

        The logits never exist all at once. Not differentiable.

        Args:
            map_BCyx: as in ``forward``, like the next two.
            skip_BCYX: likewise.
            margin: likewise.
            confidence: also give the probabilities, uint8, 0..255.
        """
        columns_BCYX = self._columns(map_BCyx, skip_BCYX, margin)
        b, _, y, x = columns_BCYX[0].shape
        parts_VC = [part_BCYX.permute(0, 2, 3, 1).flatten(0, 2) for part_BCYX in columns_BCYX]
        found = column_labels(parts_VC, self.hidden, self.scores, self.num_classes, confidence=confidence)
        labels, sure = (None if p is None else p.view(-1, b, y, x).permute(1, 3, 2, 0).contiguous() for p in found)
        assert labels is not None
        return labels, sure

    def _columns(self, map_BCyx: Tensor, skip_BCYX: Tensor, margin: int) -> list[Tensor]:
        """What the hidden layer takes, in two parts, channels last in memory."""
        map_BCYX = F.interpolate(self.norm(self.reduce(map_BCyx)), scale_factor=2, mode="bilinear", align_corners=False)
        skip_BCYX = cropped(skip_BCYX, margin)
        joined = torch.cat([cropped(map_BCYX, margin), skip_BCYX], dim=1)
        return [self.mix(joined.contiguous(memory_format=torch.channels_last)), skip_BCYX]


def cropped(map_BCYX: Tensor, margin: int) -> Tensor:
    """The map without ``margin`` cells on every side."""
    return map_BCYX[:, :, margin:-margin, margin:-margin] if margin else map_BCYX
