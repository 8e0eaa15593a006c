"""Sums of Gaussians over a voxel grid by listing every pair of Gaussian and voxel: the readable form.

Shape suffixes: G Gaussians, P pairs of (Gaussian, voxel), D columns summed, 3 = (x, y, z), R = X * Y * Z voxels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fusionocc_core.ops.gaussian_splat_boxes import Boxes, SplatGrid

ALPHA_MAX = 1 - 2**-23
"""Largest value of a Gaussian in 1 - alpha, so that its logarithm stays finite in float32."""
ROWS_A_PAIR = 24
"""Numbers of eight bytes that a pair takes beside its columns."""


def splat_pairs(
    means_G3: Tensor, whitening_G33: Tensor, weights_GD: Tensor, boxes: Boxes, grid: SplatGrid, memory_bytes: int
) -> tuple[Tensor, Tensor]:
    """Sum of alpha times weights in each voxel, and the logarithm of the product of (1 - alpha).

    Goes through the Gaussians a few at a time; autograd keeps the pairs of all of them, so ``memory_bytes`` bounds the
    memory of inference only.

    Args:
        means_G3: in the grid's frame, metres.
        whitening_G33: own axes divided by scales: alpha(d) = exp(-|whitening d|^2 / 2).
        weights_GD: what each Gaussian adds.
        boxes: voxels that each Gaussian reaches.
        grid: the voxels.
        memory_bytes: for the pairs that are listed at a time; one Gaussian is listed whole, however large.

    Returns:
        (X, Y, Z, D) and (X, Y, Z).
    """
    x, y, z = grid.shape_xyz
    sums_RD = weights_GD.new_zeros(x * y * z, weights_GD.shape[1])
    log_R = weights_GD.new_zeros(x * y * z)
    most = memory_bytes // (8 * (ROWS_A_PAIR + weights_GD.shape[1]))
    for rows_P, voxels_P3 in _pairs(boxes, most):
        centers_P3 = torch.stack([grid.centers(voxels_P3[:, a], a, means_G3.dtype) for a in range(3)], dim=1)
        offsets_P3 = centers_P3 - means_G3[rows_P]
        white_P3 = (whitening_G33[rows_P] @ offsets_P3.unsqueeze(2)).squeeze(2)
        alpha_P = (-0.5 * white_P3.square().sum(dim=1)).exp()
        voxels_P = (voxels_P3[:, 0] * y + voxels_P3[:, 1]) * z + voxels_P3[:, 2]
        sums_RD = sums_RD.index_add(0, voxels_P, alpha_P.unsqueeze(1) * weights_GD[rows_P])
        log_R = log_R.index_add(0, voxels_P, torch.log1p(-alpha_P.clamp(max=ALPHA_MAX)))
    return sums_RD.view(x, y, z, -1), log_R.view(x, y, z)


def _pairs(boxes: Boxes, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Gaussians (P,) and voxels (P, 3) of all pairs, at most ``most`` at a time where a Gaussian has no more.

    An empty set has one empty list, so that the result still hangs on the arguments.
    """
    sizes_G3 = (boxes.last_G3 - boxes.first_G3 + 1).clamp(min=0)
    counts_G = sizes_G3.prod(dim=1)
    ends = counts_G.cumsum(0).tolist()
    start = 0
    while start < max(len(ends), 1):
        before = ends[start - 1] if start else 0
        stop = start + 1
        while stop < len(ends) and ends[stop] - before <= most:
            stop += 1
        rows_P = torch.repeat_interleave(counts_G[start:stop]) + start
        first_P = (counts_G.cumsum(0) - counts_G)[rows_P] - before
        within_P = torch.arange(len(rows_P), device=rows_P.device) - first_P
        _, size_y, size_z = sizes_G3[rows_P].unbind(1)
        steps = [within_P // (size_y * size_z), within_P // size_z % size_y, within_P % size_z]
        yield rows_P, boxes.first_G3[rows_P] + torch.stack(steps, dim=1)
        start = stop
