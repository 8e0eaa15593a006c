"""Sparse convolution through spconv 2: the fast path on CUDA, and a second opinion on a CPU.

On a CPU three faults of spconv 2.3 are worked round: with more than one thread it returns wrong rows now and then (its
scatter races); its backward pass asks for a CUDA stream; and only its "Native" algorithm exists there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fusionocc_core.ops.sparse_volume import Shape3, SparseVolume, voxel_keys

_INSTALL = "pip install spconv-cu118==2.3.8 (or spconv-cu126 for newer cards; spconv on a machine without CUDA)"
_CPU_LOCK = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class SpconvRulebook:
    """spconv's index tables for one set of voxels and one kernel."""

    kernel_size: Shape3
    stride: Shape3 | None
    """None: submanifold."""
    padding: Shape3
    num_in: int
    """Active voxels of the input volume."""
    indices: dict[str, Any]
    """Filled by the first convolution that uses this object, reused by the next."""


def spconv_convolve(volume: SparseVolume, weight_OXYZI: Tensor, rulebook: SpconvRulebook) -> SparseVolume:
    """Convolve with spconv; arguments and result as in ops.sparse_conv.

    Raises:
        ValueError: spconv is not installed, or a dtype that it does not know.
    """
    spconv = _import_spconv()
    features_MC = volume.features_MC
    known = (torch.float32, torch.float16) if features_MC.is_cuda else (torch.float32, torch.float64)
    if features_MC.dtype not in known:
        raise ValueError(
            f"spconv: features are {features_MC.dtype} on {features_MC.device.type}, where it knows only "
            f"{' and '.join(map(str, known))}; convert them or use backend='torch'"
        )
    with torch.autocast(features_MC.device.type, enabled=False):
        weight_OXYZI = weight_OXYZI.to(features_MC.dtype)
        call = _Call(spconv, volume, weight_OXYZI, rulebook)
        if features_MC.is_cuda:
            out_MO = call(features_MC, weight_OXYZI)
        else:
            out_MO = _GuardedOnCpu.apply(features_MC, weight_OXYZI, call)
    if rulebook.stride is None:
        return volume.with_features(out_MO)
    return _sorted_volume(out_MO, call.out_coords.long(), call.out_shape, volume.batch_size)


def _sorted_volume(features_MC: Tensor, coords_M4: Tensor, shape: Shape3, batch_size: int) -> SparseVolume:
    """Spconv numbers output voxels as it meets them; ours are sorted."""
    order_M = voxel_keys(coords_M4, shape).argsort()
    return SparseVolume(
        features_MC=features_MC[order_M], coords_M4=coords_M4[order_M], shape=shape, batch_size=batch_size
    )


class _Call:
    """One convolution; remembers the output's voxels, which autograd functions cannot return."""

    out_coords: Tensor
    out_shape: Shape3

    def __init__(
        self, spconv: ModuleType, volume: SparseVolume, weight_OXYZI: Tensor, rulebook: SpconvRulebook
    ) -> None:
        self.spconv, self.volume, self.rulebook = spconv, volume, rulebook
        channels = (weight_OXYZI.shape[4], weight_OXYZI.shape[0], list(rulebook.kernel_size))
        options = {"bias": False, "indice_key": "voxels"}
        if not weight_OXYZI.is_cuda:
            options["algo"] = spconv.ConvAlgo.Native
        # On the meta device, so that spconv's own initial weights cost nothing and draw no random numbers.
        with torch.device("meta"):
            if rulebook.stride is None:
                self.layer = spconv.SubMConv3d(*channels, **options)
            else:
                strides = {"stride": list(rulebook.stride), "padding": list(rulebook.padding)}
                self.layer = spconv.SparseConv3d(*channels, **strides, **options)

    def __call__(self, features_MI: Tensor, weight_OXYZI: Tensor) -> Tensor:
        self.layer.train(torch.is_grad_enabled() and (features_MI.requires_grad or weight_OXYZI.requires_grad))
        volume = self.volume
        coords_M4, tables = volume.coords_M4.int(), self.rulebook.indices
        tensor = self.spconv.SparseConvTensor(
            features_MI, coords_M4, list(volume.shape), volume.batch_size, indice_dict=tables
        )
        result = torch.func.functional_call(self.layer, {"weight": weight_OXYZI.contiguous()}, (tensor,))
        tables.update(result.indice_dict)
        self.out_coords, self.out_shape = result.indices, tuple(result.spatial_shape)
        out_MO: Tensor = result.features
        return out_MO


class _GuardedOnCpu(torch.autograd.Function):
    """spconv's own forward and backward, both inside the guard."""

    @staticmethod
    def forward(ctx: Any, features_MI: Tensor, weight_OXYZI: Tensor, call: _Call) -> Tensor:
        needs = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with _cpu_guard(call.spconv), torch.set_grad_enabled(needs):
            ctx.inner = tuple(t.detach().requires_grad_(needs) for t in (features_MI, weight_OXYZI))
            ctx.out_MO = call(*ctx.inner)
        ctx.spconv = call.spconv
        return ctx.out_MO.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor, Tensor, None]:
        with _cpu_guard(ctx.spconv):
            grad_features_MI, grad_weight_OXYZI = torch.autograd.grad(ctx.out_MO, ctx.inner, grad_MO.contiguous())
        return grad_features_MI, grad_weight_OXYZI, None


@contextmanager
def _cpu_guard(spconv: ModuleType) -> Iterator[None]:
    """One thread, and a null stream where there is no CUDA; both as before afterwards."""
    from spconv.pytorch import ops

    with _CPU_LOCK:
        threads, stream = torch.get_num_threads(), ops.get_current_stream
        torch.set_num_threads(1)
        if not torch.cuda.is_available():
            ops.get_current_stream = lambda: 0
        try:
            yield
        finally:
            ops.get_current_stream = stream
            torch.set_num_threads(threads)


def _import_spconv() -> ModuleType:
    try:
        import spconv.pytorch
    except ImportError as error:
        raise ValueError(f"backend='spconv' is not installed: {_INSTALL}; or use backend='torch'") from error
    return spconv.pytorch
