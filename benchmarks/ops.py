"""Each op beside the published algorithm and other packages' ways, on the same arguments, and beside its floor.

    python benchmarks/ops.py [--short] [--only bev_pool splat ...] [--points CLOUD.bin ...] [--threads 2 1]
        [--repeats 5] [--device cuda] [--out out/benchmarks/ops.json]

Results are compared first. Candidates then take turns, so that whatever else the machine does hits all of them alike;
"times ours" are medians over the rounds. Memory is what a run takes at its peak beyond its arguments, results included
(Linux; on a GPU what PyTorch allocates). The floor is the least time for the bytes and operations that the op cannot
do without, at the machine's measured rates (benchmarks/floors.py); the distance is ours over it. Without --points the
LiDAR cloud is simulated: seven sweeps of a 32-beam scanner in a street, thinned as FusionOcc's pipeline thins them.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cases import CASES, Case, Setting, setting
from floors import Rates, best_ms, measure_rates, rates_in_words
from machine import in_words, machine, wide_console, write_report
from op_inputs import OFFICIAL, SHORT, TINY, cloud_from_files
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Timing, megabytes, peak_bytes, take_turns
from torch import Tensor

from fusionocc_core.process import arrange_process

BASELINE_RATIO = 2.0
"""How many times as fast as the published algorithm an op is meant to be, at least."""
SLOWER = 0.95
"""Below this, another package's way counts as faster; what lies between is the noise of a run."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One candidate of a case, with a number of threads."""

    op: str
    case: str
    candidate: str
    kind: str
    threads: int
    timing: Timing
    peak_bytes: int | None
    floor_ms: float
    distance: float
    """Its time over the floor."""


def measure(case: Case, repeats: int, rates: Sequence[Rates], device: str) -> list[Line]:
    """Every candidate with every number of threads.

    Raises:
        SystemExit: the candidates' results differ.
    """
    compare(case)
    peaks = [peak_bytes(candidate.run, device != "cpu") for candidate in case.candidates]
    lines = []
    for rate in rates:
        timings = take_turns(case.candidates, repeats, rate.threads)
        floor = rate.floor_ms(case.work)
        for candidate, timing, peak in zip(case.candidates, timings, peaks, strict=True):
            line = Line(
                op=case.op,
                case=case.name,
                candidate=candidate.label,
                kind=candidate.kind,
                threads=candidate.threads or rate.threads,
                timing=timing,
                peak_bytes=peak,
                floor_ms=floor,
                distance=best_ms(timing, rate.threads) / floor,
            )
            lines.append(line)
    return lines


def compare(case: Case) -> None:
    """Stop unless all candidates give the same."""
    ours, *others = case.candidates
    expected = _tensors(ours.run())
    for other in others:
        for mine, theirs in zip(expected, _tensors(other.run()), strict=True):
            largest = float(mine.abs().max()) if mine.numel() else 0.0
            difference = float((mine - theirs).abs().max()) if mine.numel() else 0.0
            if mine.shape != theirs.shape or difference > case.tolerance * largest:
                raise SystemExit(
                    f"{case.name}: {other.label} differs from {ours.label} by {difference:.3g}, where values go up to "
                    f"{largest:.3g}: nothing to compare"
                )


def _tensors(result: object) -> tuple[Tensor, ...]:
    found = result if isinstance(result, tuple) else (result,)
    return tuple(tensor.detach() for tensor in found)


