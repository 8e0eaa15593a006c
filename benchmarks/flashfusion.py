"""Times presets on the same frame, part by part: ``python benchmarks/flashfusion.py [--preset A --preset B]``.

A frame of noise, but of a real one's size: six pictures, a sweep of 32 beams and two earlier ones. It goes through the
same preparation, network and decoding as on a vehicle, that is what Predictor runs. The presets take turns, so that
other work on the machine hits them alike; numbers are the lowest of the runs after two that warm up. "CPU" is processor
time, summed over the threads: compare that when the machine has other work. Run it with OMP_WAIT_POLICY=PASSIVE, or
waiting counts as work.

``--steps`` instead takes flashfusion-mini from the plain network to what Predictor runs, step by step, side by side,
and counts the labels that change; ``--data ROOT`` does that with the last keyframe of a data set instead of noise.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusionocc_core import NuScenesFrames
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.layers.bfloat16 import with_bfloat16_parts
from fusionocc_core.layers.folding import fold_batch_norms
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.predictor import PRECISIONS, LabelsDirectly, decode, network_for_inference
from fusionocc_core.presets import list_presets, load_model
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame

BEAMS, AZIMUTHS = 32, 1080
PICTURE = (450, 800)
"""(H, W) of a camera's picture."""


def make_frame(cameras: int, sweeps: int) -> SensorFrame:
    """Pictures of noise from a ring of cameras; beams that end on the ground or on walls 12 m to the left and right."""
    rng = np.random.default_rng(0)
    eye = np.eye(4)
    intrinsics = np.array([[PICTURE[1] * 0.79, 0, PICTURE[1] / 2], [0, PICTURE[1] * 0.79, PICTURE[0] / 2], [0, 0, 1]])
    images = []
    for i in range(cameras):
        cos, sin = math.cos(2 * math.pi * i / cameras), math.sin(2 * math.pi * i / cameras)
        pose = np.eye(4)
        pose[:3, :3] = [[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]]
        pose[:3, 3] = [0.5 * cos, 0.5 * sin, 1.6]
        picture = rng.integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
        images.append(
            CameraImage(
                name=f"camera{i}", image=picture, intrinsics=intrinsics, cam2ego=pose, ego2global=eye, stamp_ns=0
            )
        )
    lidar2ego = np.eye(4)
    lidar2ego[2, 3] = 1.8
    clouds = [
        LidarSweep(points=beams(rng), lidar2ego=lidar2ego, ego2global=eye, stamp_ns=-i * 500_000_000)
        for i in range(sweeps)
    ]
    return SensorFrame(
        stamp_ns=0, ego2global=eye, cameras=tuple(images), lidar=clouds[0], lidar_history=tuple(clouds[1:])
    )


def beams(rng: np.random.Generator) -> np.ndarray:
    """(P, 5) float32 in the axes of a LiDAR 1.8 m above the ground."""
    azimuth, ring = np.meshgrid(np.linspace(-math.pi, math.pi, AZIMUTHS, endpoint=False), np.arange(BEAMS))
    elevation = np.deg2rad(-30 + ring * 40 / (BEAMS - 1))
    direction = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    reach = np.full(azimuth.shape, 70.0)
    reach = np.minimum(reach, np.where(elevation < 0, -1.8 / np.minimum(direction[..., 2], -1e-6), np.inf))
    reach = np.minimum(reach, 12 / np.maximum(np.abs(direction[..., 1]), 1e-6))
    points = direction * (reach + 0.02 * rng.standard_normal(reach.shape))[..., None]
    rest = np.stack([rng.uniform(0, 255, reach.shape), ring.astype(float)], axis=-1)
    return np.concatenate([points, rest], axis=-1).reshape(-1, 5).astype(np.float32)


@dataclass
class Candidate:
    """A network and the lowest times of its parts, seconds."""

    name: str
    model: OccupancyNetwork
    parts: dict[str, float] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        """Watch the network's parts."""
        for name, part in self.model.named_children():
            part.register_forward_pre_hook(lambda part, inputs, name=name: self._add(name, -time.process_time()))
            part.register_forward_hook(lambda part, inputs, outputs, name=name: self._add(name, time.process_time()))

    def _add(self, name: str, seconds: float) -> None:
        self.running[name] += seconds

    def run(self, frame: SensorFrame, *, counts: bool) -> None:
        """One frame from the sensors to labels."""
        self.running.clear()
        config = self.model.config
        with torch.inference_mode():
            times = [now()]
            batch = prepare(frame, config.inputs, config.grid)
            times.append(now())
            if isinstance(self.model, LabelsDirectly):
                self.model.label(batch, confidence=False)
                times.append(now())
            else:
                outputs = self.model(batch)
                times.append(now())
                decode(outputs.logits_BKXYZ, confidence=False)
            times.append(now())
        found = dict(self.running)
        for number, kind in enumerate(("", ", CPU")):
            for place, name in enumerate(("prepare", "network", "decode")):
                found[name + kind] = times[place + 1][number] - times[place][number]
            found["all" + kind] = times[-1][number] - times[0][number]
        found["labels and the rest"] = found["network, CPU"] - sum(self.running.values())
        if counts:
            self.parts = {name: min(value, self.parts.get(name, math.inf)) for name, value in found.items()}


