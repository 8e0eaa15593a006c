"""How fast pictures and clouds become a network's input, as ratios measured side by side.

    python benchmarks/data.py [--data NUSCENES_ROOT] [--threads 2] [--repeats 7] [--out out/benchmarks/data.json]
    python benchmarks/data.py --tables 200000 [--repeats 3]

Each row runs its candidates in turn, again and again, so that whatever else the machine does hits all of them alike.
The table shows the best time of each, the median of the ratios of neighbouring runs, and what a run takes at its peak
of memory (Linux). Without --data the pictures are made up: six of 1600 x 900 pixels and eight clouds of 34,688 points.
With --tables only opening is measured: made-up tables with so many rows of sample_data (v1.0-trainval has 2.6 million),
read whole and through the index that `fusionocc prepare` writes, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import Machine, in_words, machine, wide_console, write_report
from made_up_tables import write_tables
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Candidate, Timing, megabytes, peak_bytes, take_turns

from fusionocc_core.data.files import read_image
from fusionocc_core.data.nuscenes import NuScenesFrames, scale_intrinsics
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.data.threads import map_in_threads
from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.presets import preset_config
from fusionocc_core.structures import CameraImage, InputConfig, LidarSweep, SensorFrame

SIZE = (900, 1600)
POINTS = 34_688


@dataclass(frozen=True, kw_only=True)
class Row:
    """Candidates for the same result; the first is ours, and ratios say how many times longer the others take."""

    name: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one candidate took for a frame of six cameras."""

    row: str
    candidate: str
    timing: Timing
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A frame with a full history, and the files of its current pictures."""

    frame: SensorFrame
    paths: list[Path]


def measure(row: Row, repeats: int) -> list[Line]:
    """Run the candidates of a row in turn, then each once more for its memory."""
    timings = take_turns(row.candidates, repeats, threads=1)
    return [
        Line(row=row.name, candidate=candidate.label, timing=timing, peak_bytes=peak_bytes(candidate.run))
        for candidate, timing in zip(row.candidates, timings, strict=True)
    ]


def with_full_history(frame: SensorFrame) -> SensorFrame:
    """The frame with copies of its own sensors where the history is short: the work is then that of mid-scene."""
    copies = tuple(replace(camera, image=camera.image.copy()) for camera in frame.cameras)
    assert frame.lidar is not None, "the benchmark's data has a LiDAR"
    sweeps = tuple(replace(frame.lidar, stamp_ns=frame.stamp_ns - k) for k in range(1, 8))
    return replace(frame, camera_history=(copies,), lidar_history=sweeps)


def recorded(root: Path) -> Source:
    """The first keyframe of a data set."""
    frames = NuScenesFrames(root)
    records = frames.keyframe(0).records
    return Source(frame=with_full_history(frames[0]), paths=[records[name].path for name in frames.cameras])


def made_up(folder: Path) -> Source:
    """Pictures with detail at all scales, and a cloud around the vehicle."""
    rng = np.random.default_rng(0)
    cameras, paths = [], []
    for n in range(6):
        picture = np.full((*SIZE, 3), 128.0)
        for cells in (4, 16, 64, 256):
            layer = cv2.resize(rng.normal(0, 24, (cells, 2 * cells, 3)), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
            picture += layer * (32 / (32 + cells))
        paths.append(folder / f"{n}.jpg")
        cv2.imwrite(str(paths[-1]), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        heading = rotation_from_yaw(n * np.pi / 3) @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        cameras.append(
            CameraImage(
                name=f"CAM_{n}",
                image=read_image(paths[-1]),
                intrinsics=np.array([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]]),
                cam2ego=transform(heading, [0.0, 0.0, 1.5]),
                ego2global=np.eye(4),
                stamp_ns=0,
            )
        )
    points = np.stack(
        [
            *rng.normal(0, 15, (2, POINTS)),
            rng.normal(0, 1, POINTS),
            rng.integers(0, 256, POINTS),
            np.arange(POINTS) % 32,
        ],
        axis=1,
    ).astype(np.float32)
    lidar = LidarSweep(points=points, lidar2ego=transform(np.eye(3), [0, 0, 1.84]), ego2global=np.eye(4), stamp_ns=0)
    frame = SensorFrame(stamp_ns=0, ego2global=np.eye(4), cameras=tuple(cameras), lidar=lidar)
    return Source(frame=with_full_history(frame), paths=paths)


def decode(source: Source, threads: int, reduce: int = 1) -> list[np.ndarray]:
    """The current pictures, from their files."""
    return map_in_threads(partial(read_image, reduce=reduce), source.paths, threads)


def decode_with_pillow(source: Source, threads: int) -> list[np.ndarray]:
    """The same through Pillow."""
    return map_in_threads(
        lambda p: np.array(Image.open(io.BytesIO(p.read_bytes())).convert("RGB")), source.paths, threads
    )


def decode_and_prepare(source: Source, inputs: InputConfig, threads: int, reduce: int = 1) -> object:
    """From the files of the current keyframe to the batch, the history being in memory as on the vehicle."""
    images = decode(source, threads, reduce)
    frame = replace(source.frame, cameras=_with(source.frame.cameras, images, reduce))
    return prepare(frame, inputs, preset_config("fusionocc-base").grid)


def _with(cameras: Sequence[CameraImage], images: Sequence[np.ndarray], reduce: int) -> tuple[CameraImage, ...]:
    return tuple(
        replace(c, image=image, intrinsics=scale_intrinsics(c.intrinsics, 1 / reduce))
        for c, image in zip(cameras, images, strict=True)
    )


def size_of(inputs: InputConfig) -> str:
    """Height x width."""
    return "x".join(map(str, inputs.image_size))


def rows(source: Source, threads: int) -> list[Row]:
    """What is measured."""
    base, tiny = (preset_config(name) for name in ("fusionocc-base", "fusionocc-tiny"))
    official, small = base.inputs, tiny.inputs
    quick = replace(official, resampling="opencv")

    def ready(inputs: InputConfig) -> Callable[[], object]:
        return lambda: prepare(source.frame, inputs, base.grid)

    return [
        Row(
            name="decode the six pictures",
            candidates=(
                Candidate(label=f"OpenCV, {threads} threads", run=lambda: decode(source, threads)),
                Candidate(label="OpenCV, 1 thread", run=lambda: decode(source, 1)),
                Candidate(label="OpenCV at half size, 1 thread", run=lambda: decode(source, 1, 2)),
                Candidate(label="Pillow, 1 thread", run=lambda: decode_with_pillow(source, 1)),
                Candidate(label=f"Pillow, {threads} threads", run=lambda: decode_with_pillow(source, threads)),
            ),
        ),
        Row(
            name=f"prepare at {size_of(official)}, 2 x 6 pictures, 7 sweeps",
            candidates=(
                Candidate(label="resampling=pillow (official)", run=ready(official)),
                Candidate(label="resampling=opencv", run=ready(quick)),
            ),
        ),
        Row(
            name=f"prepare at {size_of(small)}, 6 pictures, {1 + small.lidar_history} sweeps",
            candidates=(
                Candidate(label="resampling=opencv", run=ready(small)),
                Candidate(label="resampling=pillow", run=ready(replace(small, resampling="pillow"))),
            ),
        ),
        Row(
            name="files to batch, fusionocc-tiny",
            candidates=(
                Candidate(label="whole pictures", run=lambda: decode_and_prepare(source, small, threads)),
                Candidate(label="decoded at half size", run=lambda: decode_and_prepare(source, small, threads, 2)),
            ),
        ),
        Row(
            name="files to batch, fusionocc-base",
            candidates=(
                Candidate(label="official", run=lambda: decode_and_prepare(source, official, threads)),
                Candidate(label="resampling=opencv", run=lambda: decode_and_prepare(source, quick, threads)),
            ),
        ),
    ]


def print_table(lines: Sequence[Line], console: Console) -> None:
    """One line a candidate."""
    table = Table("row", "candidate", "best ms", "median ms", "CPU ms", "times the first", "peak MB")
    previous = ""
    for line in lines:
        name, t = "" if line.row == previous else line.row, line.timing
        times = (f"{t.best_ms:.1f}", f"{t.median_ms:.1f}", f"{t.best_cpu_ms:.1f}", f"{t.ratio:.2f}")
        table.add_row(name, line.candidate, *times, megabytes(line.peak_bytes))
        previous = line.row
    console.print(table)


OPEN = """
import json, sys, threading, time
from pathlib import Path
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.engine.reporting import resident_bytes
before, peak, done = resident_bytes(), [0], threading.Event()
def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], resident_bytes())
watcher = threading.Thread(target=watch)
watcher.start()
start, cpu = time.perf_counter(), time.process_time()
frames = NuScenesFrames(sys.argv[1])
took = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
kept = resident_bytes()
start = time.perf_counter()
frames.boxes(0)
took["first_boxes_s"] = time.perf_counter() - start
took["with_boxes_mb"] = (resident_bytes() - before) / 1e6
done.set()
watcher.join()
memory = {"peak_mb": (max(peak[0], kept) - before) / 1e6, "kept_mb": (kept - before) / 1e6}
print(json.dumps({**took, **memory, "index": frames.has_index, "keyframes": len(frames)}))
"""
"""Opens a data set in a fresh process, then asks for boxes; memory is what that adds, at its peak and for good."""


def measure_opening(rows: int, repeats: int, console: Console, about: Machine, out: Path) -> None:
    """Open made-up tables as they are and through the index, in turn; print and write both."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        keyframes = write_tables(root, rows)
        start = time.perf_counter()
        index = NuScenesFrames(root).write_index()
        made_in = time.perf_counter() - start
        aside = root / "aside"
        runs: dict[str, list[dict[str, float]]] = {"tables": [], "index": []}
        for _ in range(repeats):
            index.parent.rename(aside)
            runs["tables"].append(open_once(root))
            aside.rename(index.parent)
            runs["index"].append(open_once(root))
        sizes = {
            "tables_mb": sum(path.stat().st_size for path in root.glob("*/*.json")) / 1e6,
            "index_mb": sum(path.stat().st_size for path in index.parent.iterdir()) / 1e6,
        }
    table = Table("read", "best s", "CPU s", "ratio", "peak MB", "kept", "boxes s", "kept", "disk MB")
    last = min(run["cpu_s"] for run in runs["index"])
    for (name, taken), size in zip(runs.items(), sizes.values(), strict=True):
        best = {key: min(run[key] for run in taken) for key in taken[0]}
        memory = (f"{best['peak_mb']:.0f}", f"{best['kept_mb']:.0f}")
        boxes = (f"{best['first_boxes_s']:.2f}", f"{best['with_boxes_mb']:.0f}")
        ratio = f"{best['cpu_s'] / last:.1f}x"
        table.add_row(name, f"{best['s']:.2f}", f"{best['cpu_s']:.2f}", ratio, *memory, *boxes, f"{size:.1f}")
    console.print(
        f"{rows} rows of sample_data, {keyframes} keyframes; reading them and writing the index: {made_in:.1f} s"
    )
    console.print(table)
    console.print(in_words(about), highlight=False, soft_wrap=True)
    write_report(out, about, {"rows": rows, "keyframes": keyframes, **sizes, "runs": runs})
    console.print(f"written: {out}")


def open_once(root: Path) -> dict[str, float]:
    """What opening takes in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(root)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    taken: dict[str, float] = json.loads(done.stdout)
    return taken


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set in nuScenes format; its first keyframe is used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--tables", type=int, metavar="ROWS", help="measure opening of tables with so many rows instead"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/data.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console, about = wide_console(), machine()
    if args.tables:
        measure_opening(args.tables, args.repeats, console, about, args.out.with_stem("data_tables"))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = recorded(args.data) if args.data else made_up(Path(folder))
        measured = [t for row in track(rows(source, args.threads), console=console) for t in measure(row, args.repeats)]
    print_table(measured, console)
    console.print(in_words(about), highlight=False, soft_wrap=True)
    write_report(args.out, about, {"threads": args.threads, "timings": [asdict(t) for t in measured]})
    console.print(f"written: {args.out}")


if __name__ == "__main__":
    main()
