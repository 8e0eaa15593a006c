"""Which sample is used when, by which process: no duplicates, no padding, and a position that fits in one number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch


class SampleKey(NamedTuple):
    """One use of one sample; all random draws for it follow from these two numbers and the run's seed."""

    epoch: int
    sample: int


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many samples make one optimizer step. Accumulation follows from these and the number of processes."""

    total: int = 8
    """Samples an optimizer step, over all processes: the same on one GPU and on eight."""
    per_process: int = 1
    """Samples that a process puts through the network at once."""
    shards: int = 1
    """Parts into which the data set is cut, one a node: its processes read nothing else, so that its disk need hold
    nothing else. Every step takes equally many samples of each part. It decides the order of the samples, and the
    processes do not: one alone does the same steps with the same number of shards."""

    def __post_init__(self) -> None:
        """Refuse empty batches, and steps that not every shard has the same part in."""
        if self.total < 1 or self.per_process < 1:
            raise ValueError(f"BatchConfig: total={self.total} and per_process={self.per_process} must be at least 1")
        if self.shards < 1 or self.total % self.shards:
            raise ValueError(
                f"BatchConfig: shards={self.shards}: expected at least 1, and that total={self.total} divides by it"
            )

    def samples(self, length: int, rank: int, processes: int) -> range:
        """The samples that a process reads, of ``length`` in all.

        Raises:
            ValueError: processes and shards do not divide, or there are fewer samples than shards.
        """
        if self.shards % processes and processes % self.shards:
            raise ValueError(
                f"BatchConfig: shards={self.shards} do not divide among {processes} processes, nor the processes among "
                "the shards: start as many on every node, and set train.batch.shards to the number of nodes"
            )
        if length < self.shards:
            raise ValueError(f"BatchConfig: {length} samples are too few for shards={self.shards}")
        first = rank * self.shards // processes
        stop = max(first + 1, (rank + 1) * self.shards // processes)
        return range(length * first // self.shards, length * stop // self.shards)

    def accumulate(self, processes: int) -> int:
        """Forward passes of a process for one optimizer step.

        Raises:
            ValueError: the total does not divide up.
        """
        at_once = self.per_process * processes
        if self.total % at_once:
            fitting = [n for n in range(1, self.total + 1) if self.total % (self.per_process * n) == 0]
            raise ValueError(
                f"BatchConfig: {self.total} samples a step do not divide into {processes} processes times "
                f"per_process={self.per_process}. Start "
                + (f"{' or '.join(map(str, fitting))} processes" if fitting else "with per_process=1")
                + f", or set the total to {(self.total // at_once + 1) * at_once} and say so with your results"
            )
        return self.total // at_once


@dataclass(frozen=True, kw_only=True)
class SampleStream:
    """An endless-looking line of samples: each epoch holds every sample once, in an order of its own.

    With shards there is such a line for each. Their lengths differ by at most one sample, so that one shard may begin
    its next epoch a little before another.

    Optimizer steps cut the line into pieces of ``batch.total``; a piece may reach over the end of an epoch. So every
    step has the full size, all processes have the same work, nothing is repeated to fill up, and the position is one
    number. What is left at the end of the last epoch and does not fill a step (fewer than ``batch.total``) is not used.
    """

    length: int
    """Samples in the data set."""
    epochs: float
    """Passes over the data; the last may be a part of one."""
    batch: BatchConfig
    seed: int
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse runs without a single step."""
        if self.length < 1:
            raise ValueError("the data set is empty: no keyframe of the chosen scenes has labels")
        if self.epochs <= 0:
            raise ValueError(f"epochs={self.epochs}: expected more than none")
        self.batch.accumulate(self.processes)
        self.batch.samples(self.length, self.rank, self.processes)
        if self.steps < 1:
            raise ValueError(
                f"{self.length} samples in {self.epochs} epochs do not fill one step of {self.batch.total}: more "
                "epochs, or a smaller total"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.length * self.epochs) // self.batch.total

    @property
    def samples(self) -> range:
        """The samples that this process reads: all of them where the data are not cut into shards."""
        return self.batch.samples(self.length, self.rank, self.processes)

    def order(self, epoch: int, shard: int = 0) -> list[int]:
        """The order of a shard's samples in an epoch."""
        part = self.batch.samples(self.length, shard, self.batch.shards)
        generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch, shard))
        return [part.start + place for place in torch.randperm(len(part), generator=generator).tolist()]

    def step_keys(self, first_step: int = 0) -> Iterator[list[SampleKey]]:
        """The samples of each step from ``first_step`` on, of all processes together, shard after shard."""
        share = self.batch.total // self.batch.shards
        lines = [self._line(shard, first_step * share) for shard in range(self.batch.shards)]
        for _ in range(first_step, self.steps):
            yield [key for line in lines for key in islice(line, share)]

    def _line(self, shard: int, position: int) -> Iterator[SampleKey]:
        """A shard's samples, epoch after epoch, without end."""
        epoch, place = divmod(position, len(self.batch.samples(self.length, shard, self.batch.shards)))
        while True:
            for sample in self.order(epoch, shard)[place:]:
                yield SampleKey(epoch, sample)
            epoch, place = epoch + 1, 0

    def batches(self, first_step: int = 0) -> Iterator[list[SampleKey]]:
        """What this process puts through the network at once, one after the other."""
        size, at_once = self.batch.per_process, self.batch.per_process * self.processes
        each = self.batch.total // self.processes
        for keys in self.step_keys(first_step):
            if self.batch.shards > 1:  # its own shards' alone
                own = keys[self.rank * each : (self.rank + 1) * each]
                yield from (own[start : start + size] for start in range(0, each, size))
            else:
                yield from (keys[start : start + size] for start in range(self.rank * size, len(keys), at_once))


def draw_seed(seed: int, epoch: int, sample: int) -> int:
    """One number from three, for a generator: the same on every machine, unrelated for neighbours."""
    mixed = seed & _MASK
    for value in (epoch, sample):
        # splitmix64 (Steele, Lea, Flood 2014).
        mixed = (mixed + value * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1  # torch takes signed 64-bit seeds


def shard(length: int, rank: int, processes: int) -> range:
    """The indices of one process in an evaluation: every index once over all, sizes differing by at most one."""
    return range(rank, length, processes)


_MASK = (1 << 64) - 1
