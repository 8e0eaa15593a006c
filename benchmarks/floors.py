"""How fast the machine could be at best: bytes to move and operations to do, at its measured rates.

    python benchmarks/floors.py [--threads 1 2] [--out out/benchmarks/floors.json]

prints the rates. The floor of an op is the larger of the time to move what it has to read and write, each once, and the
time of its additions and multiplications (and exponentials), at the rate of a matrix product. No op reaches it: a cache
does not hold everything in between, and what compares, looks up or branches is not a matrix product. What it is for is
the distance, which says where work may pay. Where all data fit the cache, the floor by bytes is too high.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.table import Table
from timing import Candidate, Timing, take_turns

COPIED = 2**28
"""Bytes of the array that is copied: more than any cache holds."""
EDGE = 1536
"""Rows and columns of the matrices that are multiplied: their product is bound by arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an op must do, whatever the algorithm."""

    bytes: float
    """Arguments read once and results written once."""
    operations: float
    """A multiply-add counts as two."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the machine does at best."""

    threads: int
    copy_bytes_s: float
    """Bytes read plus bytes written, copying."""
    matmul_flops_s: float
    """Operations of a float32 matrix product."""

    def floor_ms(self, work: Work) -> float:
        """The least time for the work."""
        return 1e3 * max(work.bytes / self.copy_bytes_s, work.operations / self.matmul_flops_s)


def measure_rates(threads: int, device: str = "cpu", repeats: int = 7) -> Rates:
    """Copy and multiply, in turn; the best of the repeats: on one thread of the CPU by processor time."""
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    a, b = torch.rand(2, EDGE, EDGE, device=device)
    product = torch.empty_like(a)
    candidates = [
        Candidate(label="copy", run=lambda: target.copy_(source)),
        Candidate(label="multiply", run=lambda: torch.mm(a, b, out=product)),
    ]
    copy, multiply = (best_ms(t, threads) for t in take_turns(candidates, repeats, threads))
    return Rates(threads=threads, copy_bytes_s=2e3 * COPIED / copy, matmul_flops_s=2e3 * EDGE**3 / multiply)


def best_ms(timing: Timing, threads: int) -> float:
    """What is compared with a floor: the least processor time on one thread, else the least time on the wall."""
    cpu_alone = threads == 1 and not torch.cuda.is_initialized()
    return timing.best_cpu_ms if cpu_alone else timing.best_ms


def rates_in_words(rates: Rates) -> str:
    """One line for the terminal."""
    return (
        f"{rates.threads} thread{'s' if rates.threads > 1 else ''}: copying moves "
        f"{rates.copy_bytes_s / 1e9:.1f} GB/s (read plus written), a matrix product does "
        f"{rates.matmul_flops_s / 1e9:.0f} G float32 operations/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    table = Table("threads", "copy, GB/s", "matrix product, G operations/s", title="rates of this machine")
    measured = [measure_rates(threads) for threads in args.threads]
    for rates in measured:
        table.add_row(str(rates.threads), f"{rates.copy_bytes_s / 1e9:.1f}", f"{rates.matmul_flops_s / 1e9:.0f}")
    console, about = Console(), machine()
    console.print(table)
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, about, {"rates": [asdict(rates) for rates in measured]})


if __name__ == "__main__":
    main()
