"""What rays say of single voxels: occupied where one ends, free where they only cross. Ours.

Rendering explains a ray by opacities along it. A grazing ray crosses the layer of voxels that holds the ground for
metres before it ends, so rendering leaves all of them half transparent, and how occupied a voxel must look to be called
so is left open. Here a voxel in which any ray of the sample ends is occupied, however many others cross it, as labels
of voxels have it that were made from points.

Legend: R rays, S places along a ray, B samples, X Y Z voxels, V = B * X * Y * Z, K classes without free space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.ops.volume_render_rays import Rays, RenderConfig

STEP = 0.5
"""Between places along a ray, voxels."""
_LABELS = 256
"""More than there are classes."""


@dataclass(frozen=True, kw_only=True)
class RayVoxels:
    """The voxels that the rays of a batch tell of."""

    ended_V: Tensor
    """Bool: a ray ends there."""
    crossed_V: Tensor
    """Bool: a ray crosses, and none ends there."""
    label_V: Tensor
    """int64: of most rays that end there and have a label, else ``unknown``."""


@torch.no_grad()
def ray_voxels(
    ending: Rays, crossing: Rays, config: RenderConfig, *, shape_BXYZ: Sequence[int], unknown: int, chunk: int
) -> RayVoxels:
    """Where rays end and what they cross.

    Args:
        ending: whose ends count; those without a depth tell of nothing.
        crossing: whose way counts: of these or of some of them, since a way costs a hundred times as much as an end.
        config: says where the volume lies, and how far before its end a ray says nothing (``near``, ``near_share``).
        shape_BXYZ: of the volume.
        unknown: label of rays without one.
        chunk: rays at a time, which bounds the memory.
    """
    measured = _measured(ending)
    ends_R3 = measured.origin_R3 + measured.depth_R[:, None] * measured.direction_R3
    ends_R = _voxel(ends_R3, measured.sample_R, config, shape_BXYZ)
    inside_R = ends_R >= 0
    count = torch.Size(shape_BXYZ).numel()
    ended_V = torch.zeros(count, dtype=torch.bool, device=ends_R.device)
    ended_V[ends_R[inside_R]] = True
    crossed_V = _crossed(_measured(crossing), config, shape_BXYZ, chunk)
    known_R = inside_R & (measured.label_R != unknown)
    label_V = _most_frequent(ends_R[known_R], measured.label_R[known_R], count, unknown)
    return RayVoxels(ended_V=ended_V, crossed_V=crossed_V & ~ended_V, label_V=label_V)


def ray_voxel_loss(
    occupied_logits_BXYZ: Tensor,
    semantic_BXYZK: Tensor,
    voxels: RayVoxels,
    *,
    unknown: int,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Is it occupied (rays' ends and crossed voxels count alike), and by what: the sum of both; zero without rays.

    Args:
        occupied_logits_BXYZ: log-odds.
        semantic_BXYZK: scores of the classes that are not free.
        voxels: what rays say, with labels that count without free space.
        unknown: label of voxels without one.
        class_weights: one for each of the K classes.
    """
    odds_V = occupied_logits_BXYZ.float().flatten()
    ended, crossed = F.softplus(-odds_V[voxels.ended_V]), F.softplus(odds_V[voxels.crossed_V])
    parts = [entropy.sum() / (2 * max(len(entropy), 1)) for entropy in (ended, crossed)]
    chosen_V = voxels.label_V != unknown
    label_L = voxels.label_V[chosen_V]
    entropy_L = F.cross_entropy(semantic_BXYZK.flatten(0, 3)[chosen_V].float(), label_L, reduction="none")
    weight_L = torch.ones_like(entropy_L) if class_weights is None else entropy_L.new_tensor(class_weights)[label_L]
    tiny = torch.finfo(torch.float32).tiny
    return parts[0] + parts[1] + (entropy_L * weight_L).sum() / weight_L.sum().clamp(min=tiny)


def _measured(rays: Rays) -> Rays:
    return rays.select((rays.range_R > 0) & rays.range_R.isfinite())


def _crossed(rays: Rays, config: RenderConfig, shape_BXYZ: Sequence[int], chunk: int) -> Tensor:
    """Bool (V,): what rays cross before they come near their end."""
    crossed_V = torch.zeros(torch.Size(shape_BXYZ).numel(), dtype=torch.bool, device=rays.depth_R.device)
    step = STEP * 2 * config.extent / config.cells_across
    for begin in range(0, len(rays), chunk):
        some = rays.select(slice(begin, begin + chunk))
        way_S = torch.arange(0.0, float(some.range_R.max()), step, device=crossed_V.device)
        along_R3 = F.normalize(some.direction_R3, dim=1)
        position_RS3 = some.origin_R3[:, None] + way_S[:, None] * along_R3[:, None]
        voxel_RS = _voxel(position_RS3, some.sample_R[:, None], config, shape_BXYZ)
        before_RS = way_S < (1 - config.near_share) * some.range_R[:, None] - config.near
        crossed_V[voxel_RS[before_RS & (voxel_RS >= 0)]] = True
    return crossed_V


def _voxel(position: Tensor, sample: Tensor, config: RenderConfig, shape_BXYZ: Sequence[int]) -> Tensor:
    """Number of the voxel in the batch that positions (..., 3), metres, lie in; -1 outside."""
    lower, upper = position.new_tensor(config.box_lower), position.new_tensor(config.box_upper)
    shape = torch.tensor(shape_BXYZ[1:], device=position.device)
    cell = torch.floor((position - lower) / (upper - lower) * shape).long()
    inside = ((cell >= 0) & (cell < shape)).all(dim=-1)
    number = ((sample * shape[0] + cell[..., 0]) * shape[1] + cell[..., 1]) * shape[2] + cell[..., 2]
    return number.where(inside, -1)


def _most_frequent(voxel_L: Tensor, label_L: Tensor, count: int, unknown: int) -> Tensor:
    """The label that comes most often in each of ``count`` voxels (of equals the higher), or unknown."""
    pairs_P, times_P = (voxel_L * _LABELS + label_L).unique(return_counts=True)
    votes_V = torch.zeros(count, dtype=torch.int64, device=voxel_L.device)
    votes_V.scatter_reduce_(0, pairs_P // _LABELS, times_P * _LABELS + pairs_P % _LABELS, "amax")
    return (votes_V % _LABELS).where(votes_V > 0, unknown)
