"""Parts of a network through torch.compile; on CUDA they are replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def compile_parts(network: nn.Module, parts: Sequence[str], device: torch.device) -> None:
    """Have some parts compiled where they stand, at their first call for each shape of their inputs.

    Only parts pay whose shapes stay the same from frame to frame. On CUDA they run in the mode "reduce-overhead", that
    is as CUDA graphs: what such a part returns is overwritten after ``new_frame``.

    Args:
        network: for inference; it is changed.
        parts: names of submodules.
        device: where they run.
    """
    for name in parts:
        network.get_submodule(name).compile(mode="reduce-overhead" if device.type == "cuda" else None, dynamic=False)


def new_frame() -> None:
    """Tell parts that are CUDA graphs that nothing they returned before is needed any more; elsewhere of no use."""
    torch.compiler.cudagraph_mark_step_begin()
