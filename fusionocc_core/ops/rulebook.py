"""Which voxels meet under which kernel offset: the index half of a sparse convolution.

Shape suffixes: M active voxels, K kernel offsets (x slowest, z fastest), R pairs of one offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from fusionocc_core.ops.sparse_volume import Shape3, SparseVolume, coords_from_keys


@dataclass(frozen=True, kw_only=True)
class Rulebook:
    """Pairs of input and output voxels for each kernel offset.

    Depends on coordinates alone, so convolutions over the same voxels with the same kernel share one.
    """

    kernel_size: Shape3
    stride: Shape3
    padding: Shape3
    in_rows_KR: tuple[Tensor, ...]
    """For each offset, (R,) int64 rows of the input volume, increasing."""
    out_rows_KR: tuple[Tensor, ...]
    """For each offset, (R,) int64 rows of the output volume, increasing; in_rows[k][r] feeds out_rows[k][r]."""
    num_in: int
    out_coords_M4: Tensor
    """Voxels of the output volume."""
    out_shape: Shape3
    """Grid of the output volume."""


def submanifold_rulebook(volume: SparseVolume, kernel_size: Shape3) -> Rulebook:
    """Pairs of a submanifold convolution: output voxels are the input voxels.

    Only half of the offsets is searched; the pairs of the opposite offset are the same with input and output exchanged.
    """
    radius = tuple(k // 2 for k in kernel_size)
    b_M, *xyz = volume.coords_M4.unbind(1)
    # With a rim of `radius` empty voxels no offset can leave the grid and land in another row of it.
    sizes = tuple(n + 2 * r for n, r in zip(volume.shape, radius, strict=True))
    x_M, y_M, z_M = (c + r for c, r in zip(xyz, radius, strict=True))
    keys_M = ((b_M * sizes[0] + x_M) * sizes[1] + y_M) * sizes[2] + z_M
    all_M = torch.arange(len(keys_M), device=keys_M.device)
    num_offsets = kernel_size[0] * kernel_size[1] * kernel_size[2]
    centre = num_offsets // 2
    in_rows: list[Tensor] = [all_M] * num_offsets
    out_rows: list[Tensor] = [all_M] * num_offsets
    last = max(len(keys_M) - 1, 0)
    for k, (dx, dy, dz) in enumerate(product(*(range(-r, r + 1) for r in radius))):
        if k >= centre:
            break
        wanted_M = keys_M + (dx * sizes[1] + dy) * sizes[2] + dz
        found_M = torch.searchsorted(keys_M, wanted_M).clamp(max=last)
        out_R = (keys_M[found_M] == wanted_M).nonzero().squeeze(1)
        in_R = found_M[out_R]
        in_rows[k], out_rows[k] = in_R, out_R
        in_rows[num_offsets - 1 - k], out_rows[num_offsets - 1 - k] = out_R, in_R
    return Rulebook(
        kernel_size=kernel_size,
        stride=(1, 1, 1),
        padding=radius,  # type: ignore[arg-type]
        in_rows_KR=tuple(in_rows),
        out_rows_KR=tuple(out_rows),
        num_in=len(keys_M),
        out_coords_M4=volume.coords_M4,
        out_shape=volume.shape,
    )


def strided_rulebook(volume: SparseVolume, kernel_size: Shape3, stride: Shape3, padding: Shape3) -> Rulebook:
    """Pairs of a regular sparse convolution: a voxel of the output is active if its window holds an active one."""
    out_shape: Shape3 = tuple(  # type: ignore[assignment]
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(volume.shape, padding, kernel_size, stride, strict=True)
    )
    b_M, *xyz = volume.coords_M4.unbind(1)
    in_rows: list[Tensor] = []
    keys: list[Tensor] = []
    for offset in product(*(range(k) for k in kernel_size)):
        hit_M = torch.ones_like(b_M, dtype=torch.bool)
        key_M = b_M
        for c, k, s, p, n in zip(xyz, offset, stride, padding, out_shape, strict=True):
            shifted_M = c + p - k
            out_M = torch.div(shifted_M, s, rounding_mode="floor")
            hit_M &= (shifted_M == out_M * s) & (out_M >= 0) & (out_M < n)
            key_M = key_M * n + out_M
        rows_R = hit_M.nonzero().squeeze(1)
        in_rows.append(rows_R)
        keys.append(key_M[rows_R])
    out_keys_M, rows = torch.unique(torch.cat(keys), return_inverse=True)
    return Rulebook(
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        in_rows_KR=tuple(in_rows),
        out_rows_KR=rows.split([len(k) for k in keys]),
        num_in=len(b_M),
        out_coords_M4=coords_from_keys(out_keys_M, out_shape),
        out_shape=out_shape,
    )
