"""Does training keep its memory, and what do its parts cost? The whole engine on a small FusionOcc and made-up samples.

    python benchmarks/training.py [--steps 500] [--out out/benchmarks/training.json]

First 500 steps with log, checkpoints and evaluations in between, as in a real run: the slope of resident memory after
the first fifth, in bytes a step, and what that slope would make of a run of 100,000 steps. It is read after the
allocator has given back what it holds free; the slope with that slack, which comes and goes, is printed beside it. Then
the time of a step with and without each part, candidates in turn, as ratios.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import median

import numpy as np
import torch
from machine import in_words, machine, write_report
from rich.console import Console
from rich.table import Table

from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.examples import Examples
from fusionocc_core.engine.recorder import Recorder
from fusionocc_core.engine.reporting import resident_bytes
from fusionocc_core.engine.run_folder import CheckpointConfig
from fusionocc_core.engine.sampler import BatchConfig, SampleKey, draw_seed
from fusionocc_core.engine.trainer import TrainConfig, Trainer
from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.cross_modal import DepthSegConfig
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.layers.view_transform import LiftConfig, measured_depth_bins
from fusionocc_core.layers.volume_encoder import ResNet3dConfig
from fusionocc_core.losses import LossConfig, Targets, compute_losses
from fusionocc_core.models.fusionocc import FusionOcc, FusionOccConfig
from fusionocc_core.structures import Batch, InputConfig

CPU = torch.device("cpu")
READ_EVERY = 10
"""Steps between two readings of the memory."""
GRID = VoxelGrid(frame="ego", lower=(-6.4, -6.4, -1.0), upper=(6.4, 6.4, 5.4), voxel_size=(0.8, 0.8, 0.8))


def small_network() -> FusionOccConfig:
    """Every part of FusionOcc, a few channels each."""
    return FusionOccConfig(
        inputs=InputConfig(image_size=(64, 96), camera_history=1, depth_range=(1.0, 17.0)),
        grid=GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=17.0, step=1.0),
        image_backbone=SwinConfig(embed_channels=16, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=3),
        image_neck=FpnLssConfig(channels=16),
        depth_seg=DepthSegConfig(mid_channels=12, feature_channels=8, aspp_channels=6),
        lift=LiftConfig(),
        lidar=LidarEncoderConfig(grid=replace(GRID, voxel_size=(0.4, 0.4, 0.4)), stage_channels=(8, 8), out_channels=8),
        volume_encoder=ResNet3dConfig(channels=(8, 12, 16), blocks=(1, 1, 1)),
        volume_channels=8,
    )


@dataclass(frozen=True)
class MadeUpSource:
    """Samples of noise whose clouds differ in size, as real ones do: what a leak would feed on."""

    length: int
    config: FusionOccConfig

    def __len__(self) -> int:
        """How many samples an epoch has."""
        return self.length

    def examples(self, keys: Sequence[SampleKey]) -> Examples:
        """One sample a key."""
        generator = torch.Generator().manual_seed(draw_seed(0, *keys[0]))
        (height, width), b, n, t = self.config.inputs.image_size, len(keys), 3, self.config.num_frames
        depth_BNHW = torch.rand(b, n, height, width, generator=generator) * 16 + 1
        depth_BNHW *= torch.rand(depth_BNHW.shape, generator=generator) < 0.05
        counts = torch.randint(200, 2000, (b,), generator=generator).tolist()
        clouds = tuple(torch.rand(count, 5, generator=generator) * 12 - 6 for count in counts)
        pose_44 = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
        k_33 = torch.tensor([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]])
        batch = Batch(
            images_BTNCHW=torch.randn(b, t, n, 3, height, width, generator=generator),
            intrinsics_BTN33=k_33.expand(b, t, n, 3, 3).clone(),
            image_aug_BTN44=torch.eye(4).expand(b, t, n, 4, 4).clone(),
            cam2keyego_BTN44=pose_44.expand(b, t, n, 4, 4).clone(),
            bev_aug_B44=torch.eye(4).expand(b, 4, 4).clone(),
            points=clouds,
            depth_BNHW=depth_BNHW,
        )
        labels = torch.randint(0, 18, (b, *self.config.grid.shape), generator=generator).to(torch.uint8)
        bins = measured_depth_bins(depth_BNHW, self.config.depth_bins, self.config.image_backbone.stride)
        targets = Targets(labels_BXYZ=labels, mask_camera_BXYZ=labels > 8, depth_bins_BNhw=bins)
        return Examples(batch=batch, targets=targets, tokens=tuple(str(key.sample) for key in keys))


def make_trainer(out: Path, network: FusionOccConfig, config: TrainConfig) -> Trainer:
    """The engine as training/train.py runs it, without data on a disk."""
    loss = LossConfig(mask="camera", depth=0.1)
    torch.manual_seed(0)
    return Trainer(
        config,
        model=FusionOcc(network),
        loss=lambda outputs, targets: compute_losses(outputs, targets, loss, OCC3D_LABELS),
        source=MadeUpSource(50, network),
        world=World(device=CPU),
        recorder=Recorder(
            out,
            world=World(device=CPU),
            checkpoints=config.checkpoints,
            log_every=config.log_every,
            console=Console(file=StringIO()),
        ),
        evaluate=lambda model: {"weight": float(next(model.parameters()).norm())},
    )


def memory_slope(steps: int) -> dict[str, float]:
    """Resident memory over a run with checkpoints, log and evaluations."""
    config = TrainConfig(
        epochs=-(-steps * 2 // 50),
        batch=BatchConfig(total=2, per_process=1),
        workers=0,
        log_every=5,
        checkpoints=CheckpointConfig(every_steps=50, keep=2),
    )
    seen: list[tuple[int, int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), small_network(), config)
        tell = trainer.recorder.step

        def note(step: int, *args: object, **named: object) -> None:
            if step % READ_EVERY == 0:
                resident = resident_bytes()
                give_free_memory_back()
                seen.append((step, resident, resident_bytes()))
            tell(step, *args, **named)  # type: ignore[arg-type]

        trainer.recorder.step = note  # type: ignore[method-assign]
        trainer.fit()
        trainer.recorder.close()
    step, resident, used = np.array(seen[len(seen) // 5 :], dtype=np.float64).T
    return {
        "steps": trainer.step,
        "bytes_a_step": float(np.polyfit(step, used, 1)[0]),
        "mb_first": used[0] / 1e6,
        "mb_last": used[-1] / 1e6,
        "untrimmed_bytes_a_step": float(np.polyfit(step, resident, 1)[0]),
        "untrimmed_mb_lowest": resident.min() / 1e6,
        "untrimmed_mb_highest": resident.max() / 1e6,
    }


def give_free_memory_back() -> None:
    """Make glibc return what it holds free: resident memory is then what is in use, without the allocator's slack."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def step_costs(rounds: int) -> list[dict[str, object]]:
    """Seconds of a step of each candidate, taken in turn, and the median ratio to the plain one."""
    plain = TrainConfig(epochs=10_000, batch=BatchConfig(total=1), ema=None, workers=0)
    recomputed = small_network()
    kept = replace(recomputed, image_backbone=replace(recomputed.image_backbone, checkpoint_activations=False))
    candidates = {
        "plain: fp32, no averages, activations kept": (kept, plain),
        "with averages (EMA)": (kept, TrainConfig(epochs=10_000, batch=BatchConfig(total=1), workers=0)),
        "activations of the Swin recomputed": (recomputed, plain),
    }
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            name: make_trainer(Path(folder) / str(n), network, config)
            for n, (name, (network, config)) in enumerate(candidates.items())
        }
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for turn in range(rounds):
            for name, trainer in trainers.items():
                trainer._train_mode()
                examples = [trainer.source.examples([SampleKey(turn, 0)])]
                began = time.perf_counter()
                trainer._optimizer_step(examples, 0)
                seconds[name].append(time.perf_counter() - began)
        for trainer in trainers.values():
            trainer.recorder.close()
    first = next(iter(seconds.values()))
    return [
        {
            "candidate": name,
            "best_ms": 1e3 * min(times),
            "ratio": median(mine / base for mine, base in zip(times[1:], first[1:], strict=True)),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    memory = memory_slope(args.steps)
    console.print(
        f"{memory['steps']:.0f} steps, memory in use: {memory['mb_first']:.1f} MB after a fifth, "
        f"{memory['mb_last']:.1f} MB at the end; slope {memory['bytes_a_step']:.0f} bytes a step "
        f"({memory['bytes_a_step'] * 1e5 / 1e6:.0f} MB in 100,000 steps).\n"
        f"With what the allocator keeps free: {memory['untrimmed_mb_lowest']:.0f} to "
        f"{memory['untrimmed_mb_highest']:.0f} MB, slope {memory['untrimmed_bytes_a_step']:.0f} bytes a step",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("a step", "best, ms", "times the first")
    costs = step_costs(args.rounds)
    for row in costs:
        table.add_row(str(row["candidate"]), f"{row['best_ms']:.1f}", f"{row['ratio']:.2f}")
    console.print(table)
    about = machine()
    console.print(in_words(about), highlight=False, soft_wrap=True)
    if args.out:
        write_report(args.out, about, {"memory": memory, "costs": costs})


if __name__ == "__main__":
    main()
