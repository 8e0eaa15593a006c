"""Doing the same to several pictures at once: decoders and resizers release the interpreter's lock."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

MOST_THREADS = 8


def default_threads() -> int:
    """The number of cores up to MOST_THREADS; one in worker processes, which share the cores already."""
    if multiprocessing.parent_process() is not None:
        return 1
    return min(MOST_THREADS, os.cpu_count() or 1)


def map_in_threads(function: Callable[[In], Out], items: Sequence[In], threads: int | None = None) -> list[Out]:
    """``[function(item) for item in items]`` with up to ``threads`` at a time; None takes default_threads()."""
    count = min(len(items), default_threads() if threads is None else threads)
    if count <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, items))
