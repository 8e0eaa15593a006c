"""Features of camera pictures for points in space: each point sums what it sees, with weights of its own.

The sampling step of GaussianFormer's deformable attention (Huang et al., ECCV 2024). Official code samples every camera
for every point; a point is in one or two of six pictures, so only pairs of point and camera that see each other are
gathered here.

Shape suffixes: B samples, N cameras, G Gaussians, K points of each, L levels of the feature maps, M groups of channels,
C channels, h w a feature map, 2 = (u, v); R pairs that see each other, E = R * L * 4 feature cells that they touch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "visible", "dense")


def deformable_aggregate(
    maps_BNChw: Sequence[Tensor],
    points_BNGK2: Tensor,
    visible_BNGK: Tensor,
    weights_BNGKLM: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of bilinear samples over cameras, points of a Gaussian and levels.

    Each of the M groups of neighbouring channels has a weight of its own. What lies outside a map counts as zero.

    Args:
        maps_BNChw: L feature maps of all cameras, in any sizes.
        points_BNGK2: where each point lies in each picture: 0 to 1 from the left and upper to the other edge.
        visible_BNGK: bool, pairs that count; points and weights of others may hold anything finite.
        weights_BNGKLM: of each sample; C must be a multiple of M.
        backend: "visible" (what "auto" takes) or "dense" (the readable form: every camera for every point).

    Returns:
        (B, G, C) in the maps' dtype; differentiable in maps, points and weights.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
    """
    _check(maps_BNChw, points_BNGK2, visible_BNGK, weights_BNGKLM, backend)
    aggregate = _dense if backend == "dense" else _visible
    return aggregate(maps_BNChw, points_BNGK2, visible_BNGK, weights_BNGKLM)


def _dense(maps_BNChw: Sequence[Tensor], points_BNGK2: Tensor, visible_BNGK: Tensor, weights_BNGKLM: Tensor) -> Tensor:
    """One grid_sample a level."""
    weights_BNGKLM = weights_BNGKLM * visible_BNGK[..., None, None]
    groups = weights_BNGKLM.shape[-1]
    total = maps_BNChw[0].new_zeros(())
    for level, map_BNChw in enumerate(maps_BNChw):
        grid = 2 * points_BNGK2.flatten(0, 1) - 1
        samples = F.grid_sample(map_BNChw.flatten(0, 1), grid.to(map_BNChw.dtype), align_corners=False)
        samples_BNMcGK = samples.unflatten(1, (groups, -1)).unflatten(0, map_BNChw.shape[:2])
        weights_BNGKM = weights_BNGKLM[..., level, :].to(samples.dtype)
        total = total + torch.einsum("bnmcgk,bngkm->bgmc", samples_BNMcGK, weights_BNGKM).flatten(2)
    return total


def _visible(
    maps_BNChw: Sequence[Tensor], points_BNGK2: Tensor, visible_BNGK: Tensor, weights_BNGKLM: Tensor
) -> Tensor:
    """One table of all maps' cells a group, and for each Gaussian the list of cells that it sums: an embedding bag."""
    batch, cameras, gaussians, _, levels, groups = weights_BNGKLM.shape
    # Pairs sorted by Gaussian, then camera, then point: its list is one piece, and sums have one order.
    b_R, g_R, n_R, k_R = visible_BNGK.permute(0, 2, 1, 3).nonzero().unbind(1)
    points_R2 = points_BNGK2[b_R, n_R, g_R, k_R]
    cells, shares, first = [], [], 0
    for map_BNChw in maps_BNChw:
        height, width = map_BNChw.shape[3:]
        cell_R4, share_R4 = _corners(points_R2, height, width)
        cells.append(first + ((b_R * cameras + n_R) * (height * width)).unsqueeze(1) + cell_R4)
        shares.append(share_R4)
        first += batch * cameras * height * width
    cells_E = torch.stack(cells, dim=1).flatten()
    weights_RL4M = torch.stack(shares, dim=1).unsqueeze(3) * weights_BNGKLM[b_R, n_R, g_R, k_R].unsqueeze(2)
    counts_J = torch.bincount(b_R * gaussians + g_R, minlength=batch * gaussians) * (levels * 4)
    starts_J1 = F.pad(counts_J.cumsum(0), (1, 0))
    sums = []
    for group in range(groups):
        parts = [map_BNChw.unflatten(2, (groups, -1))[:, :, group] for map_BNChw in maps_BNChw]
        # Sums in float32 also of half precision, whose embedding bags have no gradient everywhere.
        dtype = torch.promote_types(maps_BNChw[0].dtype, torch.float32)
        table_Sc = torch.cat([part.movedim(2, 4).flatten(0, 3) for part in parts]).to(dtype)
        weights_E = weights_RL4M[..., group].flatten().to(table_Sc.dtype)
        sums.append(
            F.embedding_bag(
                cells_E, table_Sc, starts_J1, mode="sum", per_sample_weights=weights_E, include_last_offset=True
            )
        )
    return torch.cat(sums, dim=1).to(maps_BNChw[0].dtype).unflatten(0, (batch, gaussians))