def tables(lines: Sequence[Line], threads: int) -> Table:
    """The name of each case, its floor, and a line for each candidate."""
    table = Table(title=f"{threads} thread{'s' if threads > 1 else ''}", title_justify="left")
    for heading in ("", "median ms", "CPU ms", "times ours", "by CPU", "peak MB", "floor ms", "distance"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    previous = ""
    for line in lines:
        timing = line.timing
        if line.case != previous:
            table.add_section()
            table.add_row(f"[bold]{line.case}", *[""] * 5, digits(line.floor_ms))
        previous = line.case
        ours = line.kind == "ours"
        table.add_row(
            f"  {line.candidate}" + (f", {line.threads} thread" if line.threads < threads else ""),
            digits(timing.median_ms),
            digits(timing.median_cpu_ms),
            "" if ours else f"{timing.ratio:.2f}",
            "" if ours else f"{timing.ratio_cpu:.2f}",
            megabytes(line.peak_bytes),
            "",
            f"{line.distance:.1f}" if ours else "",
        )
    return table


def digits(milliseconds: float) -> str:
    """Three of them."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def verdict(lines: Sequence[Line]) -> list[str]:
    """What is to hold for every op: twice as fast as the published algorithm, never slower than another package.

    By processor time where a candidate has as many threads as ours, else by the clock on the wall.
    """
    said = []
    for kind, least in (("baseline", BASELINE_RATIO), ("alternative", SLOWER)):
        short, ratios = [], []
        most = max((line.threads for line in lines), default=1)
        for line in lines:
            if line.kind == kind:
                ratio = line.timing.ratio_cpu if line.threads == most == 1 else line.timing.ratio
                ratios.append(ratio)
                if ratio < least:
                    short.append(f"{line.case}: {line.candidate} takes {ratio:.2f} times ours")
        if ratios:
            wanted = "the published algorithms take" if kind == "baseline" else "the alternatives take"
            said.append(f"{wanted} {min(ratios):.2f} to {max(ratios):.1f} times ours; {least:g} is asked")
            said += [f"  MISSED {line}" for line in short]
    return said


def run(
    given: Setting, only: Sequence[str], threads: Sequence[int], repeats: int, console: Console
) -> dict[str, object]:
    """Measure, print, and give what is written."""
    rates = [measure_rates(count, given.device) for count in threads]
    lines = []
    for op in track(only, "measuring", console=Console(stderr=True), transient=True):
        for case in CASES[op](given):
            lines += measure(case, repeats, rates, given.device)
    for place, rate in enumerate(rates):
        mine = [group for number, group in enumerate(_groups(lines)) if number % len(rates) == place]
        flat = [line for group in mine for line in group]
        console.print(tables(flat, rate.threads))
        console.print(rates_in_words(rate), highlight=False, soft_wrap=True)
        for sentence in verdict(flat) if given.size is not TINY else ():
            console.print(sentence, highlight=False, soft_wrap=True)
    return {"rates": [asdict(rate) for rate in rates], "lines": [asdict(line) for line in lines]}


def _groups(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines of each case and number of threads: each begins with ours."""
    groups: list[list[Line]] = []
    for line in lines:
        if line.kind == "ours":
            groups.append([])
        groups[-1].append(line)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=tuple(CASES), default=tuple(CASES), metavar="OP", help="some of them"
    )
    parser.add_argument("--short", action="store_true", help="the rows that say most, fewer Gaussians, two repeats")
    parser.add_argument("--tiny", action="store_true", help="next to nothing to do: does everything run?")
    parser.add_argument("--points", nargs="*", type=Path, help="LiDAR sweeps (nuScenes .bin) instead of the simulation")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="one table each (default: 2 1)")
    parser.add_argument("--repeats", type=int, help="measured rounds (default: 5; with --short 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/ops.json"))
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this PyTorch sees no CUDA device")
    arrange_process()  # as the package's programs do
    torch.set_num_threads(max(args.threads))
    gc.freeze()  # what the imports left: the memory readings collect garbage again and again
    given = setting(
        TINY if args.tiny else SHORT if args.short else OFFICIAL,
        args.device,
        short=args.short,
        cloud=cloud_from_files(args.points) if args.points else None,
    )
    console, about = wide_console(), machine()
    repeats = args.repeats or (2 if args.short else 5)
    numbers = run(given, args.only, args.threads, repeats, console)
    console.print(in_words(about), highlight=False, soft_wrap=True)
    write_report(args.out, about, {"repeats": repeats, **numbers})
    console.print(f"written: {args.out}", highlight=False)


if __name__ == "__main__":
    main()
