"""Sparse 3D convolution, submanifold and strided (Graham et al., CVPR 2018).

Shape suffixes: M active voxels, I O channels in and out, X Y Z kernel extents, K = X * Y * Z kernel offsets, R pairs of
one offset. Weights are kept as spconv 2 keeps them, [out, kx, ky, kz, in], so that one tensor drives every backend.
Convolutions compute in the dtype of the features, whatever autocast says.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fusionocc_core.ops.rulebook import Rulebook, strided_rulebook, submanifold_rulebook
from fusionocc_core.ops.sparse_volume import Shape3, SparseVolume
from fusionocc_core.ops.spconv_backend import SpconvRulebook, spconv_convolve
from fusionocc_core.ops.triton_device import unavailable
from fusionocc_core.side_by_side import shares, side_by_side

BACKENDS = ("auto", "torch", "spconv", "triton")


def submanifold_conv3d(
    volume: SparseVolume,
    weight_OXYZI: Tensor,
    rulebook: Rulebook | SpconvRulebook | None = None,
    backend: str = "auto",
) -> SparseVolume:
    """Convolution whose output voxels are the input voxels; the kernel's centre lies on each in turn.

    Args:
        volume: the active voxels, with I channels.
        weight_OXYZI: (O, kx, ky, kz, I), odd extents.
        rulebook: from :func:`plan_submanifold_conv3d` for the same voxels and kernel; made on the spot if None.
        backend: "torch", "spconv", "triton" (kernels for CUDA, see sparse_conv_triton.py; not yet run on a GPU), or
            "auto": spconv where the features lie on a CUDA device in float32 or float16 and its wheel is installed,
            else torch.

    Returns:
        The same voxels with O channels; differentiable in features and weight.

    Raises:
        ValueError: weight or rulebook that do not fit the volume, an unknown backend, or one that cannot run here.
    """
    kernel_size = _check_weight(volume, weight_OXYZI)
    if kernel_size == (1, 1, 1):
        return volume.with_features(_pointwise(volume.features_MC, weight_OXYZI))
    if rulebook is None:
        rulebook = plan_submanifold_conv3d(volume, kernel_size, backend)
    else:
        _check_rulebook(rulebook, volume, kernel_size, backend)
    if isinstance(rulebook, Rulebook):
        return volume.with_features(_convolve(volume.features_MC, weight_OXYZI, rulebook, backend))
    return spconv_convolve(volume, weight_OXYZI, rulebook)


def plan_submanifold_conv3d(
    volume: SparseVolume, kernel_size: Shape3, backend: str = "auto"
) -> Rulebook | SpconvRulebook:
    """What submanifold convolutions over the same voxels with the same kernel can share.

    Raises:
        ValueError: an even kernel, an unknown backend, or one that cannot run here.
    """
    if _uses_spconv(volume, backend):
        return SpconvRulebook(
            kernel_size=kernel_size, stride=None, padding=(0, 0, 0), num_in=len(volume.features_MC), indices={}
        )
    return submanifold_rulebook(volume, kernel_size)


def sparse_conv3d(
    volume: SparseVolume,
    weight_OXYZI: Tensor,
    stride: int | Shape3,
    padding: int | Shape3,
    backend: str = "auto",
) -> SparseVolume:
    """Regular convolution; an output voxel is active if its window holds an active input voxel.

    Args:
        volume: the active voxels, with I channels.
        weight_OXYZI: (O, kx, ky, kz, I).
        stride: in voxels, one number or (x, y, z).
        padding: empty voxels around the volume, one number or (x, y, z).
        backend: as in :func:`submanifold_conv3d`.

    Returns:
        A volume of floor((n + 2 * padding - kernel) / stride) + 1 voxels along each axis, with O channels;
        differentiable in features and weight.

    Raises:
        ValueError: as in :func:`submanifold_conv3d`, or a kernel, stride or padding that does not fit the volume.
    """
    kernel_size, stride, padding = _check_weight(volume, weight_OXYZI), _triple(stride), _triple(padding)
    if _uses_spconv(volume, backend):
        plan = SpconvRulebook(
            kernel_size=kernel_size, stride=stride, padding=padding, num_in=len(volume.features_MC), indices={}
        )
        return spconv_convolve(volume, weight_OXYZI, plan)
    rulebook = strided_rulebook(volume, kernel_size, stride, padding)
    return SparseVolume(
        features_MC=_convolve(volume.features_MC, weight_OXYZI, rulebook, backend),
        coords_M4=rulebook.out_coords_M4,
        shape=rulebook.out_shape,
        batch_size=volume.batch_size,
    )


def sparse_weight_from_official(weight: Tensor) -> Tensor:
    """Our [out, kx, ky, kz, in] from a checkpoint's weight, which is that (spconv 2) or [kx, ky, kz, in, out] (mmcv).

    A cubic kernel tells the two apart: its three equal extents come first in mmcv's layout and second in spconv's.

    Raises:
        ValueError: neither layout, or a shape that fits both.
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


def convolve_reference(features_MI: Tensor, weight_OXYZI: Tensor, rulebook: Rulebook) -> Tensor:
    """What the fast path computes, in plain differentiable PyTorch; keeps every gathered row for the backward pass."""
    out_MO = features_MI.new_zeros(len(rulebook.out_coords_M4), len(weight_OXYZI))
    weights_IO = weight_OXYZI.flatten(1, 3).permute(1, 2, 0)
    for weight_IO, in_R, out_R in zip(weights_IO, rulebook.in_rows, rulebook.out_rows, strict=True):
        out_MO = out_MO.index_add(0, out_R, features_MI[in_R] @ weight_IO)
    return out_MO


def _is_kernel(extents: tuple[int, ...]) -> bool:
    return len(set(extents)) == 1 and extents[0] in (1, 3)


def _triple(value: int | Shape3) -> Shape3:
    return (value, value, value) if isinstance(value, int) else value


def _check_weight(volume: SparseVolume, weight_OXYZI: Tensor) -> Shape3:
    channels = volume.features_MC.shape[1]
    if weight_OXYZI.ndim != 5 or weight_OXYZI.shape[4] != channels:
        raise ValueError(
            f"sparse convolution: weight is {tuple(weight_OXYZI.shape)}, expected (out, kx, ky, kz, {channels}) for a "
            f"volume of {channels} channels; sparse_weight_from_official() turns other layouts"
        )
    _, x, y, z, _ = weight_OXYZI.shape
    return x, y, z


def _check_rulebook(
    rulebook: Rulebook | SpconvRulebook, volume: SparseVolume, kernel_size: Shape3, backend: str
) -> None:
    if rulebook.kernel_size != kernel_size or rulebook.num_in != len(volume.features_MC):
        raise ValueError(
            f"submanifold_conv3d: rulebook is for kernel {rulebook.kernel_size} over {rulebook.num_in} voxels, "
            f"the weight has {kernel_size} and the volume {len(volume.features_MC)}; make one for these voxels"
        )
    fitting = ("torch", "triton") if isinstance(rulebook, Rulebook) else ("spconv",)
    if backend not in ("auto", *fitting):
        raise ValueError(f"submanifold_conv3d: backend={backend!r}, but the rulebook was made for {fitting[0]!r}")


def _uses_spconv(volume: SparseVolume, backend: str) -> bool:
    if backend not in BACKENDS:
        raise ValueError(f"sparse convolution: backend={backend!r}; expected one of {BACKENDS}")
    features_MC = volume.features_MC
    if backend in ("torch", "triton") or len(features_MC) == 0:  # spconv refuses a volume without voxels
        return False
    fits = features_MC.is_cuda and features_MC.dtype in (torch.float32, torch.float16)
    return backend == "spconv" or (fits and find_spec("spconv") is not None)


def _pointwise(features_MI: Tensor, weight_OXYZI: Tensor) -> Tensor:
    with torch.autocast(features_MI.device.type, enabled=False):
        return features_MI @ weight_OXYZI.flatten(0, 3).T.to(features_MI.dtype)


def _convolve(features_MI: Tensor, weight_OXYZI: Tensor, rulebook: Rulebook, backend: str) -> Tensor:
    with torch.autocast(features_MI.device.type, enabled=False):
        weight_KIO = weight_OXYZI.flatten(1, 3).permute(1, 2, 0).to(features_MI.dtype)
        if backend == "triton":
            _check_triton(features_MI)
            from fusionocc_core.ops.sparse_conv_triton import convolve_triton

            return convolve_triton(features_MI, weight_KIO, rulebook)
        out_MO: Tensor = _Convolution.apply(features_MI, weight_KIO.contiguous(), rulebook)
        return out_MO


def _check_triton(features_MI: Tensor) -> None:
    if problem := unavailable(features_MI.device.type):
        raise ValueError(f"sparse convolution: backend='triton': {problem}; take backend='auto'")
    if features_MI.dtype not in (torch.float32, torch.float16):
        raise ValueError(
            f"sparse convolution: backend='triton' takes float32 and float16, not {features_MI.dtype}; take "
            "backend='auto'"
        )