def _corners(points_R2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells around each point (R, 4) int64 and their shares (R, 4); cells outside the map have no share."""
    size = points_R2.new_tensor([width, height])
    place_R2 = points_R2 * size - 0.5
    floor_R2 = place_R2.detach().floor()
    after_R2 = place_R2 - floor_R2
    columns_R2 = floor_R2[:, :1].long() + torch.arange(2, device=points_R2.device)
    rows_R2 = floor_R2[:, 1:].long() + torch.arange(2, device=points_R2.device)
    along_u_R2 = torch.stack([1 - after_R2[:, 0], after_R2[:, 0]], dim=1) * _within(columns_R2, width)
    along_v_R2 = torch.stack([1 - after_R2[:, 1], after_R2[:, 1]], dim=1) * _within(rows_R2, height)
    cells_R22 = rows_R2.clamp(0, height - 1).unsqueeze(2) * width + columns_R2.clamp(0, width - 1).unsqueeze(1)
    return cells_R22.flatten(1), (along_v_R2.unsqueeze(2) * along_u_R2.unsqueeze(1)).flatten(1)


def _within(index_R2: Tensor, size: int) -> Tensor:
    return (index_R2 >= 0) & (index_R2 < size)


def _check(
    maps_BNChw: Sequence[Tensor], points_BNGK2: Tensor, visible_BNGK: Tensor, weights_BNGKLM: Tensor, backend: str
) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"deformable_aggregate: backend={backend!r}; expected one of {BACKENDS}")
    if not maps_BNChw or any(m.ndim != 5 or m.shape[:3] != maps_BNChw[0].shape[:3] for m in maps_BNChw):
        raise ValueError(
            f"deformable_aggregate: maps {[tuple(m.shape) for m in maps_BNChw]}; expected one level or more, each "
            "(B, N, C, h, w) with the same B, N, C"
        )
    batch, cameras, channels = maps_BNChw[0].shape[:3]
    shape = tuple(visible_BNGK.shape)
    fit = len(shape) == 4 and shape[:2] == (batch, cameras) and visible_BNGK.dtype == torch.bool
    fit = fit and tuple(points_BNGK2.shape) == (*shape, 2)
    if not fit or tuple(weights_BNGKLM.shape[:-1]) != (*shape, len(maps_BNChw)):
        raise ValueError(
            f"deformable_aggregate: points {tuple(points_BNGK2.shape)}, visible {visible_BNGK.dtype} {shape}, weights "
            f"{tuple(weights_BNGKLM.shape)} beside {len(maps_BNChw)} maps of B={batch}, N={cameras}; expected "
            "(B, N, G, K, 2), bool (B, N, G, K), (B, N, G, K, L, M)"
        )
    if channels % weights_BNGKLM.shape[-1]:
        raise ValueError(
            f"deformable_aggregate: {channels} channels are no multiple of the {weights_BNGKLM.shape[-1]} groups"
        )
