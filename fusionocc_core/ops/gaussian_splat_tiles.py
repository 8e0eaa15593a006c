"""Sums of Gaussians over a voxel grid, tile by tile, with matrix products; forward, and backward by evaluating anew.

The grid is cut into tiles of 4 x 4 x 4 voxels. Each tile lists the Gaussians whose boxes meet it; tiles with lists of
like length are evaluated together, padded with a Gaussian that reaches nothing. Blocks of tiles are halved until their
lists fit the memory allowed. Every sum has a fixed order, so results repeat bit by bit.

Shape suffixes: G Gaussians, N tiles, V = 64 voxels of a tile, D columns summed; T tiles and K Gaussians a tile in one
chunk; P pairs of (tile, Gaussian), Q pairs sorted by Gaussian; 4 positions along an axis of a tile, S = 16 on its
floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fusionocc_core.ops import gaussian_splat_triton
from fusionocc_core.ops.gaussian_splat_lists import ALPHA_MAX, EDGE, VOXELS, Pairs, TilePlan, blocks, too_little

OUTSIDE = 1e15
"""Distance, in standard deviations, given to voxels outside a box: its square fits float32, and exp(-square) is 0."""
ARRAYS_A_VOXEL = 7
"""Arrays of T x K x V that live at once, at most (backward, with the survival)."""
VOXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}
"""T x K x V of a chunk: on a CPU the fastest of those tried, elsewhere what keeps the device busy."""


def precision_root(precision_G33: Tensor, covariance_G33: Tensor, root_determinant_G: Tensor) -> Tensor:
    """Lower triangular L with alpha(d) = exp(-|L d|^2) = exp(-d' precision d / 2), as (G, 6).

    Sums of squares cannot turn negative, and only the third depends on z: one addition a voxel. Covariance and the root
    of the precision's determinant, 1 / (s1 s2 s3), are asked for because what a plain Cholesky decomposition gets by
    subtraction (which for flat Gaussians leaves nothing) can be read from them.

    Returns:
        (xx, xy, yy, xz, yz, zz): L = [[xx, 0, 0], [xy, yy, 0], [xz, yz, zz]].
    """
    zz = precision_G33[:, 2, 2].sqrt()
    xx = covariance_G33[:, 0, 0].rsqrt()
    yy = root_determinant_G / (xx * zz)
    xy = -root_determinant_G.square() * covariance_G33[:, 0, 1] / (zz.square() * yy)
    xz, yz = precision_G33[:, 0, 2] / zz, precision_G33[:, 1, 2] / zz
    return torch.stack([xx, xy, yy, xz, yz, zz], dim=1) * 0.5**0.5


def splat_tiles(means_G3: Tensor, root_G6: Tensor, weights_GD: Tensor, plan: TilePlan) -> tuple[Tensor, Tensor]:
    """Sum of alpha times weights in each voxel, and the logarithm of the product of (1 - alpha).

    Args:
        means_G3: in the grid's frame, metres.
        root_G6: from :func:`precision_root`, same dtype.
        weights_GD: what each Gaussian adds, same dtype.
        plan: boxes, grid and memory.

    Returns:
        (X, Y, Z, D) and (X, Y, Z), the latter zero where the plan does not want it. Differentiable once in all three.

    Raises:
        ValueError: the memory does not hold a single tile.
    """
    sums_NVD, log_NV = _SplatTiles.apply(means_G3, root_G6, weights_GD, plan)
    return _untile(sums_NVD, plan), _untile(log_NV.unsqueeze(2), plan).squeeze(3)


class _SplatTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means_G3: Tensor, root_G6: Tensor, weights_GD: Tensor, plan: TilePlan
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(means_G3, root_G6, weights_GD)
        ctx.plan = plan
        table, weights = _tables(means_G3, root_G6, weights_GD, plan)
        tiles = plan.tiles
        sums_NVD = weights.new_zeros(tiles, VOXELS, weights.shape[1])
        log_NV = weights.new_zeros(tiles if plan.survival else 0, VOXELS)
        for pairs in blocks(plan, weights):
            if plan.kernels:
                gaussian_splat_triton.add_sums(pairs, table, weights, plan, sums_NVD, log_NV)
                continue
            for tiles_T, rows_TK, _ in _chunks(pairs, plan, weights):
                alpha_TKV = _evaluate(table, rows_TK, tiles_T, plan).alpha_TKV
                sums_NVD[tiles_T] = torch.bmm(alpha_TKV.mT, F.embedding(rows_TK, weights))
                if plan.survival:
                    log_NV[tiles_T] = alpha_TKV.clamp_(max=ALPHA_MAX).neg_().log1p_().sum(dim=1)
        if not plan.survival:
            log_NV = weights.new_zeros(1, 1).expand(tiles, VOXELS)
        return sums_NVD, log_NV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums_NVD: Tensor, grad_log_NV: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        plan: TilePlan = ctx.plan
        means_G3, root_G6, weights_GD = ctx.saved_tensors
        table, weights = _tables(means_G3, root_G6, weights_GD, plan)
        grad_GD = weights.new_zeros(len(weights), 9 + weights.shape[1])
        for pairs in blocks(plan, weights):
            # One row a pair, and a last one for the padding, whose gradient nobody wants.
            grad_PD = weights.new_zeros(len(pairs.rows_P) + 1, grad_GD.shape[1])
            fill = gaussian_splat_triton.fill_gradients if plan.kernels else _fill_gradients
            fill(pairs, table, weights, plan, grad_sums_NVD, grad_log_NV, grad_PD)
            # Each Gaussian's pairs in a fixed order: index_add would add them in any order on a GPU.
            grad_GD[:-1] += F.embedding_bag(
                pairs.by_gaussian_Q, grad_PD, pairs.starts_G1, mode="sum", include_last_offset=True
            )
        means, root, rest = grad_GD[:-1].split([3, 6, weights.shape[1]], dim=1)
        return means, root, rest, None


def _fill_gradients(
    pairs: Pairs,
    table: Tensor,
    weights: Tensor,
    plan: TilePlan,
    grad_sums_NVD: Tensor,
    grad_log_NV: Tensor,
    grad_PD: Tensor,
) -> None:
    """Write the gradient of every pair: of mean (3), root (6) and weights."""
    for tiles_T, rows_TK, places_TK in _chunks(pairs, plan, weights):
        values = _evaluate(table, rows_TK, tiles_T, plan)
        grad_sums_TVD = grad_sums_NVD[tiles_T]
        grad_alpha_TKV = torch.bmm(F.embedding(rows_TK, weights), grad_sums_TVD.mT)
        if plan.survival:
            left_TKV = values.alpha_TKV.clamp(max=ALPHA_MAX).neg_().add_(1)
            grad_alpha_TKV.sub_(grad_log_NV[tiles_T].unsqueeze(1) / left_TKV)
            del left_TKV
        grad_weights_TKD = torch.bmm(values.alpha_TKV, grad_sums_TVD)
        grad_TK9 = _geometry_gradient(values, grad_alpha_TKV)
        grad_PD[places_TK.flatten()] = torch.cat([grad_TK9, grad_weights_TKD], dim=2).flatten(0, 1)


def _tables(means_G3: Tensor, root_G6: Tensor, weights_GD: Tensor, plan: TilePlan) -> tuple[Tensor, Tensor]:
    """Means, boxes' ends (metres) and roots as (G + 1, 15), weights (G + 1, D); the last row reaches nothing."""
    ends = []
    for bound_G3, shift in ((plan.boxes.first_G3, -0.5), (plan.boxes.last_G3, 0.5)):
        ends.append(
            torch.stack([plan.grid.centers(bound_G3[:, a] + shift, a, means_G3.dtype) for a in range(3)], dim=1)
        )
    table = F.pad(torch.cat([means_G3, *ends, root_G6], dim=1), (0, 0, 0, 1))
    table[-1, 3:6] = torch.inf
    return table, F.pad(weights_GD, (0, 0, 0, 1))


def _chunks(pairs: Pairs, plan: TilePlan, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tiles (T,), their Gaussians (T, K) and where these stand in ``pairs`` (T, K): as many tiles as fit at once.

    Beyond a tile's list, the Gaussian is the one that reaches nothing and the place is one past the last.
    """
    bytes_a_voxel = ARRAYS_A_VOXEL * weights.element_size()
    # What a pair has beside its voxels: two rows of weights, its parameters, a dozen values on the tile's floor.
    bytes_a_pair = (4 * weights.shape[1] + 15 + 12 * EDGE**2) * weights.element_size() + VOXELS * bytes_a_voxel
    most = plan.memory_bytes // 2 // bytes_a_pair
    at_once = min(most, VOXELS_AT_ONCE.get(weights.device.type, VOXELS_AT_ONCE["cuda"]) // VOXELS)
    rows_P1 = F.pad(pairs.rows_P, (0, 1), value=len(weights) - 1)
    lengths = pairs.lengths_L.tolist()
    start = 0
    while start < len(lengths):
        longest = lengths[start]
        if longest > most:
            raise too_little(plan, 2 * longest * bytes_a_pair, longest)
        stop = min(start + max(at_once // longest, 1), len(lengths))
        steps_K = torch.arange(longest, device=pairs.rows_P.device)
        places_TK = pairs.starts_L[start:stop, None] + steps_K
        places_TK = torch.where(steps_K < pairs.lengths_L[start:stop, None], places_TK, len(pairs.rows_P))
        yield pairs.tiles_L[start:stop], rows_P1[places_TK], places_TK
        start = stop


@dataclass(frozen=True, kw_only=True)
class _Values:
    """Gaussians at the voxels of their tiles, and what leads there: alpha = exp(-(first^2 + second^2 + third^2))."""

    alpha_TKV: Tensor
    third_TKV: Tensor
    second_TKS: Tensor
    first_TK4: Tensor
    offsets_TK34: Tensor
    """Voxel centres minus mean along x, y, z."""
    root_TK6: Tensor


def _evaluate(table: Tensor, rows_TK: Tensor, tiles_T: Tensor, plan: TilePlan) -> _Values:
    """Alpha of each Gaussian at each voxel of its tile; zero outside its box."""
    mean_TK3, first_TK3, last_TK3, root_TK6 = F.embedding(rows_TK, table).split([3, 3, 3, 6], dim=2)
    _, tiles_y, tiles_z = plan.tiles_xyz
    corner_T3 = torch.stack([tiles_T // (tiles_y * tiles_z), tiles_T // tiles_z % tiles_y, tiles_T % tiles_z], dim=1)
    voxels_T34 = corner_T3.unsqueeze(2) * EDGE + torch.arange(EDGE, device=tiles_T.device)
    centers_T34 = torch.stack([plan.grid.centers(voxels_T34[:, a], a, table.dtype) for a in range(3)], dim=1)
    centers_T134 = centers_T34.unsqueeze(1)
    outside_TK34 = (centers_T134 < first_TK3.unsqueeze(3)) | (centers_T134 > last_TK3.unsqueeze(3))
    offsets_TK34 = centers_T134 - mean_TK3.unsqueeze(3)
    x, y, z = offsets_TK34.unbind(2)
    xx, xy, yy, xz, yz, zz = root_TK6.unsqueeze(3).unbind(2)
    beyond = OUTSIDE * outside_TK34.to(table.dtype)
    first_TK4 = xx * x
    second_TKS = ((xy * x).unsqueeze(3) + (yy * y).unsqueeze(2)).flatten(2)
    floor_TKS = ((xz * x).unsqueeze(3) + (yz * y).unsqueeze(2)).flatten(2)
    third_TKV = (floor_TKS.unsqueeze(3) + (zz * z + beyond[:, :, 2]).unsqueeze(2)).flatten(2)
    reach_TK44 = (first_TK4.square() + beyond[:, :, 0]).unsqueeze(3) + beyond[:, :, 1].unsqueeze(2)
    squares_TKS = reach_TK44.flatten(2) + second_TKS.square()
    exponent = torch.addcmul(
        squares_TKS.neg_().unsqueeze(3),
        third_TKV.unflatten(2, (-1, EDGE)),
        third_TKV.unflatten(2, (-1, EDGE)),
        value=-1,
    )
    return _Values(
        alpha_TKV=exponent.exp_().flatten(2),
        third_TKV=third_TKV,
        second_TKS=second_TKS,
        first_TK4=first_TK4,
        offsets_TK34=offsets_TK34,
        root_TK6=root_TK6,
    )


def _geometry_gradient(values: _Values, grad_alpha_TKV: Tensor) -> Tensor:
    """Gradient with respect to mean (3) and root (6), as (T, K, 9); uses up the gradient of alpha."""
    x, y, z = values.offsets_TK34.unbind(2)
    xx, xy, yy, xz, yz, zz = values.root_TK6.unbind(2)
    # d alpha = alpha * -2 * (first d first + second d second + third d third)
    scaled_TKV = grad_alpha_TKV.mul_(values.alpha_TKV).mul_(-2)
    column_TKS = _sum_z(scaled_TKV)
    third_TKV = scaled_TKV.mul_(values.third_TKV)
    third_TK44 = _sum_z(third_TKV).unflatten(2, (EDGE, EDGE))
    third_z_TK4 = third_TKV.unflatten(2, (-1, EDGE)).sum(dim=2)
    third_x_TK4, third_y_TK4 = third_TK44.sum(dim=3), third_TK44.sum(dim=2)
    second_TK44 = (column_TKS * values.second_TKS).unflatten(2, (EDGE, EDGE))
    second_x_TK4, second_y_TK4 = second_TK44.sum(dim=3), second_TK44.sum(dim=2)
    first_TK4 = column_TKS.unflatten(2, (EDGE, EDGE)).sum(dim=3) * values.first_TK4
    first, second, third = first_TK4.sum(dim=2), second_x_TK4.sum(dim=2), third_x_TK4.sum(dim=2)
    gradients = [
        -(xx * first + xy * second + xz * third),
        -(yy * second + yz * third),
        -(zz * third),
        (first_TK4 * x).sum(dim=2),
        (second_x_TK4 * x).sum(dim=2),
        (second_y_TK4 * y).sum(dim=2),
        (third_x_TK4 * x).sum(dim=2),
        (third_y_TK4 * y).sum(dim=2),
        (third_z_TK4 * z).sum(dim=2),
    ]
    return torch.stack(gradients, dim=2)


def _sum_z(values_TKV: Tensor) -> Tensor:
    """(T, K, 16): sums over the voxels above each position; as a product, which is faster than a short sum."""
    summing = torch.eye(EDGE**2, dtype=values_TKV.dtype, device=values_TKV.device).repeat_interleave(EDGE, dim=0)
    return values_TKV @ summing


def _untile(values_NVD: Tensor, plan: TilePlan) -> Tensor:
    """(X, Y, Z, D) of (N, V, D), without what sticks out of the grid."""
    x, y, z = plan.grid.shape_xyz
    split = values_NVD.view(*plan.tiles_xyz, EDGE, EDGE, EDGE, -1).permute(0, 3, 1, 4, 2, 5, 6)
    return split.reshape(*(EDGE * count for count in plan.tiles_xyz), -1)[:x, :y, :z]
