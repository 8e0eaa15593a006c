"""Which voxels meet under which kernel offset: the index half of a sparse convolution.

Shape suffixes: M active voxels, R pairs of one offset, 4 = (b, ix, iy, iz). Kernel offsets run x slowest, z fastest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from fusionocc_core.ops.sparse_volume import Shape3, SparseVolume, coords_from_keys

BLOCK_ROWS = 16384
"""Output voxels that a single CPU thread handles at a time: they stay in its cache while every offset adds to them."""


@dataclass(frozen=True, kw_only=True)
class Rulebook:
    """Pairs of input and output voxels for each kernel offset.

    Depends on coordinates alone, so convolutions over the same voxels with the same kernel share one.
    """

    kernel_size: Shape3
    stride: Shape3
    padding: Shape3
    in_rows: tuple[Tensor, ...]
    """One tensor an offset, (R,) int64: rows of the input volume, increasing."""
    out_rows: tuple[Tensor, ...]
    """One tensor an offset, (R,) int64: the output row that each of ``in_rows`` adds to, increasing."""
    num_in: int
    """Active voxels of the input volume."""
    out_coords_M4: Tensor
    """Active voxels of the output volume."""
    out_shape: Shape3
    """Voxels of the output volume along x, y, z."""
    centre: int | None
    """The offset under which every voxel meets itself: all rows, in their order. None where there is none."""

    @cached_property
    def blocks(self) -> list[list[tuple[int, int, int]]]:
        """For each block of output rows, (offset, start, stop) of its pairs; offsets without a pair are left out.

        A GPU gets all rows as one block: it has no use for small operations.
        """
        if self.out_coords_M4.is_cuda:
            return [[(k, 0, len(rows)) for k, rows in enumerate(self.out_rows) if len(rows)]]
        edges = torch.arange(0, len(self.out_coords_M4) + BLOCK_ROWS, BLOCK_ROWS)
        cuts = [torch.searchsorted(rows, edges).tolist() for rows in self.out_rows]
        return [
            [(k, cut[block], cut[block + 1]) for k, cut in enumerate(cuts) if cut[block] < cut[block + 1]]
            for block in range(len(edges) - 1)
        ]

    @cached_property
    def in_of_out_MK(self) -> Tensor:
        """(M out, K) int32: which input row meets an output row under each offset (one at most), -1: none."""
        return _table(self.out_rows, self.in_rows, len(self.out_coords_M4))

    @cached_property
    def out_of_in_MK(self) -> Tensor:
        """(M in, K) int32: the same the other way round."""
        return _table(self.in_rows, self.out_rows, self.num_in)

    @cached_property
    def most_pairs(self) -> int:
        """Of one offset in one block."""
        return max((stop - start for block in self.blocks for _, start, stop in block), default=0)


def _table(rows: tuple[Tensor, ...], others: tuple[Tensor, ...], count: int) -> Tensor:
    table_MK = torch.full((count, len(rows)), -1, dtype=torch.int32, device=rows[0].device)
    for k, (row_R, other_R) in enumerate(zip(rows, others, strict=True)):
        table_MK[row_R, k] = other_R.to(torch.int32)
    return table_MK


def submanifold_rulebook(volume: SparseVolume, kernel_size: Shape3) -> Rulebook:
    """Pairs of a submanifold convolution, whose output voxels are the input voxels.

    Each column of offsets along z is found with one search, because its voxels lie side by side in the sorted keys; and
    only the first half of the offsets is searched, because the other half is its mirror image.

    Raises:
        ValueError: a kernel without a central voxel.
    """
    if any(k < 1 or k % 2 == 0 for k in kernel_size):
        raise ValueError(f"submanifold convolution: kernel_size={kernel_size}; expected odd numbers, for a centre")
    x_radius, y_radius, z_radius = radius = _triple_of(k // 2 for k in kernel_size)
    # A rim of empty voxels as wide as the radius keeps an offset from leading into another row of the grid.
    x_size, y_size, z_size = _triple_of(n + 2 * r for n, r in zip(volume.shape, radius, strict=True))
    b_M, x_M, y_M, z_M = volume.coords_M4.unbind(1)
    keys_M = ((b_M * x_size + x_M + x_radius) * y_size + y_M + y_radius) * z_size + z_M + z_radius
    keys_ending = torch.cat((keys_M, keys_M.new_full((1,), torch.iinfo(torch.int64).max)))

    num_in = len(keys_M)
    all_M = torch.arange(num_in, device=keys_M.device)
    first_half: list[tuple[Tensor, Tensor]] = []
    for dx, dy in product(range(-x_radius, 1), range(-y_radius, y_radius + 1)):
        if (dx, dy) > (0, 0):
            break
        wanted_M = keys_M + (dx * y_size + dy) * z_size - z_radius
        found_M = torch.searchsorted(keys_M, wanted_M)
        for _ in range(z_radius if (dx, dy) == (0, 0) else kernel_size[2]):
            hit_M = keys_ending[found_M] == wanted_M
            out_R = hit_M.nonzero().squeeze(1)
            first_half.append((found_M[out_R], out_R))
            found_M, wanted_M = found_M + hit_M, wanted_M + 1
    pairs = [*first_half, (all_M, all_M), *((out_R, in_R) for in_R, out_R in reversed(first_half))]
    return Rulebook(
        kernel_size=kernel_size,
        stride=(1, 1, 1),
        padding=radius,
        in_rows=tuple(in_R for in_R, _ in pairs),
        out_rows=tuple(out_R for _, out_R in pairs),
        num_in=num_in,
        out_coords_M4=volume.coords_M4,
        out_shape=volume.shape,
        centre=len(first_half),
    )


def strided_rulebook(volume: SparseVolume, kernel_size: Shape3, stride: Shape3, padding: Shape3) -> Rulebook:
    """Pairs of a regular sparse convolution: a voxel of the output is active if its window holds an active one.

    Raises:
        ValueError: a kernel larger than the padded volume, or a stride or padding that is out of range.
    """
    if min(kernel_size) < 1 or min(stride) < 1 or min(padding) < 0:
        raise ValueError(
            f"sparse convolution: kernel_size={kernel_size} and stride={stride} must be positive and "
            f"padding={padding} not negative"
        )
    axes = list(zip(volume.shape, kernel_size, stride, padding, strict=True))
    out_shape = _triple_of((n + 2 * p - k) // s + 1 for n, k, s, p in axes)
    if min(out_shape) < 1:
        raise ValueError(
            f"sparse convolution: kernel_size={kernel_size} with padding={padding} is larger than the volume "
            f"{volume.shape} (x, y, z)"
        )
    b_M, *xyz = volume.coords_M4.unbind(1)
    # Axis by axis, with only the voxels that are still in: most drop out at the first axis when the stride is above 1.
    steps = [_axis_targets(c_M, *axis) for c_M, axis in zip(xyz, axes, strict=True)]
    found = [(torch.arange(len(b_M), device=b_M.device), b_M)]
    for targets, extent in zip(steps, out_shape, strict=True):
        found = [_extend(rows_R, key_R, *target, extent) for rows_R, key_R in found for target in targets]
    out_keys_M, out_rows = torch.unique(torch.cat([key_R for _, key_R in found]), return_inverse=True)
    return Rulebook(
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        in_rows=tuple(rows_R for rows_R, _ in found),
        out_rows=out_rows.split([len(key_R) for _, key_R in found]),
        num_in=len(b_M),
        out_coords_M4=coords_from_keys(out_keys_M, out_shape),
        out_shape=out_shape,
        centre=None,
    )


def _axis_targets(c_M: Tensor, size: int, kernel: int, stride: int, padding: int) -> list[tuple[Tensor, Tensor]]:
    """For each kernel offset along one axis: which voxels meet an output voxel there, and its index."""
    last = (size + 2 * padding - kernel) // stride
    targets = []
    for offset in range(kernel):
        scaled_M = c_M + (padding - offset)
        out_M = torch.div(scaled_M, stride, rounding_mode="floor")
        targets.append(((scaled_M == out_M * stride) & (out_M >= 0) & (out_M <= last), out_M))
    return targets


def _extend(rows_R: Tensor, key_R: Tensor, valid_M: Tensor, out_M: Tensor, extent: int) -> tuple[Tensor, Tensor]:
    """The pairs that survive one more axis, with that axis in their output key."""
    kept_R = valid_M[rows_R].nonzero().squeeze(1)
    rows_R = rows_R[kept_R]
    return rows_R, key_R[kept_R] * extent + out_M[rows_R]


def _triple_of(values: Iterable[int]) -> Shape3:
    x, y, z = values
    return x, y, z
