"""Times a FusionOcc preset on noise, part by part: ``python benchmarks/fusionocc.py [--preset NAME] [--train]``.

The clouds are random but of a real sweep's size and spread, so that the sparse part has about as much to do as on the
road. Each number is the median of the runs after one that warms up; "CPU" counts all threads, and is what to compare
when the machine has other work.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from fusionocc_core.models.fusionocc import FusionOcc, FusionOccConfig
from fusionocc_core.presets import list_presets, load_model
from fusionocc_core.structures import Batch

POINTS = 30_000
"""Of one sweep of 32 beams within the grid."""


def noise(config: FusionOccConfig, cameras: int) -> Batch:
    """A batch of one: random pictures from a ring of cameras, and points on a ground plane and on walls."""
    generator = torch.Generator().manual_seed(0)
    frames, (height, width) = config.num_frames, config.inputs.image_size
    intrinsics = torch.tensor([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]])
    image_aug = torch.diag(torch.tensor([width / 1600, width / 1600, 1.0, 1.0]))
    image_aug[1, 3] = height - 900 * width / 1600
    depth = torch.rand(1, cameras, height, width, generator=generator) * 40 + 2
    depth[torch.rand(depth.shape, generator=generator) > 0.005] = 0
    return Batch(
        images_BTNCHW=torch.randn(1, frames, cameras, 3, height, width, generator=generator),
        intrinsics_BTN33=intrinsics.repeat(1, frames, cameras, 1, 1),
        image_aug_BTN44=image_aug.repeat(1, frames, cameras, 1, 1),
        cam2keyego_BTN44=ring(cameras).repeat(1, frames, 1, 1, 1),
        bev_aug_B44=torch.eye(4)[None],
        points=(cloud(config, generator),),
        depth_BNHW=depth,
    )


def ring(cameras: int) -> Tensor:
    """cam2ego (N, 4, 4) of cameras 1.6 m above the ground that look outwards."""
    poses = torch.eye(4).repeat(cameras, 1, 1)
    for i, pose in enumerate(poses):
        cos, sin = math.cos(2 * math.pi * i / cameras), math.sin(2 * math.pi * i / cameras)
        pose[:3, :3] = torch.tensor([[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]])
        pose[:3, 3] = torch.tensor([0.5 * cos, 0.5 * sin, 1.6])
    return poses


def cloud(config: FusionOccConfig, generator: torch.Generator) -> Tensor:
    """(P, 5): rings on the ground, denser near the vehicle, and walls 12 m to the left and right."""
    sweeps = config.inputs.lidar_history + int(config.inputs.include_current_sweep)
    count = POINTS * sweeps
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    ring_index = torch.randint(0, 32, (count,), generator=generator)
    distance = 3.0 * 1.09**ring_index + 0.02 * torch.randn(count, generator=generator)
    x, y = distance * angle.cos(), distance * angle.sin()
    wall = y.abs() > 12
    z = torch.where(
        wall, torch.rand(count, generator=generator) * 5 - 0.5, 0.03 * torch.randn(count, generator=generator)
    )
    points = torch.stack(
        [x, y.clamp(-12, 12), z, torch.rand(count, generator=generator) * 255, ring_index.float()], dim=1
    )
    lower, upper = torch.tensor(config.grid.lower), torch.tensor(config.grid.upper)
    return points[((points[:, :3] > lower) & (points[:, :3] < upper)).all(dim=1)]


class Stopwatch:
    """Seconds that the parts of a network took in one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        for name, part in model.named_children():
            part.register_forward_pre_hook(lambda part, inputs, name=name: self.add(name, -time.perf_counter()))
            part.register_forward_hook(lambda part, inputs, outputs, name=name: self.add(name, time.perf_counter()))

    def add(self, name: str, seconds: float) -> None:
        """Add to the part's time."""
        self.seconds[name] += seconds


def step(model: FusionOcc, batch: Batch, *, train: bool) -> None:
    """One forward pass, with a backward pass where asked for."""
    if not train:
        with torch.inference_mode():
            model(batch)
        return
    outputs = model(batch)
    labels = torch.zeros(1, *model.config.grid.shape, dtype=torch.long)
    nn.functional.cross_entropy(outputs.logits_BKXYZ, labels).backward()
    model.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fusionocc-tiny", choices=list_presets())
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.preset).train(args.train)
    batch, watch = noise(model.config, args.cameras), Stopwatch(model)
    walls, cpus, parts = [], [], []
    for run in track(range(args.runs + 1), description=args.preset, console=Console(stderr=True)):
        watch.seconds.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        step(model, batch, train=args.train)
        if run > 0 or args.runs == 0:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            parts.append(dict(watch.seconds))
    table = Table(title=f"{args.preset}, {args.cameras} cameras, {len(batch.points[0])} points, {args.threads} threads")
    table.add_column("part")
    table.add_column("median s", justify="right")
    for name in parts[0]:
        table.add_row(name, f"{statistics.median(p[name] for p in parts):.3f}")
    table.add_section()
    table.add_row("all" + (" with backward" if args.train else ""), f"{statistics.median(walls):.2f}")
    table.add_row("CPU", f"{statistics.median(cpus):.2f}")
    table.add_row("peak memory, GiB", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}")
    console = Console()
    console.print(table)
    about = machine()
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        numbers = {"preset": args.preset, "wall s": walls, "CPU s": cpus, "parts s": parts, "train": args.train}
        write_report(args.out, about, numbers)


if __name__ == "__main__":
    main()
