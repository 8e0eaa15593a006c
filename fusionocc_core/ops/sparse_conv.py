"""Sparse 3D convolution, submanifold and strided.

Shape suffixes: M active voxels, I O channels in and out, X Y Z kernel extents, K = X * Y * Z kernel offsets.
Weights are kept as spconv 2 keeps them, [out, kx, ky, kz, in], so that one tensor drives every backend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusionocc_core.ops.rulebook import Rulebook, strided_rulebook, submanifold_rulebook
from fusionocc_core.ops.sparse_volume import Shape3, SparseVolume

BACKENDS = ("auto", "torch", "spconv")


def submanifold_conv3d(
    volume: SparseVolume, weight_OXYZI: Tensor, rulebook: Rulebook | None = None, backend: str = "auto"
) -> SparseVolume:
    """Convolution whose output voxels are the input voxels (Graham and van der Maaten, 2017)."""
    if rulebook is None:
        rulebook = submanifold_rulebook(volume, _kernel_size(weight_OXYZI))
    return volume.with_features(_convolve(volume.features_MC, weight_OXYZI, rulebook))


def sparse_conv3d(
    volume: SparseVolume,
    weight_OXYZI: Tensor,
    stride: int | Shape3,
    padding: int | Shape3,
    backend: str = "auto",
) -> SparseVolume:
    """Regular convolution; an output voxel is active if its window holds an active input voxel."""
    rulebook = strided_rulebook(volume, _kernel_size(weight_OXYZI), _triple(stride), _triple(padding))
    return SparseVolume(
        features_MC=_convolve(volume.features_MC, weight_OXYZI, rulebook),
        coords_M4=rulebook.out_coords_M4,
        shape=rulebook.out_shape,
        batch_size=volume.batch_size,
    )


def sparse_weight_from_official(weight: Tensor) -> Tensor:
    """[out, kx, ky, kz, in] from a checkpoint's weight in that layout (spconv 2) or [kx, ky, kz, in, out] (mmcv).

    A cubic kernel tells the two apart: three equal odd extents come first in mmcv's layout and second in spconv's.

    Raises:
        ValueError: neither layout, or one that fits both.
    """
    shape = tuple(weight.shape)
    mmcv = len(shape) == 5 and _is_kernel(shape[:3])
    spconv = len(shape) == 5 and _is_kernel(shape[1:4])
    if mmcv == spconv:
        raise ValueError(
            f"sparse convolution weight of shape {shape}: expected [k, k, k, in, out] (mmcv) or [out, k, k, k, in] "
            f"(spconv 2) with k = 1 or 3; {'both fit' if mmcv else 'neither fits'}"
        )
    return (weight.permute(4, 0, 1, 2, 3) if mmcv else weight).contiguous()


def sparse_weight_to_official(weight_OXYZI: Tensor) -> Tensor:
    """[kx, ky, kz, in, out], the layout of the official files (mmcv), from ours."""
    return weight_OXYZI.permute(1, 2, 3, 4, 0).contiguous()


def _is_kernel(extents: tuple[int, ...]) -> bool:
    return len(set(extents)) == 1 and extents[0] in (1, 3)


def _kernel_size(weight_OXYZI: Tensor) -> Shape3:
    return tuple(weight_OXYZI.shape[1:4])  # type: ignore[return-value]


def _triple(value: int | Shape3) -> Shape3:
    return (value, value, value) if isinstance(value, int) else value


def _convolve(features_MI: Tensor, weight_OXYZI: Tensor, rulebook: Rulebook) -> Tensor:
    weight_KIO = weight_OXYZI.flatten(1, 3).permute(1, 2, 0).to(features_MI.dtype)
    out: Tensor = _GatherGemmScatter.apply(features_MI, weight_KIO, rulebook)
    return out


class _GatherGemmScatter(torch.autograd.Function):
    """One matrix product an offset; keeps nothing but its two inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, features_MI: Tensor, weight_KIO: Tensor, rulebook: Rulebook) -> Tensor:
        ctx.save_for_backward(features_MI, weight_KIO)
        ctx.rulebook = rulebook
        out_MO = features_MI.new_zeros(len(rulebook.out_coords_M4), weight_KIO.shape[2])
        for weight_IO, in_R, out_R in zip(weight_KIO, rulebook.in_rows_KR, rulebook.out_rows_KR, strict=True):
            out_MO.index_add_(0, out_R, features_MI[in_R] @ weight_IO)
        return out_MO

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor, Tensor, None]:
        features_MI, weight_KIO = ctx.saved_tensors
        grad_MI, grad_KIO = torch.zeros_like(features_MI), torch.zeros_like(weight_KIO)
        rows = zip(ctx.rulebook.in_rows_KR, ctx.rulebook.out_rows_KR, strict=True)
        for k, (in_R, out_R) in enumerate(rows):
            grad_RO = grad_MO[out_R]
            grad_MI.index_add_(0, in_R, grad_RO @ weight_KIO[k].T)
            grad_KIO[k] = features_MI[in_R].T @ grad_RO
        return grad_MI, grad_KIO, None
