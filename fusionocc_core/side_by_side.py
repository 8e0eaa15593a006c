"""Independent parts of a network at the same time, each on its share of the cores.

The threads of one operator meet at its end, and a frame of a small network has thousands of operators: on two cores
that meeting costs more than the second core gives. Parts that do not need each other meet once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from threading import Barrier
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")
Other = TypeVar("Other")


class RunTwo(Protocol):
    """``two_side_by_side`` or ``two_in_turn``."""

    def __call__(self, first: Callable[[], Result], second: Callable[[], Other]) -> tuple[Result, Other]:
        """What the two jobs return."""


def side_by_side(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """What the jobs return, run at the same time, each with an equal share of this thread's cores.

    For inference on a CPU. With one thread they run in turn, and so they do while gradients, autocast or a compiler
    follow what this thread does. An exception of a job is raised here, after all have ended.
    """
    if len(jobs) < 2 or not _may():
        return [job() for job in jobs]
    pool = _pool(os.getpid(), len(jobs), torch.get_num_threads())
    inference = torch.is_inference_mode_enabled()
    futures = [pool.submit(_run, job, inference) for job in jobs]
    outcomes = [future.exception() for future in futures]
    for error in outcomes:
        if error is not None:
            raise error
    return [future.result() for future in futures]


def two_side_by_side(first: Callable[[], Result], second: Callable[[], Other]) -> tuple[Result, Other]:
    """``side_by_side`` for two jobs that return different things."""
    one, two = side_by_side([first, second])
    return one, two  # type: ignore[return-value]


def two_in_turn(first: Callable[[], Result], second: Callable[[], Other]) -> tuple[Result, Other]:
    """What two jobs return, one after the other."""
    return first(), second()


def two_on(device: torch.device) -> RunTwo:
    """On a CPU side by side, where ``side_by_side`` would; a GPU has them follow each other without waiting anyway."""
    return two_side_by_side if device.type == "cpu" and _may() else two_in_turn


def shares(length: int) -> list[slice]:
    """Contiguous parts of ``length`` rows, one for each thread of this one's."""
    threads = max(1, min(torch.get_num_threads(), length)) if _may() else 1
    bounds = [length * number // threads for number in range(threads + 1)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def _may() -> bool:
    """Whether there are threads to share, and nobody follows what this one does."""
    watched = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    return torch.get_num_threads() > 1 and not (watched or torch.jit.is_tracing())


def _run(job: Callable[[], Result], inference: bool) -> Result:
    with torch.inference_mode() if inference else torch.no_grad():
        return job()


@lru_cache(maxsize=8)
def _pool(process: int, jobs: int, threads: int) -> ThreadPoolExecutor:
    """Threads that run operators on a share of the cores; of this process alone, since a fork has none of them."""
    ready = Barrier(jobs + 1)

    def start(each: int) -> None:
        torch.get_num_threads()  # a thread's first look at the number sets it, which would undo the next line later
        torch.set_num_threads(each)
        ready.wait()

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="fusionocc_part")
    for _ in range(jobs):
        pool.submit(start, max(1, threads // jobs))
    ready.wait()
    # What a thread sets for itself is also what threads to come begin with.
    torch.set_num_threads(threads)
    return pool
