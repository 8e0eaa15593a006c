"""One process or several: who am I, and sums over all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fusionocc_core.predictor import pick_device

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: an evaluation and a checkpoint on a slow disk fit in."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of a run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """The process that writes files and talks."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; exact for integers. Every process must call it, with the same shape."""
        summed = tensor.to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(summed)
        return summed.to(tensor.device)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in rank order, on every process. Pickled: for our own data only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers (statistics of batch norms) of the main one."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Until every process has arrived here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    NCCL connects CUDA devices, one a process; gloo connects CPUs.

    Raises:
        ValueError: an unknown device, or more processes on this machine than CUDA devices.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=pick_device(device))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    chosen = pick_device(device)
    if chosen.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                "start torchrun with at most as many --nproc-per-node, or with --device cpu"
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(device=chosen, rank=rank, size=size)
    finally:
        dist.destroy_process_group()