class _Convolution(torch.autograd.Function):
    """Keeps only its two inputs for the backward pass. Results repeat exactly, on a GPU too."""

    @staticmethod
    def forward(ctx: Any, features_MI: Tensor, weight_KIO: Tensor, rulebook: Rulebook) -> Tensor:
        ctx.save_for_backward(features_MI, weight_KIO)
        ctx.rulebook = rulebook
        return _gather_gemm_scatter(features_MI, weight_KIO, rulebook)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features_MI, weight_KIO = ctx.saved_tensors
        of_features, of_weight, _ = ctx.needs_input_grad
        # The gradient of a sum is a single number that only looks like rows.
        gradients = _gradients(features_MI, grad_MO.contiguous(), weight_KIO, ctx.rulebook, of_features, of_weight)
        return gradients[0] if of_features else None, gradients[1] if of_weight else None, None


def _gather_gemm_scatter(source_MI: Tensor, weight_KIO: Tensor, rulebook: Rulebook) -> Tensor:
    """Gather, multiply, add: one matrix product an offset and block. Half precision is summed in float32.

    An output voxel meets an offset at most once, so no two additions of one call collide; blocks have output voxels of
    their own, so that threads may share them. The kernel's centre leads from every voxel to itself: nothing to gather,
    and its product is what the others are added to.
    """
    sum_dtype = torch.promote_types(source_MI.dtype, torch.float32)
    centre = rulebook.centre
    if centre is None:
        target_MO = source_MI.new_zeros(len(rulebook.out_coords_M4), weight_KIO.shape[2], dtype=sum_dtype)
    else:
        target_MO = (source_MI @ weight_KIO[centre]).to(sum_dtype)

    def add(blocks: slice) -> None:
        gathered_RI = source_MI.new_empty(rulebook.most_pairs, weight_KIO.shape[1])
        product_RO = source_MI.new_empty(rulebook.most_pairs, weight_KIO.shape[2])
        for block in rulebook.blocks[blocks]:
            for k, start, stop in block:
                if k != centre:
                    in_RI, out_RO = gathered_RI[: stop - start], product_RO[: stop - start]
                    torch.index_select(source_MI, 0, rulebook.in_rows[k][start:stop], out=in_RI)
                    torch.mm(in_RI, weight_KIO[k], out=out_RO)
                    target_MO.index_add_(0, rulebook.out_rows[k][start:stop], out_RO.to(sum_dtype))

    side_by_side([partial(add, blocks) for blocks in shares(len(rulebook.blocks))])
    return target_MO.to(source_MI.dtype)


def _gradients(
    features_MI: Tensor, grad_MO: Tensor, weight_KIO: Tensor, rulebook: Rulebook, of_features: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """Of features and weight, where wanted; what they share is gathered once. Half precision is summed in float32."""
    sum_dtype, centre = torch.promote_types(grad_MO.dtype, torch.float32), rulebook.centre
    weight_KOI = weight_KIO.transpose(1, 2).contiguous()

    def gather(blocks: slice) -> tuple[Tensor, Tensor]:
        if of_features and centre is not None and blocks.start == 0:
            grad_MI = (grad_MO @ weight_KOI[centre]).to(sum_dtype)
        else:
            grad_MI = torch.zeros_like(features_MI, dtype=sum_dtype)
        grad_KIO = torch.zeros_like(weight_KIO, dtype=sum_dtype)
        in_RI, back_RI = (features_MI.new_empty(rulebook.most_pairs, features_MI.shape[1]) for _ in range(2))
        out_RO = grad_MO.new_empty(rulebook.most_pairs, grad_MO.shape[1])
        for block in rulebook.blocks[blocks]:
            for k, start, stop in block:
                if k == centre:
                    grad_KIO[k] += features_MI[start:stop].T @ grad_MO[start:stop]
                    continue
                in_R, out_R = rulebook.in_rows[k][start:stop], rulebook.out_rows[k][start:stop]
                grad_RO = torch.index_select(grad_MO, 0, out_R, out=out_RO[: stop - start])
                if of_weight:
                    grad_KIO[k] += torch.index_select(features_MI, 0, in_R, out=in_RI[: stop - start]).T @ grad_RO
                if of_features:
                    product_RI = torch.mm(grad_RO, weight_KOI[k], out=back_RI[: stop - start])
                    grad_MI.index_add_(0, in_R, product_RI.to(sum_dtype))
        return grad_MI, grad_KIO

    # Blocks have output voxels of their own, but share input voxels: each thread has its sums.
    (grad_MI, grad_KIO), *others = side_by_side([partial(gather, blocks) for blocks in shares(len(rulebook.blocks))])
    for more_MI, more_KIO in others:
        grad_MI += more_MI
        grad_KIO += more_KIO
    return grad_MI.to(features_MI.dtype), grad_KIO.to(weight_KIO.dtype)
