"""What the loop takes from the data: samples with their truth, and in which order they come."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusionocc_core.engine.sampler import SampleKey, SampleStream
from fusionocc_core.engine.stopping import StopRequest


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Samples of a batch without labels of voxels, as a teacher sees them (engine/teacher.py)."""

    batch: Any
    """Pictures as they were taken, fitted to the network; the space around the vehicle augmented like the samples'."""
    places_U: Tensor
    """int64: which samples of the batch they are."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Samples that go through the network at once."""

    batch: Any
    """What enters the network: a structures.Batch."""
    targets: Any
    """What its outputs are held against; a dataclass of tensors."""
    tokens: tuple[str, ...]
    """Where each sample comes from."""
    unlabelled: Unlabelled | None = None
    """For training with a teacher; None where every sample is labelled."""

    def to(self, device: torch.device) -> Examples:
        """The same on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Examples:
        """The same in memory that a GPU reads directly; DataLoader calls this."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Examples:
        parts = {name: change_tensors(getattr(self, name), change) for name in ("batch", "targets", "unlabelled")}
        return replace(self, **parts)


class ExampleSource(Protocol):
    """A data set for training: a length, and examples by their keys. Must be picklable for worker processes."""

    def __len__(self) -> int: ...

    def examples(self, keys: Sequence[SampleKey]) -> Examples:
        """The samples of these keys. The same keys give the same tensors, whatever was asked for before."""
        ...


class _Keyed(Dataset[Examples]):
    """A DataLoader asks a data set for one item by a key; here the key is a whole batch of them."""

    def __init__(self, source: ExampleSource) -> None:
        self.source = source

    def __getitem__(self, keys: list[SampleKey]) -> Examples:
        return self.source.examples(keys)


class _Remaining:
    """The batches of a stream from a step on, for a DataLoader."""

    def __init__(self, stream: SampleStream, first_step: int) -> None:
        self.stream, self.first_step = stream, first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.stream.batches(self.first_step)

    def __len__(self) -> int:
        return (self.stream.steps - self.first_step) * self.stream.batch.accumulate(self.stream.processes)


def load_examples(
    source: ExampleSource, stream: SampleStream, *, first_step: int, workers: int, pin_memory: bool = False
) -> Iterator[list[Examples]]:
    """The examples of this process, one list an optimizer step, from ``first_step`` to the end.

    Worker processes change nothing about what comes in which order.
    """
    loader = DataLoader(
        _Keyed(source),
        batch_size=None,
        sampler=_Remaining(stream, first_step),
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or it would draw from the global one, and a resumed run would differ
        **worker_options(workers),
    )
    accumulate = stream.batch.accumulate(stream.processes)
    held: list[Examples] = []
    for examples in loader:
        held.append(examples)
        if len(held) == accumulate:
            yield held
            held = []


def worker_options(workers: int) -> dict[str, Any]:
    """Arguments of a DataLoader: workers come from a clean process, since a fork of one with threads can hang."""
    if workers == 0:
        return {}
    return {"multiprocessing_context": "forkserver", "worker_init_fn": _start_worker, "prefetch_factor": 2}


def _start_worker(number: int) -> None:
    """One thread a worker, since the workers themselves are the parallelism; and only the loop answers to signals.

    Ctrl-C and batch systems signal all processes at once. A worker that obeyed would end the run before it is saved.
    """
    torch.set_num_threads(1)
    for wish in StopRequest.signals:
        signal.signal(wish, signal.SIG_IGN)


def change_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a dataclass, tuple or tensor with a function applied to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(change_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: change_tensors(getattr(value, f.name), change) for f in fields(value) if f.init}
        )
    return value
