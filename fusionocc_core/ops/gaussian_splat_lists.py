"""Which Gaussians each tile of 4 x 4 x 4 voxels meets: the lists that every way of splatting by tiles goes through.

Shape suffixes: G Gaussians, L tiles that meet any, P pairs of (tile, Gaussian), Q pairs sorted by Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.ops.gaussian_splat_boxes import Boxes, SplatGrid

EDGE = 4
"""Voxels along each edge of a tile; the fastest of those tried on a CPU."""
VOXELS = EDGE**3
ALPHA_MAX = 1 - 2**-23
"""Largest value of a Gaussian in 1 - alpha, so that its logarithm stays finite in float32."""
INDEX_BYTES_A_PAIR = 72
"""Of the lists of pairs while they are made: nine integers of eight bytes."""


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """What does not change between forward and backward."""

    boxes: Boxes
    grid: SplatGrid
    memory_bytes: int
    survival: bool
    """Whether the product of (1 - alpha) is wanted."""
    kernels: bool = False
    """Whether the Triton kernels do the sums (CUDA, float32)."""

    @property
    def tiles_xyz(self) -> tuple[int, int, int]:
        """Tiles along each axis; the last ones may stick out of the grid."""
        x, y, z = (-(-count // EDGE) for count in self.grid.shape_xyz)
        return x, y, z

    @property
    def tiles(self) -> int:
        """All of them."""
        x, y, z = self.tiles_xyz
        return x * y * z


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of (tile, Gaussian) of one block, sorted by tile, then Gaussian."""

    rows_P: Tensor
    """Gaussian of each pair."""
    tiles_L: Tensor
    """The tiles that have any, longest list first."""
    lengths_L: Tensor
    starts_L: Tensor
    """Their lists: rows_P[start] to rows_P[start + length]."""
    by_gaussian_Q: Tensor
    """Places in rows_P, sorted by Gaussian."""
    starts_G1: Tensor
    """(G + 1,) where each Gaussian's places begin."""


def blocks(plan: TilePlan, weights: Tensor) -> Iterator[Pairs]:
    """Cut the tiles into blocks whose lists fit half the memory."""
    first_G3, last_G3 = plan.boxes.first_G3 // EDGE, plan.boxes.last_G3.div(EDGE, rounding_mode="floor")
    last_G3 = torch.where(plan.boxes.last_G3 < plan.boxes.first_G3, -1, last_G3)
    bytes_a_pair = INDEX_BYTES_A_PAIR + (9 + weights.shape[1]) * weights.element_size()
    most = plan.memory_bytes // 2 // bytes_a_pair
    todo: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((0, 0, 0), plan.tiles_xyz)]
    while todo:
        start, stop = todo.pop()
        low_G3 = torch.maximum(first_G3, first_G3.new_tensor(start))
        sizes_G3 = (torch.minimum(last_G3, last_G3.new_tensor(stop) - 1) - low_G3 + 1).clamp(min=0)
        counts_G = sizes_G3.prod(dim=1)
        pairs = int(counts_G.sum())
        lengths = [to - at for at, to in zip(start, stop, strict=True)]
        if pairs > most:
            if max(lengths) == 1:
                raise too_little(plan, 2 * pairs * bytes_a_pair, pairs)
            axis = lengths.index(max(lengths))
            middle = start[axis] + lengths[axis] // 2
            todo.append(((*start[:axis], middle, *start[axis + 1 :]), stop))
            todo.append((start, (*stop[:axis], middle, *stop[axis + 1 :])))
        elif pairs:
            yield _pairs(counts_G, low_G3, sizes_G3, plan)


def _pairs(counts_G: Tensor, low_G3: Tensor, sizes_G3: Tensor, plan: TilePlan) -> Pairs:
    """List and sort the pairs of one block, whose tiles of each Gaussian are given."""
    _, tiles_y, tiles_z = plan.tiles_xyz
    starts_G1 = F.pad(counts_G.cumsum(0), (1, 0))
    rows_Q = torch.repeat_interleave(counts_G)
    within_Q = torch.arange(len(rows_Q), device=rows_Q.device) - starts_G1[rows_Q]
    size_z_Q, size_y_Q = sizes_G3[:, 2][rows_Q], sizes_G3[:, 1][rows_Q]
    first_G = (low_G3[:, 0] * tiles_y + low_G3[:, 1]) * tiles_z + low_G3[:, 2]
    column_Q = within_Q // size_z_Q
    tile_Q = first_G[rows_Q] + within_Q - column_Q * size_z_Q  # along z
    row_Q = column_Q // size_y_Q
    tile_Q += ((column_Q - row_Q * size_y_Q) + row_Q * tiles_y) * tiles_z
    order_P = tile_Q.int().sort(stable=True).indices
    by_gaussian_Q = torch.empty_like(order_P)
    by_gaussian_Q[order_P] = torch.arange(len(order_P), device=order_P.device)
    lengths_N = torch.bincount(tile_Q, minlength=plan.tiles)
    lengths_L, tiles_L = lengths_N.sort(descending=True, stable=True)
    used = int((lengths_L > 0).sum())
    return Pairs(
        rows_P=rows_Q[order_P],
        tiles_L=tiles_L[:used],
        lengths_L=lengths_L[:used],
        starts_L=(lengths_N.cumsum(0) - lengths_N)[tiles_L[:used]],
        by_gaussian_Q=by_gaussian_Q,
        starts_G1=starts_G1,
    )


def too_little(plan: TilePlan, needed: int, gaussians: int) -> ValueError:
    """The error of a tile whose Gaussians do not fit the memory."""
    return ValueError(
        f"memory_bytes={plan.memory_bytes}: one tile of {EDGE} x {EDGE} x {EDGE} voxels meets {gaussians} Gaussians, "
        f"which takes {needed} bytes; allow at least that, or let the Gaussians reach less far"
    )
