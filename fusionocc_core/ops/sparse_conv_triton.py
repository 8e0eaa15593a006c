"""Sparse convolution in Triton kernels: gather, multiply and add in one, for CUDA, in float32 or float16.

One program takes a block of output voxels through all kernel offsets: rows are read where they lie and multiplied at
once, so that neither gathered rows nor products are written down, and nothing is added atomically: results repeat bit
by bit. Sums are float32. Triton's interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU, for tests.

In kernels: M output voxels, I O channels in and out at a time, K kernel offsets.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    import triton.language as tl

    from fusionocc_core.ops.rulebook import Rulebook

ROWS = 64
"""Voxels that a program works on."""
CHANNELS = 32
"""In and out, that it multiplies at a time."""


def convolve_triton(features_MI: Tensor, weight_KIO: Tensor, rulebook: Rulebook) -> Tensor:
    """What sparse_conv computes; differentiable in features and weight, on a device that kernels run on."""
    out_MO: Tensor = _Convolution.apply(features_MI.contiguous(), weight_KIO.contiguous(), rulebook)
    return out_MO


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_MI: Tensor, weight_KIO: Tensor, rulebook: Rulebook) -> Tensor:
        ctx.save_for_backward(features_MI, weight_KIO)
        ctx.rulebook = rulebook
        return _product(features_MI, weight_KIO, rulebook.in_of_out_MK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features_MI, weight_KIO = ctx.saved_tensors
        rulebook: Rulebook = ctx.rulebook
        grad_MO, grad_MI, grad_KIO = grad_MO.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            grad_MI = _product(grad_MO, weight_KIO.transpose(1, 2).contiguous(), rulebook.out_of_in_MK)
        if ctx.needs_input_grad[1]:
            grad_KIO = _weight_gradient(features_MI, grad_MO, rulebook.in_of_out_MK).to(weight_KIO.dtype)
        return grad_MI, grad_KIO, None


def _product(source_MI: Tensor, weight_KIO: Tensor, table_MK: Tensor) -> Tensor:
    (count, offsets), (_, ins, outs) = table_MK.shape, weight_KIO.shape
    out_MO = source_MI.new_zeros(count, outs)
    if count:
        _kernels()[0][(-(-count // ROWS), -(-outs // CHANNELS))](
            source_MI, weight_KIO, table_MK, out_MO, count, ins, outs, K=offsets, M=ROWS, C=CHANNELS
        )
    return out_MO


def _weight_gradient(source_MI: Tensor, grad_MO: Tensor, table_MK: Tensor) -> Tensor:
    (count, offsets), ins, outs = table_MK.shape, source_MI.shape[1], grad_MO.shape[1]
    grad_KIO = torch.zeros(offsets, ins, outs, dtype=torch.float32, device=grad_MO.device)
    if count:
        _kernels()[1][(offsets, -(-ins // CHANNELS), -(-outs // CHANNELS))](
            source_MI, grad_MO, table_MK, grad_KIO, count, ins, outs, K=offsets, M=ROWS, C=CHANNELS
        )
    return grad_KIO


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """The kernels, compiled at their first call; importing this module must not need Triton."""
    global tl
    import triton
    import triton.language

    tl = triton.language
    return triton.jit(_product_kernel), triton.jit(_weight_kernel)


def _product_kernel(  # type: ignore[no-untyped-def]
    source, weight, table, out, count, ins, outs, K: tl.constexpr, M: tl.constexpr, C: tl.constexpr
):
    """Sums over offsets and channels of a block of rows and of columns."""
    row = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)
    column = tl.program_id(1) * C + tl.arange(0, C)
    exists, kept = row < count, column < outs
    total = tl.zeros((M, C), dtype=tl.float32)
    for k in range(0, K):
        other = tl.load(table + row * K + k, mask=exists, other=-1).to(tl.int64)
        meets = other >= 0
        for first in range(0, ins, C):
            channel = first + tl.arange(0, C)
            used = channel < ins
            told = tl.load(
                source + other[:, None] * ins + channel[None, :], mask=meets[:, None] & used[None, :], other=0.0
            )
            weights = tl.load(
                weight + (k * ins + channel[:, None]) * outs + column[None, :],
                mask=used[:, None] & kept[None, :],
                other=0.0,
            )
            total += tl.dot(told, weights, input_precision="ieee")
    tl.store(out + row[:, None] * outs + column[None, :], total, mask=exists[:, None] & kept[None, :])


def _weight_kernel(  # type: ignore[no-untyped-def]
    source, grad, table, out, count, ins, outs, K: tl.constexpr, M: tl.constexpr, C: tl.constexpr
):
    """The gradient of one offset's weights, a block of channels in and out."""
    k = tl.program_id(0)
    channel, column = tl.program_id(1) * C + tl.arange(0, C), tl.program_id(2) * C + tl.arange(0, C)
    used, kept = channel < ins, column < outs
    total = tl.zeros((C, C), dtype=tl.float32)
    for first in range(0, count, M):
        row = (first + tl.arange(0, M)).to(tl.int64)
        exists = row < count
        other = tl.load(table + row * K + k, mask=exists, other=-1).to(tl.int64)
        meets = other >= 0
        told = tl.load(source + other[:, None] * ins + channel[None, :], mask=meets[:, None] & used[None, :], other=0.0)
        pulled = tl.load(grad + row[:, None] * outs + column[None, :], mask=meets[:, None] & kept[None, :], other=0.0)
        total += tl.dot(tl.trans(told), pulled, input_precision="ieee")
    where = out + (k * ins + channel[:, None]) * outs + column[None, :]
    tl.store(where, total, mask=used[:, None] & kept[None, :])