def now() -> tuple[float, float]:
    """Time on the wall and of all processors, seconds."""
    return time.perf_counter(), time.process_time()


def steps(frame: SensorFrame, runs: int, threads: int) -> Table:
    """flashfusion-mini from the plain network to what Predictor runs, each step on top of the one before."""
    plain = load_model("flashfusion-mini")
    folded = fold_batch_norms(plain)
    halved = with_bfloat16_parts(folded, folded.bfloat16_parts)
    batch = prepare(frame, plain.config.inputs, plain.config.grid)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "scores of all voxels, then labels": lambda: decode(plain(batch).logits_BKXYZ, confidence=False)[0],
        "norms folded, channels last": lambda: decode(folded(batch).logits_BKXYZ, confidence=False)[0],
        "labels by tiles (float32 ends here)": lambda: folded.label(batch, confidence=False).labels_BXYZ[0].numpy(),
        "parts in bfloat16": lambda: halved.label(batch, confidence=False).labels_BXYZ[0].numpy(),
        "with the probability of each label": lambda: halved.label(batch, confidence=True).labels_BXYZ[0].numpy(),
    }
    lowest, labels = dict.fromkeys(ways, math.inf), {}
    with torch.inference_mode():
        for run in track(range(runs + 2), description=f"{threads} threads", console=Console(stderr=True)):
            for name, way in ways.items():
                began = time.process_time()
                labels[name] = way()
                if run >= 2:
                    lowest[name] = min(lowest[name], time.process_time() - began)
    table = Table("flashfusion-mini", "CPU ms", "of the first", "same labels", title=f"{threads} threads")
    first = next(iter(ways))
    for name, seconds in lowest.items():
        same = 100 * float((labels[name] == labels[first]).mean())
        table.add_row(name, f"{1e3 * seconds:.0f}", f"{seconds / lowest[first]:.2f}", f"{same:.4f} %")
    return table


SUMS = tuple(name + kind for kind in ("", ", CPU") for name in ("prepare", "network", "decode", "all"))


def tables(candidates: list[Candidate], threads: int) -> list[Table]:
    """The parts of each network, and the sums side by side."""
    out = []
    for one in candidates:
        table = Table("part", "CPU ms", title=f"{one.name}, {threads} threads")
        for name, seconds in one.parts.items():
            if name not in SUMS:
                table.add_row(name, f"{1e3 * seconds:.1f}")
        out.append(table)
    first = candidates[0]
    heads = [f"{one.name}, ms" for one in candidates] + [f"{one.name} : {first.name}" for one in candidates[1:]]
    table = Table("", *heads, title=f"{threads} threads")
    for name in SUMS:
        times = [one.parts[name] for one in candidates]
        ratios = [f"{seconds / times[0]:.1f}" for seconds in times[1:]]
        table.add_row(name, *(f"{1e3 * seconds:.0f}" for seconds in times), *ratios)
    return [*out, table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=list_presets(), help="(default: two small ones)")
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, action="append", help="(default: 2, then 1)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--steps", action="store_true", help="what each step of speeding up brings")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON (not with --steps)")
    parser.add_argument("--data", type=Path, help="with --steps: take the last keyframe of this data set")
    args = parser.parse_args()
    console, about, frame = Console(), machine(), make_frame(args.cameras, 3)
    numbers: dict[str, object] = {}
    if args.data is not None:
        frames = NuScenesFrames(args.data, lidar_history=2)
        frame = frames[len(frames) - 1]
    for threads in args.threads or [2, 1]:
        torch.set_num_threads(threads)
        if args.steps:
            console.print(steps(frame, args.runs, threads))
            continue
        candidates = [
            Candidate(name=name, model=network_for_inference(load_model(name), torch.device("cpu"), args.precision))
            for name in args.preset or ["flashfusion-mini", "fusionocc-tiny"]
        ]
        for run in track(range(args.runs + 2), description=f"{threads} threads", console=Console(stderr=True)):
            for one in candidates:
                one.run(frame, counts=run >= 2)
        for table in tables(candidates, threads):
            console.print(table)
        numbers[f"{threads} threads"] = {one.name: one.parts for one in candidates}
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, about, numbers)


if __name__ == "__main__":
    main()
