"""How fast label maps are painted, side by side with painting point by point.

    python benchmarks/imgseg.py [--data NUSCENES_ROOT] [--repeats 7] [--out out/benchmarks/imgseg.json]

Both ways take turns on the same keyframe (34,688 points, six pictures of 1600 x 900), five times a turn, and their maps
are compared first. The ratio is the median over neighbouring turns. Painting is measured in CPU seconds of one thread,
since other programs may share the machine. The second row has reading the cloud and its labels and writing six maps in
it, on both sides, by the clock on the wall. Without --data cloud and rig are made up; the points' labels are drawn in
any case.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded

import numpy as np
from baselines.imgseg import paint_point_by_point
from machine import in_words, machine, write_report
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fusionocc_core.data.files import read_cloud
from fusionocc_core.data.imgseg import ImgsegJob, paint_pictures, read_lidarseg, run_job
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import rotation_from_yaw, transform

TURN = 5
"""Keyframes that one way does before it is the other's turn: fusionocc prepare does one after the other, too."""
RINGS, COLUMNS = 32, 1084
YAWS = {"FRONT_LEFT": 55, "FRONT": 0, "FRONT_RIGHT": -55, "BACK_LEFT": 110, "BACK": 180, "BACK_RIGHT": -110}
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One row of the table, milliseconds a keyframe."""

    row: str
    ours_best_ms: float
    point_by_point_best_ms: float
    ratio: float


def recorded(root: Path) -> tuple[SensorRecord, tuple[SensorRecord, ...]]:
    """LiDAR and cameras of the first keyframe of a data set."""
    frames = NuScenesFrames(root)
    records = frames.keyframe(0).records
    return records[frames.lidar or ""], tuple(records[name] for name in frames.cameras)


def made_up(folder: Path) -> tuple[SensorRecord, tuple[SensorRecord, ...]]:
    """The rig of ``made_up_rig`` with the cloud in a file."""
    (folder / "cloud.pcd.bin").write_bytes(made_up_cloud().tobytes())
    return made_up_rig(folder)


def made_up_keyframe() -> tuple[NDArray[np.float32], NDArray[np.uint8], SensorRecord, tuple[SensorRecord, ...]]:
    """Cloud, classes, LiDAR and cameras, without files."""
    points = made_up_cloud()
    return points, np.random.default_rng(1).integers(0, 17, len(points)).astype(np.uint8), *made_up_rig(Path("none"))


def made_up_cloud() -> NDArray[np.float32]:
    """Road and walls."""
    rng = np.random.default_rng(0)
    elevation = np.deg2rad(np.tile(-30.67 + 1.3333 * np.arange(RINGS), COLUMNS))
    azimuth = np.repeat(np.linspace(np.pi, -np.pi, COLUMNS, endpoint=False), RINGS)
    wall = rng.uniform(4, 45, COLUMNS).repeat(RINGS)
    with np.errstate(divide="ignore"):
        distance = np.minimum(np.where(elevation < 0, 1.84 / np.tan(-elevation), np.inf), wall)
    columns = [distance * np.cos(azimuth), distance * np.sin(azimuth), distance * np.tan(elevation)]
    points = np.stack([*columns, rng.integers(0, 256, len(wall)), np.tile(np.arange(RINGS), COLUMNS)], axis=1)
    return points.astype("<f4")


def made_up_rig(folder: Path) -> tuple[SensorRecord, tuple[SensorRecord, ...]]:
    """A LiDAR, and six cameras 10 to 45 ms before it at 8 m/s."""

    def record(channel: str, sensor2ego: NDArray, seconds: float, focal: float | None) -> SensorRecord:
        return SensorRecord(
            token=channel,
            channel=channel,
            modality="lidar" if focal is None else "camera",
            path=folder / ("cloud.pcd.bin" if focal is None else f"{channel}.jpg"),
            stamp_ns=round(seconds * 1e9),
            is_key_frame=True,
            sensor2ego=sensor2ego,
            ego2global=transform(rotation_from_yaw(0.4), [600.0 + 8 * seconds, 1600.0 + 3 * seconds, 0.0]),
            intrinsics=None if focal is None else np.array([[focal, 0, 816.0], [0, focal, 491.0], [0, 0, 1.0]]),
            width=0 if focal is None else 1600,
            height=0 if focal is None else 900,
        )

    lidar = record("LIDAR_TOP", transform(np.eye(3), [0.94, 0, 1.84]), 0.0, None)
    cameras = []
    for n, (name, yaw) in enumerate(YAWS.items()):
        pose = transform(rotation_from_yaw(np.deg2rad(yaw)) @ OPTICAL, [0.9, 0.0, 1.5])
        cameras.append(record(f"CAM_{name}", pose, -0.045 + 0.007 * n, 809.0 if name == "BACK" else 1266.0))
    return lidar, tuple(cameras)


def compare(
    row: str, ours: Callable[[], object], other: Callable[[], object], repeats: int, clock: Callable[[], float]
) -> Timing:
    """Run both in turn; one unmeasured round first."""
    times: list[list[float]] = [[], []]
    for attempt in range(repeats + 1):
        for run, taken in zip((ours, other), times, strict=True):
            start = clock()
            for _ in range(TURN):
                run()
            if attempt:
                taken.append((clock() - start) / TURN * 1e3)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    return Timing(row=row, ours_best_ms=min(times[0]), point_by_point_best_ms=min(times[1]), ratio=ratio)


def measure(lidar: SensorRecord, cameras: tuple[SensorRecord, ...], folder: Path, repeats: int) -> list[Timing]:
    """Painting alone, and with files."""
    points = read_cloud(lidar.path)
    raw = np.random.default_rng(1).integers(0, 32, len(points)).astype(np.uint8)
    table = (np.arange(256) % 17).astype(np.uint8)
    lidarseg = folder / "lidarseg.bin"
    lidarseg.write_bytes(raw.tobytes())
    classes = table[raw]
    ours, theirs = (paint(points, classes, lidar, cameras) for paint in (paint_pictures, paint_point_by_point))
    if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise SystemExit("the two painters differ: nothing to compare")
    outputs = tuple(folder / "maps" / f"{camera.channel}.npy" for camera in cameras)
    job = ImgsegJob(token="benchmark", lidar=lidar, lidarseg=lidarseg, cameras=cameras, outputs=outputs)

    def whole_job_point_by_point() -> None:
        cloud = read_cloud(lidar.path)
        maps = paint_point_by_point(cloud, read_lidarseg(lidarseg, table, len(cloud)), lidar, cameras)
        for path, labels in zip(outputs, maps, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, labels)
            path.write_bytes(buffer.getvalue())

    return [
        compare(
            "paint six pictures (CPU)",
            lambda: paint_pictures(points, classes, lidar, cameras),
            lambda: paint_point_by_point(points, classes, lidar, cameras),
            repeats,
            time.process_time,
        ),
        compare(
            "read, paint, write (wall)",
            lambda: run_job(job, table),
            whole_job_point_by_point,
            repeats,
            time.perf_counter,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set in nuScenes format")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lidar, cameras = recorded(args.data) if args.data else made_up(folder)
        timings = measure(lidar, cameras, folder, args.repeats)
    table = Table(title="label maps of one keyframe, one process")
    for heading in ("", "ours, best ms", "point by point, best ms", "ratio (median)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for t in timings:
        table.add_row(t.row, f"{t.ours_best_ms:.2f}", f"{t.point_by_point_best_ms:.1f}", f"{t.ratio:.1f}x")
    console, about = Console(), machine()
    console.print(table)
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, about, {"timings": [asdict(t) for t in timings]})


if __name__ == "__main__":
    main()
