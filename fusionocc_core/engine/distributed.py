"""One process or several: who am I, and sums over all."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    shards: int = 1
    """Of the data set, where processes were told which of them they have (``joined_world``)."""
    place: int | None = None
    """By which this process takes samples, where that is not ``rank``: processes of one shard follow each other."""

    @property
    def sample_rank(self) -> int:
        """By which this process takes samples."""
        return self.rank if self.place is None else self.place

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

    def from_main(self, value: Any) -> Any:
        """The main process's value, on every process. Pickled: for our own data only."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

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
def joined_world(device: str = "auto", *, shard: int | None = None, patience: timedelta = PATIENCE) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    NCCL connects CUDA devices, one a process; gloo connects CPUs. A process that ends closes its connections, which the
    others notice in their next exchange; one that is silent (a machine without power) they wait for as long as
    ``patience``.

    Args:
        device: auto, cpu or cuda.
        shard: which part of the data set the disk of this process holds; all processes say it, or none.
        patience: how long to wait for other processes.

    Raises:
        ValueError: an unknown device, more processes on this machine than CUDA devices, or shards that are not each
            held by equally many processes.
        ConnectionError: another process has ended, or is silent.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if shard is not None:
            raise ValueError(f"--shard {shard}: there is one process, which reads everything; leave it out")
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
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=patience)
    try:
        with _losses_in_words(rank, size):
            yield _placed(World(device=chosen, rank=rank, size=size), shard)
    finally:
        dist.destroy_process_group()


def _placed(world: World, shard: int | None) -> World:
    """The world with the place of this process among those of all shards."""
    shards = world.gather(shard)
    if all(one is None for one in shards):
        return world
    count = len(set(shards))
    if None in shards or set(shards) != set(range(count)) or len(set(Counter(shards).values())) != 1:
        raise ValueError(
            f"--shard: the {world.size} processes said {shards}; expected 0, 1, 2 ... without a gap, each said by "
            "equally many processes: one number a node"
        )
    order = sorted(range(world.size), key=lambda rank: (shards[rank], rank))
    return replace(world, shards=count, place=order.index(world.rank))


@contextmanager
def _losses_in_words(rank: int, size: int) -> Iterator[None]:
    """Errors of the connection as what they mean."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if not isinstance(error, dist.DistError) and not _CONNECTION.search(text):
            raise
        raise ConnectionError(
            f"process {rank} of {size} lost another process of this run: it ended (what it said itself tells why), or "
            f"its machine cannot be reached. Start the same command on all nodes again: it goes on from the last "
            f"checkpoint. ({text})"
        ) from error


_CONNECTION = re.compile("gloo|nccl|peer", re.IGNORECASE)
"""In errors of PyTorch's exchanges that are plain RuntimeErrors."""
