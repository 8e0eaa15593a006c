"""Every preset end to end: sensors to labels, or a step of training; milliseconds, processor time, memory.

    python benchmarks/presets.py [NAME ...] [--all] [--train] [--threads 1 2] [--repeats 3] [--device cuda]
        [--precision auto] [--compile] [--out out/benchmarks/presets.json]

Without names those of fewer than 100 thousand million multiply-adds a frame; --all takes every preset, the official
ones at full size among them (hours on a CPU with --train). Each runs in a process of its own, as Predictor runs it on a
vehicle: a stream of keyframes of noise, but of a real one's size: pictures of 800 x 450, sweeps of 32 beams, and what
the preset wants of earlier ones. The first keyframe sets up what calibration decides; the others are what counts.
Memory is the process's peak beyond what it held after its imports (on a GPU: what PyTorch allocated there).

--train instead makes steps of training on one keyframe: forward, cross-entropy of the voxels' labels, backward, AdamW.
The other losses of the recipes are not in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from flashfusion import make_frame
from machine import in_words, machine, wide_console, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import megabytes, resident_bytes, synchronize
from torch import nn

from fusionocc_core.data.pipeline import prepare
from fusionocc_core.models.multiplications import GIGA_MACS
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.predictor import PRECISIONS, Predictor, pick_device
from fusionocc_core.presets import list_presets, load_model
from fusionocc_core.process import arrange_process
from fusionocc_core.structures import CameraImage, InputConfig, SensorFrame

SMALL_GIGA_MACS = 100.0
PERIOD_NS = 500_000_000
"""Between two keyframes."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process does."""

    preset: str
    threads: int
    repeats: int
    device: str
    precision: str
    compiled: bool
    train: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """What it took, milliseconds and bytes."""

    preset: str
    threads: int
    load_ms: float
    first_ms: float
    """The first keyframe or step."""
    median_ms: float
    """The others."""
    median_cpu_ms: float
    parts_ms: tuple[float, ...]
    """Medians of preparation, network, decoding; of a training step none."""
    parameters: int
    peak_bytes: int


def stream(inputs: InputConfig, count: int) -> list[SensorFrame]:
    """Keyframes one after the other, whose earlier pictures are those of the keyframes before."""
    cameras, history = min(6, inputs.num_cameras), inputs.camera_history
    frame = make_frame(cameras, 1 + inputs.lidar_history)
    rng = np.random.default_rng(1)

    def seen_at(moment: int) -> tuple[CameraImage, ...]:
        def noise(camera: CameraImage) -> CameraImage:
            picture = rng.integers(0, 256, camera.image.shape, dtype=np.uint8)
            return replace(camera, image=picture, stamp_ns=moment * PERIOD_NS)

        return tuple(noise(camera) for camera in frame.cameras)

    moments = [seen_at(moment) for moment in range(history + count)]
    assert frame.lidar is not None, "make_frame gives a LiDAR"
    return [
        replace(
            frame,
            stamp_ns=now * PERIOD_NS,
            cameras=moments[now],
            camera_history=tuple(moments[now - back] for back in range(1, history + 1)),
            lidar=replace(frame.lidar, stamp_ns=now * PERIOD_NS),
            lidar_history=tuple(
                replace(sweep, stamp_ns=(now - back) * PERIOD_NS)
                for back, sweep in enumerate(frame.lidar_history, start=1)
            ),
        )
        for now in range(history, history + count)
    ]


def run(task: Task) -> Result:
    """One preset, in a process of its own."""
    arrange_process()  # as the package's programs do
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    before, began = resident_bytes("VmRSS"), time.perf_counter()
    model = load_model(task.preset)
    loaded = time.perf_counter() - began
    parameters = sum(p.numel() for p in model.parameters())
    took = train(model, task) if task.train else predict(model, task)
    walls, cpus = [1e3 * wall for wall, *_ in took], [1e3 * cpu for _, cpu, _ in took]
    cuda = torch.device(task.device).type == "cuda"
    return Result(
        preset=task.preset,
        threads=task.threads,
        load_ms=1e3 * loaded,
        first_ms=walls[0],
        median_ms=median(walls[1:]),
        median_cpu_ms=median(cpus[1:]),
        parts_ms=tuple(1e3 * median(part) for part in zip(*(parts for *_, parts in took[1:]), strict=True)),
        parameters=parameters,
        peak_bytes=torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM") - before,
    )


