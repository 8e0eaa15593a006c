"""A network that answers at once, for tests of the workers around it; processes import it by name."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.fleet.store import STATE
from fusionocc_core.fleet.units import DataSet, cut
from fusionocc_core.fleet.worker import Job, Stopped, Worker
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.structures import Occupancy, SensorFrame

GRID = VoxelGrid(frame="ego", lower=(-8.0, -4.0, -1.0), upper=(8.0, 4.0, 3.0), voxel_size=(0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class Stub:
    """What a predictor answers follows from the frame and ``label``; ``log`` gets a line for each keyframe.

    ``starts`` gets one for each process, its start in the clock's ticks; ``ballast`` makes the job large.
    """

    pause_s: float = 0.0
    log: Path | None = None
    label: int = 4
    starts: Path | None = None
    ballast: bytes = b""

    def __call__(self, device: str) -> Stub.Predictor:
        if self.starts:
            ticks = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
            with self.starts.open("a") as file:
                file.write(f"{ticks}\n")
        return Stub.Predictor(self)

    class Predictor:
        def __init__(self, stub: Stub) -> None:
            self.stub = stub

        def __call__(self, frame: SensorFrame) -> Occupancy:
            time.sleep(self.stub.pause_s)
            labels = np.full(GRID.shape, OCC3D_LABELS.free, np.uint8)
            labels.flat[: 1 + frame.stamp_ns // 10**8 % 1000] = self.stub.label
            if self.stub.log:
                with self.stub.log.open("a") as file:
                    file.write(f"{os.getpid()} {frame.token}\n")
            return Occupancy(
                labels=labels,
                confidence=np.full(GRID.shape, 200, np.uint8),
                grid=GRID,
                label_set=OCC3D_LABELS,
                stamp_ns=frame.stamp_ns,
            )


def make_job(out: Path, *roots: Path, chunk: int = 3, stub: Stub | None = None, **options) -> Job:
    names = [""] if len(roots) == 1 else [root.name for root in roots]
    data = tuple(
        DataSet(name=name, frames=NuScenesFrames(root, threads=1)) for name, root in zip(names, roots, strict=True)
    )
    options = {"pictures": False, "device": "cpu", **options}
    return Job(out=out, data=data, units=cut(data, chunk), predictor=stub or Stub(), **options)


def work(job: Job, number: int, of: int) -> None:
    """Entry point of a worker's process."""
    try:
        Worker(job, job.predictor("cpu"), place=(number, of)).run()
    except Stopped:
        raise SystemExit(143) from None


def results(out: Path) -> dict[str, bytes]:
    """Every published result under a folder, by its path: not the files in the making, which come and go."""
    published = (folder for folder in out.iterdir() if folder.is_dir() and folder.name != STATE)
    found = (path for folder in published for path in folder.rglob("[0-9]*.npz"))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(found)}
