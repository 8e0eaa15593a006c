"""Mean and maximum of rows that share an index.

Shape suffixes: P rows, C channels, S segments.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "torch_scatter")


def scatter_mean(values_PC: Tensor, index_P: Tensor, size: int, backend: str = "auto") -> Tensor:
    """Mean of the rows of each segment.

    Args:
        values_PC: (P, C) floating point.
        index_P: (P,) int64 segment of each row, 0 <= index < size.
        size: number of segments S.
        backend: "torch" (default of "auto") or "torch_scatter".

    Returns:
        (S, C); zero where a segment has no row. Differentiable in the values.

    Raises:
        ValueError: shapes that do not fit, an unknown backend, or torch-scatter asked for but not installed.
    """
    if _use_torch_scatter(values_PC, index_P, size, backend):
        return _torch_scatter().scatter_mean(values_PC, index_P, dim=0, dim_size=size)
    sums_SC = values_PC.new_zeros(size, values_PC.shape[1]).index_add(0, index_P, values_PC)
    counts_S = torch.bincount(index_P, minlength=size).clamp(min=1)
    return sums_SC / counts_S.to(values_PC.dtype).unsqueeze(1)


def scatter_max(values_PC: Tensor, index_P: Tensor, size: int, backend: str = "auto") -> Tensor:
    """Maximum of the rows of each segment, channel by channel.

    Arguments, errors and empty segments as in :func:`scatter_mean`. Where several rows share the maximum, "torch"
    splits the gradient evenly among them and "torch_scatter" gives all of it to one.
    """
    if _use_torch_scatter(values_PC, index_P, size, backend):
        return _torch_scatter().scatter_max(values_PC, index_P, dim=0, dim_size=size)[0]
    zeros_SC = values_PC.new_zeros(size, values_PC.shape[1])
    return zeros_SC.scatter_reduce(0, index_P[:, None].expand_as(values_PC), values_PC, "amax", include_self=False)


def _use_torch_scatter(values_PC: Tensor, index_P: Tensor, size: int, backend: str) -> bool:
    if values_PC.ndim != 2 or index_P.shape != values_PC.shape[:1] or index_P.dtype != torch.int64:
        raise ValueError(
            f"scatter: values {tuple(values_PC.shape)} and index {index_P.dtype} {tuple(index_P.shape)} do not fit; "
            "expected (P, C) and int64 (P,)"
        )
    if size < 0:
        raise ValueError(f"scatter: size={size}; expected the number of segments, 0 or more")
    if backend not in BACKENDS:
        raise ValueError(f"scatter: backend={backend!r}; expected one of {BACKENDS}")
    return backend == "torch_scatter"


def _torch_scatter() -> ModuleType:
    try:
        import torch_scatter
    except ImportError as error:
        raise ValueError(
            "scatter: backend='torch_scatter' is not installed; use backend='torch' (as fast) or, after torch, "
            "run: pip install --no-build-isolation torch-scatter==2.1.2"
        ) from error
    return torch_scatter
