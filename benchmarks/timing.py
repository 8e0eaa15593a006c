"""Candidates for the same result, run in turn, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute a result."""

    label: str
    run: Run
    kind: str = "other"
    """"ours", "baseline" (the published algorithm), "alternative" (another package) or "other"."""
    threads: int | None = None
    """Of PyTorch; None: as many as the others."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one candidate took."""

    median_ms: float
    best_ms: float
    median_cpu_ms: float
    """Of all threads together; on a busy machine the steadier number, with OMP_WAIT_POLICY=PASSIVE."""
    best_cpu_ms: float
    ratio: float
    """Median over the rounds of its time by the clock on the wall to that of the first candidate."""
    ratio_cpu: float
    """The same of processor time."""


def take_turns(candidates: Sequence[Candidate], repeats: int, threads: int, warm_up: int = 1) -> list[Timing]:
    """Run the candidates in turn, ``repeats`` times after rounds that warm up.

    Args:
        candidates: ratios are to the first.
        repeats: measured rounds, one or more.
        threads: of PyTorch, where a candidate has no number of its own.
        warm_up: rounds that do not count.
    """
    rounds: list[list[tuple[float, float]]] = [[] for _ in candidates]
    for attempt in range(repeats + warm_up):
        for candidate, spent in zip(candidates, rounds, strict=True):
            torch.set_num_threads(candidate.threads or threads)
            wall, cpu = time.perf_counter(), time.process_time()
            candidate.run()
            synchronize()
            if attempt >= warm_up:
                spent.append(((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3))
    torch.set_num_threads(threads)
    return [_timing(spent, rounds[0]) for spent in rounds]


def _timing(spent: Sequence[tuple[float, float]], first: Sequence[tuple[float, float]]) -> Timing:
    (walls, cpus), (first_walls, first_cpus) = zip(*spent, strict=True), zip(*first, strict=True)
    return Timing(
        median_ms=median(walls),
        best_ms=min(walls),
        median_cpu_ms=median(cpus),
        best_cpu_ms=min(cpus),
        ratio=median(a / b for a, b in zip(walls, first_walls, strict=True)),
        # The processor's clock may tick too coarsely for what takes microseconds.
        ratio_cpu=median(a / max(b, 1e-3) for a, b in zip(cpus, first_cpus, strict=True)),
    )


def synchronize() -> None:
    """Wait for what was put into CUDA's queue, where there is CUDA."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(run: Run, on_cuda: bool = False) -> int | None:
    """Memory that a run takes at its peak beyond what is held before it, results included.

    Resident memory of the process (Linux; None elsewhere), or what PyTorch allocates on the GPU. Run it once before:
    libraries keep what they set up at first use.
    """
    if on_cuda:
        gc.collect()
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return None
    give_free_memory_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_bytes("VmRSS")
    result = run()
    peak = resident_bytes("VmHWM") - before
    del result
    return max(peak, 0)


def give_free_memory_back() -> None:
    """What earlier runs left to glibc's allocator would hide what the next one takes."""
    gc.collect()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(field: str) -> int:
    """Memory of this process (Linux): "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def megabytes(count: int | None) -> str:
    """For a table."""
    return "-" if count is None else f"{count / 1e6:.0f}"
