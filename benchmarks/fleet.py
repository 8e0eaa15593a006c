"""Throughput of `fusionocc predict` against the number of workers on this machine.

    python benchmarks/fleet.py                                       # simulates its own streets first
    python benchmarks/fleet.py --data data/sim --keyframes 80 --workers 1 2 4 --rounds 5 --out out/benchmarks/fleet.json

Each round runs every number of workers once, in turn, over the same keyframes into a fresh folder. Two rates: while
all workers work (from the first unit that is begun to the last that is done), and with everything around (processes
started, PyTorch imported, weights read, the manifest written). The CPU time of a keyframe says what workers cost each
other in caches and memory; it means something on cores that other programs use, too.

What the machine itself gives: in each round as many processes multiply matrices, and copy memory, that share nothing
and wait for nothing. Virtual cores may be two threads of one core; no program gains more from them than these do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.table import Table

from fusionocc_core import load_model, save_model
from fusionocc_core.checkpoints import read_model
from fusionocc_core.commands.predict import fitted, make_seeded_model
from fusionocc_core.commands.predict_fleet import make_predictor
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.fleet.local import run_local
from fusionocc_core.fleet.run import finish, prepare
from fusionocc_core.fleet.store import Store
from fusionocc_core.fleet.units import DataSet, cut
from fusionocc_core.fleet.worker import Job
from fusionocc_core.presets import make_network, preset_config

BARE_SECONDS = 1.5
SPAWN_SECONDS = 6.0
"""Until processes have imported PyTorch."""
COLUMNS = ("working", "whole", "cpu_ms", "multiply", "copy")


def make_job(args: argparse.Namespace, root: Path) -> Job:
    """The first keyframes of a data set, cut into units."""
    frames = NuScenesFrames(root, threads=args.threads)[: args.keyframes]
    data = (DataSet(name="", frames=fitted(frames, make_seeded_model(args.preset, None))),)
    return Job(
        out=Path("."),
        data=data,
        units=cut(data, args.chunk),
        predictor=partial(make_predictor, args.preset, None),
        device=args.device,
        pictures=args.pictures,
        threads=args.threads,
    )


def measure(job: Job, workers: int) -> dict[str, float]:
    """Keyframes a second of one run, and CPU time of a keyframe."""
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, out=Path(folder))
        prepare(job)
        began = time.perf_counter()
        if stopped_by := run_local(job, workers):
            raise SystemExit(128 + stopped_by)
        finish(job)
        whole = time.perf_counter() - began
        records = [Store(job.out).record(unit.name) for unit in job.units]
    working = max(record.ended_unix_s for record in records) - min(record.began_unix_s for record in records)
    cpu_ms = 1e3 * sum(record.cpu_s for record in records) / job.keyframes
    return {"working": job.keyframes / working, "whole": job.keyframes / whole, "cpu_ms": cpu_ms}


def bare_rate(kind: str, begins_at: float) -> float:
    """Products of matrices or copies a second of this process, on one thread, from a moment of the clock on."""
    torch.set_num_threads(1)
    a, b = torch.rand(2, 384, 384)
    source = torch.zeros(2**24)
    target = torch.empty_like(source)
    step = (lambda: torch.mm(a, b)) if kind == "multiply" else (lambda: target.copy_(source))
    step()
    time.sleep(max(0.0, begins_at - time.time()))
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < BARE_SECONDS:
        step()
        done += 1
    return done / (time.perf_counter() - began)


def bare_rates(workers: int) -> dict[str, float]:
    """What so many processes do together that share nothing and wait for nothing."""
    rates = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for kind in ("multiply", "copy"):
            begins_at = time.time() + SPAWN_SECONDS
            rates[kind] = sum(pool.map(bare_rate, [kind] * workers, [begins_at] * workers))
    return rates


def start_costs(preset: str, rounds: int) -> dict[str, float]:
    """CPU milliseconds, the best of some rounds in turn: reading a file of weights, making a network, load_model."""
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_model(load_model(preset), path)
        steps: dict[str, Callable[[], object]] = {
            "read every tensor": lambda: [tensor.clone() for tensor in read_model(path).state.values()],
            "make the network, fresh": lambda: make_network(preset_config(preset)),
            "load_model": lambda: load_model(path),
        }
        for _ in range(rounds):
            for name, step in steps.items():
                began = time.process_time()
                step()
                best[name] = min(best.get(name, float("inf")), 1e3 * (time.process_time() - began))
    return best


def simulated(folder: Path, keyframes: int) -> Path:
    """A street to predict, where no data set was named."""
    from fusionocc_core.cli import main as fusionocc

    scenes = -(-keyframes // 20)
    code = fusionocc(["simulate", "--out", str(folder), "--scenes", str(scenes), "--keyframes", "20"])
    if code:
        raise SystemExit(code)
    return folder


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="ROOT")
    parser.add_argument("--keyframes", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--chunk", type=int, default=5, help="keyframes of a unit")
    parser.add_argument("--preset", default="flashfusion-mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", action="store_true", help="draw an overview of each keyframe too")
    parser.add_argument("--start", action="store_true", help="only what loading --preset costs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    console = Console()
    if args.start:
        torch.set_num_threads(args.threads)
        costs = start_costs(args.preset, args.rounds)
        console.print(
            ", ".join(f"{name} {cost:.1f} ms of CPU" for name, cost in costs.items()), highlight=False, soft_wrap=True
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(args, args.data or simulated(Path(folder) / "sim", args.keyframes))
        console.print(f"{job.keyframes} keyframes in {len(job.units)} units, {args.rounds} rounds", highlight=False)
        rounds = [
            {workers: measure(job, workers) | bare_rates(workers) for workers in args.workers}
            for _ in range(args.rounds)
        ]
    first = args.workers[0]
    titles = ("keyframes/s, working", "start included", "CPU ms a keyframe", "bare: products/s", "bare: copies/s")
    table = Table("workers", *(title for name in titles for title in (name, "ratio")))
    rows = []
    for workers in args.workers:
        row: dict[str, float] = {"workers": workers}
        for name in COLUMNS:
            row[name] = median(one[workers][name] for one in rounds)
            row[f"{name}_ratio"] = median(one[workers][name] / one[first][name] for one in rounds)
        rows.append(row)
        table.add_row(*(f"{value:.4g}" if name != "workers" else f"{value}" for name, value in row.items()))
    console.print(table)
    about = machine()
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, about, {"medians": rows, "rounds": rounds, "threads a worker": args.threads})


if __name__ == "__main__":
    main()
