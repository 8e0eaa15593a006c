"""What rays say of single voxels: occupied where one ends, free where they only cross. Ours.

Rendering explains a ray by opacities along it. A grazing ray crosses the layer of voxels that holds the ground for
metres before it ends, so rendering leaves all of them half transparent, and how occupied a voxel must look to be called
so is left open. Here a voxel in which any ray of the sample ends is occupied, however many others cross it, as labels
of voxels have it that were made from points.

Only rays of the current keyframe say what is free: those of its neighbours look behind things, where the pictures do
not show it, and cross places where something moves now. A ray that grazes a voxel may well miss what is in it; how many
rays have to cross it is a number of the loss (``least_crossings``).

Legend: R rays, S places along a ray, B samples, X Y Z voxels, V = B * X * Y * Z, K classes without free space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.losses.lovasz import lovasz_softmax
from fusionocc_core.losses.occupied import occupied_class_loss, occupied_loss
from fusionocc_core.ops.volume_render_rays import Rays, RenderConfig

STEP = 1.0
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
    rays: Rays, config: RenderConfig, *, shape_BXYZ: Sequence[int], unknown: int, least_crossings: int, chunk: int
) -> RayVoxels:
    """Where rays end, and what those of the current keyframe cross.

    Args:
        rays: those without a depth tell of nothing.
        config: says where the volume lies, and how far before its end a ray says nothing (``near``, ``near_share``).
        shape_BXYZ: of the volume.
        unknown: label of rays without one.
        least_crossings: so many rays must cross a voxel and none end there for it to be free.
        chunk: rays at a time, which bounds the memory.
    """
    rays = rays.select((rays.range_R > 0) & rays.range_R.isfinite())
    ends_R3 = rays.origin_R3 + rays.depth_R[:, None] * rays.direction_R3
    ends_R = _voxel(ends_R3, rays.sample_R, config, shape_BXYZ)
    inside_R = ends_R >= 0
    count = torch.Size(shape_BXYZ).numel()
    ended_V = torch.zeros(count, dtype=torch.bool, device=ends_R.device)
    ended_V[ends_R[inside_R]] = True
    known_R = inside_R & (rays.label_R != unknown)
    label_V = _most_frequent(ends_R[known_R], rays.label_R[known_R], count, unknown)
    crossings_V = _crossings(rays.select(rays.current_R), config, shape_BXYZ, chunk)
    crossed_V = (crossings_V >= least_crossings) & ~ended_V
    return RayVoxels(ended_V=ended_V, crossed_V=crossed_V, label_V=label_V)


def ray_voxel_loss(
    logits_BKXYZ: Tensor,
    occupied_logits_BXYZ: Tensor,
    semantic_BXYZK: Tensor,
    voxels: RayVoxels,
    *,
    free: int,
    unknown: int,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Is it occupied, by what, and the overlap of both: the losses of labels of voxels, added up; zero without rays.

    Args:
        logits_BKXYZ: scores of all classes, free space included.
        occupied_logits_BXYZ: log-odds.
        semantic_BXYZK: scores of the classes that are not free.
        voxels: what rays say, with labels that count without free space.
        free: id of free space among all classes.
        unknown: label of voxels without one.
        class_weights: one for each class that is not free.
    """
    shape = occupied_logits_BXYZ.shape
    told_BXYZ, named_V = (voxels.ended_V | voxels.crossed_V).view(shape), voxels.label_V != unknown
    occupied = occupied_loss(occupied_logits_BXYZ, voxels.ended_V.view(shape), told_BXYZ)
    label_V = torch.where(named_V, voxels.label_V + (voxels.label_V >= free).long(), unknown)
    labels_BXYZ = torch.where(voxels.crossed_V, free, label_V).view(shape)
    weights = None if class_weights is None else (*class_weights[:free], 0.0, *class_weights[free:])
    kind = occupied_class_loss(semantic_BXYZK, labels_BXYZ, named_V.view(shape), free=free, class_weights=weights)
    return occupied + kind + lovasz_softmax(logits_BKXYZ, labels_BXYZ, unknown=unknown)


def _crossings(rays: Rays, config: RenderConfig, shape_BXYZ: Sequence[int], chunk: int) -> Tensor:
    """int64 (V,): how many rays cross each voxel before they come near their end."""
    crossings_V = torch.zeros(torch.Size(shape_BXYZ).numel(), dtype=torch.int64, device=rays.depth_R.device)
    step = STEP * 2 * config.extent / config.cells_across
    rays = rays.select(rays.range_R.argsort())  # so that those of a chunk are about as long as each other
    for begin in range(0, len(rays), chunk):
        some = rays.select(slice(begin, begin + chunk))
        way_S = torch.arange(0.0, float(some.range_R.max()), step, device=crossings_V.device)
        along_R3 = F.normalize(some.direction_R3, dim=1)
        position_RS3 = some.origin_R3[:, None] + way_S[:, None] * along_R3[:, None]
        voxel_RS = _voxel(position_RS3, some.sample_R[:, None], config, shape_BXYZ)
        counts_RS = way_S < (1 - config.near_share) * some.range_R[:, None] - config.near
        counts_RS &= voxel_RS >= 0
        counts_RS[:, 1:] &= voxel_RS[:, 1:] != voxel_RS[:, :-1]
        crossings_V += torch.bincount(voxel_RS[counts_RS], minlength=len(crossings_V))
    return crossings_V


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
