"""Graphs of torch.export in PyTorch: on a CPU operator by operator, on CUDA recorded once and replayed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionocc_core.export.artefact import Artefact, TensorSpec

ROUNDS = 3
"""Before recording: libraries choose their kernels and take their memory in the first ones."""


class TorchExportRuntime:
    """PyTorch, on CUDA where there is some.

    Args:
        artefact: exported to torch-export.
        threads: of the CPU.
    """

    def __init__(self, artefact: Artefact, threads: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = module_on(artefact, self.device)
        cuda = self.device.type == "cuda"
        self._run = CudaGraph(module, artefact.inputs, self.device) if cuda else module
        torch.set_num_threads(threads)
        self.name = f"torch.export {torch.__version__} {'CUDA graph' if cuda else 'CPU'}"
        self.computes_in = artefact.precision

    @torch.inference_mode()
    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[NDArray[np.uint8]]:
        """See runtimes.Runtime; tensors that are on the device already do not leave it."""
        outputs: Sequence[Tensor] = self._run(*tensors)
        return [output.cpu().contiguous().numpy() for output in outputs]


def module_on(artefact: Artefact, device: torch.device) -> Callable[..., Sequence[Tensor]]:
    """An artefact's graph for a device; constants that it makes itself are made there, too."""
    passes = import_module("torch.export.passes")  # takes a second, and only this runtime needs it
    program = passes.move_to_device_pass(torch.export.load(artefact.graph), str(device))
    module: Callable[..., Sequence[Tensor]] = program.module()
    return module


class CudaGraph:
    """A module whose shapes never change, recorded as a CUDA graph: hundreds of kernels are started at once.

    Not yet run: there was no GPU. What a call returns is overwritten by the next one.

    Args:
        module: on the device, without transfers or waiting inside.
        inputs: what it takes.
        device: with CUDA.
    """

    def __init__(
        self, module: Callable[..., Sequence[Tensor]], inputs: Sequence[TensorSpec], device: torch.device
    ) -> None:
        self._inputs = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=device) for spec in inputs]
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside), torch.inference_mode():
            for _ in range(ROUNDS):
                module(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.inference_mode():
            self._outputs = module(*self._inputs)

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """As the module."""
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs
