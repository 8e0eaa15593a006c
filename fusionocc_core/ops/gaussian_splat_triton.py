"""Splatting by tiles in Triton kernels: the same lists and sums as gaussian_splat_tiles, for CUDA and float32.

One program a tile goes through the tile's list, so that no two programs write to one place: sums have a fixed order,
and results repeat bit by bit. Triton's interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU, for tests.

In kernels: V = 64 voxels of a tile, K Gaussians at a time, D columns (padded to a power of two).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fusionocc_core.ops.gaussian_splat_lists import ALPHA_MAX, Pairs, TilePlan

if TYPE_CHECKING:
    import triton.language as tl

AT_ONCE = 16
"""Gaussians of a list that a program works on at a time; the least that tl.dot takes."""


def add_sums(pairs: Pairs, table: Tensor, weights: Tensor, plan: TilePlan, sums_NVD: Tensor, log_NV: Tensor) -> None:
    """Write the sums of every tile that has a list, and the logarithms where the plan wants them."""
    forward, _ = _kernels()
    forward[(len(pairs.tiles_L),)](
        table, weights, pairs.rows_P, pairs.tiles_L, pairs.starts_L, pairs.lengths_L, sums_NVD, log_NV,
        *_scalars(plan), weights.shape[1], ALPHA_MAX,
        SURVIVAL=plan.survival, K=AT_ONCE, D=_padded(weights.shape[1]),
    )  # fmt: skip


def fill_gradients(
    pairs: Pairs,
    table: Tensor,
    weights: Tensor,
    plan: TilePlan,
    grad_sums_NVD: Tensor,
    grad_log_NV: Tensor,
    grad_PD: Tensor,
) -> None:
    """Write the gradient of every pair: of mean (3), root (6) and weights."""
    _, backward = _kernels()
    backward[(len(pairs.tiles_L),)](
        table, weights, pairs.rows_P, pairs.tiles_L, pairs.starts_L, pairs.lengths_L,
        grad_sums_NVD.contiguous(), grad_log_NV.contiguous(), grad_PD,
        *_scalars(plan), weights.shape[1], ALPHA_MAX,
        SURVIVAL=plan.survival, K=AT_ONCE, D=_padded(weights.shape[1]),
    )  # fmt: skip


def _scalars(plan: TilePlan) -> tuple[float | int, ...]:
    _, tiles_y, tiles_z = plan.tiles_xyz
    return (*plan.grid.lower, *plan.grid.voxel_size, tiles_y, tiles_z)


def _padded(columns: int) -> int:
    """A power of two that holds so many columns, at least what tl.dot takes."""
    return max(16, 1 << max(columns - 1, 0).bit_length())


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """The kernels, compiled at their first call; importing this module must not need Triton.

    The functions below are Triton's. What they call they find among the module's names, so these are put in place here.
    """
    global tl, _centers, _evaluate, _told
    import triton
    import triton.language

    tl = triton.language
    _centers, _evaluate, _told = triton.jit(_centers), triton.jit(_evaluate), triton.jit(_told)
    return triton.jit(_forward_kernel), triton.jit(_backward_kernel)


def _centers(tile, lower_x, lower_y, lower_z, size_x, size_y, size_z, tiles_y, tiles_z):  # type: ignore[no-untyped-def]
    """Centres of the tile's voxels (V,) along x, y, z, metres."""
    voxel = tl.arange(0, 64)
    x = lower_x + ((tile // (tiles_y * tiles_z)) * 4 + voxel // 16 + 0.5) * size_x
    y = lower_y + ((tile // tiles_z % tiles_y) * 4 + voxel // 4 % 4 + 0.5) * size_y
    z = lower_z + ((tile % tiles_z) * 4 + voxel % 4 + 0.5) * size_z
    return x[:, None], y[:, None], z[:, None]


def _evaluate(entry, here, at_x, at_y, at_z):  # type: ignore[no-untyped-def]
    """Alpha (V, K), zero outside the boxes; the three numbers whose squares are its exponent; the offsets."""
    inside = here[None, :]
    inside = inside & (at_x >= tl.load(entry + 3)[None, :]) & (at_x <= tl.load(entry + 6)[None, :])
    inside = inside & (at_y >= tl.load(entry + 4)[None, :]) & (at_y <= tl.load(entry + 7)[None, :])
    inside = inside & (at_z >= tl.load(entry + 5)[None, :]) & (at_z <= tl.load(entry + 8)[None, :])
    x, y = at_x - tl.load(entry)[None, :], at_y - tl.load(entry + 1)[None, :]
    z = at_z - tl.load(entry + 2)[None, :]
    one = tl.load(entry + 9)[None, :] * x
    two = tl.load(entry + 10)[None, :] * x + tl.load(entry + 11)[None, :] * y
    three = tl.load(entry + 12)[None, :] * x + tl.load(entry + 13)[None, :] * y + tl.load(entry + 14)[None, :] * z
    alpha = tl.where(inside, tl.exp(-(one * one + two * two + three * three)), 0.0)
    return alpha, one, two, three, x, y, z


def _told(weights, row, here, columns, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights (K, D) of Gaussians."""
    column = tl.arange(0, D)
    mask = here[:, None] & (column < columns)[None, :]
    return tl.load(weights + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


def _forward_kernel(  # type: ignore[no-untyped-def]
    table, weights, rows, tiles, starts, lengths, sums, logs,
    lower_x, lower_y, lower_z, size_x, size_y, size_z, tiles_y, tiles_z, columns, alpha_max,
    SURVIVAL: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Sums of one tile; the tiles are sorted by length, so that programs that run together end together."""
    tile = tl.load(tiles + tl.program_id(0))
    start, length = tl.load(starts + tl.program_id(0)), tl.load(lengths + tl.program_id(0))
    at_x, at_y, at_z = _centers(tile, lower_x, lower_y, lower_z, size_x, size_y, size_z, tiles_y, tiles_z)
    total = tl.zeros((64, D), dtype=tl.float32)
    log = tl.zeros((64,), dtype=tl.float32)
    for first in range(0, length, K):
        k = first + tl.arange(0, K)
        here = k < length
        row = tl.load(rows + start + k, mask=here, other=0)
        alpha, _, _, _, _, _, _ = _evaluate(table + row * 15, here, at_x, at_y, at_z)
        total += tl.dot(alpha, _told(weights, row, here, columns, D), input_precision="ieee")
        if SURVIVAL:
            alpha = tl.minimum(alpha, alpha_max)
            left = 1.0 - alpha
            # log(1 - alpha) to the last digit: the rounding of 1 - alpha is taken out again.
            exact = tl.log(left) * (alpha / tl.where(left == 1.0, 1.0, 1.0 - left))
            log += tl.sum(tl.where(left == 1.0, -alpha, exact), axis=1)
    voxel, column = tile * 64 + tl.arange(0, 64), tl.arange(0, D)
    tl.store(sums + voxel[:, None] * columns + column[None, :], total, mask=(column < columns)[None, :])
    if SURVIVAL:
        tl.store(logs + voxel, log)


def _backward_kernel(  # type: ignore[no-untyped-def]
    table, weights, rows, tiles, starts, lengths, grad_sums, grad_logs, grad_pairs,
    lower_x, lower_y, lower_z, size_x, size_y, size_z, tiles_y, tiles_z, columns, alpha_max,
    SURVIVAL: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Gradients of the pairs of one tile: d alpha = -2 alpha (one d one + two d two + three d three)."""
    tile = tl.load(tiles + tl.program_id(0))
    start, length = tl.load(starts + tl.program_id(0)), tl.load(lengths + tl.program_id(0))
    at_x, at_y, at_z = _centers(tile, lower_x, lower_y, lower_z, size_x, size_y, size_z, tiles_y, tiles_z)
    voxel, column = tile * 64 + tl.arange(0, 64), tl.arange(0, D)
    used = (column < columns)[None, :]
    grad_total = tl.load(grad_sums + voxel[:, None] * columns + column[None, :], mask=used, other=0.0)
    for first in range(0, length, K):
        k = first + tl.arange(0, K)
        here = k < length
        row = tl.load(rows + start + k, mask=here, other=0)
        entry = table + row * 15
        alpha, one, two, three, x, y, z = _evaluate(entry, here, at_x, at_y, at_z)
        told = _told(weights, row, here, columns, D)
        grad_alpha = tl.dot(grad_total, tl.trans(told), input_precision="ieee")
        if SURVIVAL:
            grad_alpha -= tl.load(grad_logs + voxel)[:, None] / (1.0 - tl.minimum(alpha, alpha_max))
        scaled = -2.0 * alpha * grad_alpha
        one, two, three = scaled * one, scaled * two, scaled * three
        one_K, two_K, three_K = tl.sum(one, axis=0), tl.sum(two, axis=0), tl.sum(three, axis=0)
        xx, xy, yy = tl.load(entry + 9), tl.load(entry + 10), tl.load(entry + 11)
        xz, yz, zz = tl.load(entry + 12), tl.load(entry + 13), tl.load(entry + 14)
        out = grad_pairs + (start + k) * (9 + columns)
        tl.store(out, -(xx * one_K + xy * two_K + xz * three_K), mask=here)
        tl.store(out + 1, -(yy * two_K + yz * three_K), mask=here)
        tl.store(out + 2, -(zz * three_K), mask=here)
        tl.store(out + 3, tl.sum(one * x, axis=0), mask=here)
        tl.store(out + 4, tl.sum(two * x, axis=0), mask=here)
        tl.store(out + 5, tl.sum(two * y, axis=0), mask=here)
        tl.store(out + 6, tl.sum(three * x, axis=0), mask=here)
        tl.store(out + 7, tl.sum(three * y, axis=0), mask=here)
        tl.store(out + 8, tl.sum(three * z, axis=0), mask=here)
        grad_told = tl.dot(tl.trans(alpha), grad_total, input_precision="ieee")
        tl.store(out[:, None] + 9 + column[None, :], grad_told, mask=here[:, None] & used)