Took = tuple[float, float, tuple[float, ...]]
"""Seconds on the wall and of the processors, and of the parts."""


def predict(model: OccupancyNetwork, task: Task) -> list[Took]:
    """Keyframe after keyframe."""
    predictor = Predictor(model, device=task.device, precision=task.precision, compiled=task.compiled)
    took = []
    for frame in stream(model.config.inputs, task.repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        timings = predictor(frame).timings
        assert timings is not None, "Predictor times itself"
        parts = (timings.prepare_s, timings.network_s, timings.decode_s)
        took.append((time.perf_counter() - wall, time.process_time() - cpu, parts))
    return took


def train(model: OccupancyNetwork, task: Task) -> list[Took]:
    """Step after step on the same keyframe."""
    device = pick_device(task.device)
    model = model.to(device).train()
    (frame,) = stream(model.config.inputs, 1)
    batch = prepare(frame, model.config.inputs, model.config.grid, torch.Generator().manual_seed(0)).to(device)
    labels = torch.randint(0, model.config.label_set.num, (1, *model.config.grid.shape), device=device)
    optimizer, took = torch.optim.AdamW(model.parameters(), lr=1e-4), []
    for _ in range(task.repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(batch).logits_BKXYZ, labels).backward()
        optimizer.step()
        synchronize()
        took.append((time.perf_counter() - wall, time.process_time() - cpu, ()))
    return took


def table_of(results: Sequence[Result], task: Task) -> Table:
    """One line a preset."""
    what = "a step of training" if task.train else "sensors to labels"
    unit = f"{task.threads} thread{'s' if task.threads > 1 else ''}"
    table = Table(
        title=f"{what}, {unit}, {task.device}; milliseconds; parameters in millions, multiply-adds in G",
        title_justify="left",
    )
    parts = [] if task.train else ["prepare", "network", "decode"]
    headings = ("", "params", "MACs", "load", "first", "median", "CPU", *parts, "peak MB")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for result in results:
        times = (result.load_ms, result.first_ms, result.median_ms, result.median_cpu_ms, *result.parts_ms)
        macs = GIGA_MACS.get(result.preset)
        table.add_row(
            result.preset,
            f"{result.parameters / 1e6:.1f}",
            "-" if macs is None else f"{macs:.0f}",
            *(f"{ms:.0f}" for ms in times),
            megabytes(result.peak_bytes),
        )
    return table


def measure(names: Sequence[str], task: Task, console: Console, keep: Callable[[list[Result]], None]) -> list[Result]:
    """Every preset, one process after the other; what is there so far is kept after each."""
    tasks = [replace(task, preset=name) for name in names]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results: list[Result] = []
        for result in track(
            pool.imap(run, tasks),
            f"{task.threads} threads",
            total=len(tasks),
            console=Console(stderr=True),
            transient=True,
        ):
            results.append(result)
            keep(results)
    console.print(table_of(results, task))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="presets (default: the small ones)")
    parser.add_argument("--all", action="store_true", help="every preset")
    parser.add_argument("--train", action="store_true", help="steps of training")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="one table each (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="keyframes or steps after the first (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--compile", action="store_true", help="through torch.compile, on a GPU as CUDA graphs")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    known = list_presets()
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no preset {unknown[0]!r}; expected some of {', '.join(known)}")
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: expected 1 or more")
    try:
        pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    small = [name for name in known if GIGA_MACS.get(name, SMALL_GIGA_MACS) < SMALL_GIGA_MACS]
    names = args.names or (known if args.all else small)
    console, about = wide_console(), machine()
    results: list[Result] = []

    def keep(latest: list[Result]) -> None:
        if args.out:
            done = [asdict(result) for result in (*results, *latest)]
            write_report(args.out, about, {"train": args.train, "results": done})

    for threads in args.threads:
        task = Task(
            preset="",
            threads=threads,
            repeats=args.repeats,
            device=args.device,
            precision=args.precision,
            compiled=args.compile,
            train=args.train,
        )
        results += measure(names, task, console, keep)
    console.print(in_words(about), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
