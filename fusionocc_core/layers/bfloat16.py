"""Parts of a network computed in bfloat16, for processors that multiply it natively."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it (AVX-512 BF16 or AMX); without, it is slower than float32."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def with_bfloat16_parts(network: Network, parts: Sequence[str]) -> Network:
    """A copy for inference in which some parts compute in bfloat16; what goes in and comes out of them stays float32.

    Args:
        network: not changed; the copy shares with it the tensors of the other parts.
        parts: names of submodules.
    """
    inside = {id(tensor) for name in parts for tensor in network.get_submodule(name).parameters()}
    shared = {id(t): t for t in (*network.parameters(), *network.buffers()) if id(t) not in inside}
    changed = copy.deepcopy(network, shared)
    for name in parts:
        part = changed.get_submodule(name).bfloat16()
        part.register_forward_pre_hook(lambda part, inputs: tuple(_cast(x, torch.bfloat16) for x in inputs))
        part.register_forward_hook(lambda part, inputs, outputs: _cast(outputs, torch.float32))
    return changed


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors, alone, in tuples or in dataclasses, in another type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _cast(getattr(value, f.name), dtype) for f in fields(value)})
    return value
