"""The short form of every benchmark, one after the other: what `make bench` runs.

    python benchmarks/bench.py [--only ops presets ...] [--tiny] [--out out/benchmarks]

Each is a process of its own and prints one table or more; the numbers go to --out as JSON. Meant to take less than five
minutes on two idle cores. What the long forms are: docs/performance.md. A benchmark whose packages are not installed
(the ROS layer's) is left out, and said so at the end. --tiny only looks whether everything runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A script and its short form."""

    name: str
    about: str
    short: tuple[str, ...]
    tiny: tuple[str, ...]
    """Seconds: does it run?"""
    script: str = ""
    """File name without .py; the name where empty."""
    out: str = "--out"
    """The option that names the file of the numbers."""
    needs: tuple[str, ...] = ()
    """Modules without which it cannot run."""


BENCHMARKS = (
    Benchmark(
        name="floors",
        about="copying and multiplying: what the machine can do",
        short=(),
        tiny=("--threads", "1"),
    ),
    Benchmark(
        name="ops",
        about="ops beside published algorithms, other packages and floors",
        short=("--short", "--repeats", "1"),
        tiny=("--tiny", "--repeats", "1", "--threads", "1"),
    ),
    Benchmark(
        name="curves",
        about="cost against cameras, points, pictures, Gaussians, grid",
        short=("--short",),
        tiny=("--short", "--only", "cameras"),
    ),
    Benchmark(
        name="data",
        about="pictures and clouds to a batch",
        short=("--repeats", "2"),
        tiny=("--repeats", "1"),
    ),
    Benchmark(
        name="metrics",
        about="what evaluating a frame costs",
        short=("--repeats", "2"),
        tiny=("--repeats", "1"),
    ),
    Benchmark(
        name="imgseg",
        about="label maps of pictures",
        short=("--repeats", "3"),
        tiny=("--repeats", "1"),
    ),
    Benchmark(
        name="presets",
        about="presets, sensors to labels",
        short=("--repeats", "2", "flashfusion-mini", "fusionocc-tiny", "flashocc-tiny", "gaussianformer-tiny"),
        tiny=("flashfusion-mini", "--repeats", "1"),
    ),
    Benchmark(
        name="train",
        script="presets",
        about="a step of training",
        short=("--train", "--repeats", "1", "flashfusion-mini", "uniocc-tiny"),
        tiny=("--train", "--repeats", "1", "flashfusion-mini"),
    ),
    Benchmark(
        name="flashfusion",
        about="flashfusion-mini part by part",
        short=("--runs", "3", "--preset", "flashfusion-mini"),
        tiny=("--runs", "1", "--preset", "flashfusion-mini", "--threads", "1"),
    ),
    Benchmark(
        name="ros",
        about="parts of the ROS layer",
        short=("--parts-only",),
        tiny=("--parts-only",),
        out="--report",
        needs=("rclpy", "fusionocc_msgs"),
    ),
)


def command(benchmark: Benchmark, tiny: bool, out: Path) -> list[str]:
    """What is run."""
    script = HERE / f"{benchmark.script or benchmark.name}.py"
    options = benchmark.tiny if tiny else benchmark.short
    return [sys.executable, str(script), *options, benchmark.out, str(out / f"{benchmark.name}.json")]


def absent(benchmark: Benchmark) -> list[str]:
    """The modules that it needs and that are not here."""
    return [module for module in benchmark.needs if importlib.util.find_spec(module) is None]


def main() -> int:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--tiny", action="store_true", help="does everything run?")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of the numbers")
    args = parser.parse_args()
    # Threads that wait sleep: spinning counts as work, and steals from whatever else runs.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    failed, left_out, began = [], [], time.perf_counter()
    for benchmark in BENCHMARKS:
        if benchmark.name not in args.only:
            continue
        if lacking := absent(benchmark):
            left_out.append(f"{benchmark.name} (no {', '.join(lacking)})")
            continue
        print(f"\n== {benchmark.name}: {benchmark.about}", flush=True)
        start = time.perf_counter()
        done = subprocess.run(command(benchmark, args.tiny, args.out), env=environment, check=False)
        print(f"-- {benchmark.name} took {time.perf_counter() - start:.0f} s", flush=True)
        if done.returncode:
            failed.append(benchmark.name)
    print(f"\nall took {time.perf_counter() - began:.0f} s; numbers in {args.out}")
    if left_out:
        print(f"left out: {', '.join(left_out)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
