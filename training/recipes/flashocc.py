"""Recipes of FlashOcc and Panoptic-FlashOcc: functions that return a Recipe; a variant is `replace` on another."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.layers.center_head import NUSCENES_THINGS
from fusionocc_core.losses import (
    LossConfig,
    flashocc_losses,
    panoptic_flashocc_losses,
)
from fusionocc_core.models import flashocc_presets, flashocc_temporal_presets


def flashocc_m0() -> Recipe:
    r"""The official FlashOcc M0: ResNet-50, camera mask, 24 epochs, 16 samples a step.

    Paper: Yu et al., "FlashOcc: Fast and Memory-Efficient Occupancy Prediction via Channel-to-Height Plugin", 2023, and
    its code. Expected: 31.95 % mIoU on Occ3D-nuScenes val with the camera mask (the authors' README).
    Start: the authors begin with BEVDet's detector bevdet-r50-cbgs; without it M1 is 2.5 lower (flashocc_m1).

        torchrun --nproc-per-node 4 training/train.py flashocc_m0 --data data/nuscenes --out out/flashocc_m0 \
            --init bevdet-r50-cbgs.pth --init-matching
    """
    return Recipe(
        preset="flashocc-m0",
        model=flashocc_presets.flashocc_m0(),
        loss=flashocc_losses(mask="camera"),
        train=TrainConfig(
            batch=BatchConfig(total=16, per_process=4),
            optimizer=OptimizerConfig(lr=1e-4),
            schedule=ScheduleConfig(decay="constant", warmup_steps=200, warmup_ratio=1e-3),
        ),
    )


def flashocc_m1() -> Recipe:
    r"""The official FlashOcc M1: finer depth and twice the channels in front of the head.

    Paper: as flashocc_m0. Expected: 32.08 % mIoU on Occ3D-nuScenes val with the camera mask (the authors' README);
    29.57 without the start from a detector (a user's report there).

        torchrun --nproc-per-node 4 training/train.py flashocc_m1 --data data/nuscenes --out out/flashocc_m1 \
            --init bevdet-r50-cbgs.pth --init-matching
    """
    return replace(flashocc_m0(), preset="flashocc-m1", model=flashocc_presets.flashocc_m1())


def flashocc_m2() -> Recipe:
    r"""The official FlashOcc M2: M1 with stereo depth, measured depth as a label, and one earlier keyframe.

    Paper: as flashocc_m0. Expected: 37.84 % mIoU on Occ3D-nuScenes val with the camera mask (the authors' README).
    Start: BEVDet's detector with stereo; a user who added the depth loss without such a start reports 4 less than
    without the loss (issue 59 of the authors' repository).

        torchrun --nproc-per-node 4 training/train.py flashocc_m2 --data data/nuscenes --out out/flashocc_m2 \
            --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    return replace(
        flashocc_m0(),
        preset="flashocc-m2",
        model=flashocc_temporal_presets.flashocc_m2(),
        loss=flashocc_losses(mask="camera", depth=0.05),
    )


def flashocc_m3() -> Recipe:
    r"""The official FlashOcc M3: M2 with Swin-B at 512 x 1408.

    Paper: as flashocc_m0. Expected: 43.52 % mIoU on Occ3D-nuScenes val with the camera mask (the authors' README); at
    half this learning rate 41.80. How many samples a GPU takes is our choice (the README's batch is 16 in all).

        torchrun --nproc-per-node 8 training/train.py flashocc_m3 --data data/nuscenes --out out/flashocc_m3 \
            --init bevdet-stbase-4d-stereo-512x1408-cbgs.pth --init-matching
    """
    m2 = flashocc_m2()
    train = replace(m2.train, batch=BatchConfig(total=16, per_process=1), optimizer=OptimizerConfig(lr=2e-4))
    return replace(m2, preset="flashocc-m3", model=flashocc_temporal_presets.flashocc_m3(), train=train)


def panoptic_flashocc_tiny() -> Recipe:
    r"""The official Panoptic-FlashOcc "tiny": all voxels, balanced classes, measured depth, centres of objects.

    Paper: Yu et al., "Panoptic-FlashOcc", 2024, and its code. Expected: 34.81 % RayIoU, 12.9 % RayPQ, 29.14 % mIoU on
    Occ3D-nuScenes val (the authors' README; with which mask the mIoU is measured is not clear there). Their RayPQ was
    computed with a wrong table of classes (docs/flashocc.md): with the right one it should be higher.

        torchrun --nproc-per-node 4 training/train.py panoptic_flashocc_tiny --data data/nuscenes --out out/panoptic \
            --init bevdet-r50-4d-depth-cbgs.pth --init-matching
    """
    return replace(
        flashocc_m0(),
        preset="panoptic-flashocc-tiny",
        model=flashocc_presets.panoptic_flashocc_tiny(),
        loss=panoptic_flashocc_losses(depth=1.0, center_classes=NUSCENES_THINGS),
        best_metric="miou_none",
    )


def panoptic_flashocc_depth() -> Recipe:
    r"""The official Panoptic-FlashOcc with finer depth and twice the channels.

    Paper: as panoptic_flashocc_tiny. Expected: 35.22 % RayIoU, 13.2 % RayPQ, 29.39 % mIoU on Occ3D-nuScenes val.

        torchrun --nproc-per-node 4 training/train.py panoptic_flashocc_depth --data data/nuscenes --out out/panoptic \
            --init bevdet-r50-4d-depth-cbgs.pth --init-matching
    """
    network = flashocc_presets.panoptic_flashocc_depth()
    return replace(panoptic_flashocc_tiny(), preset="panoptic-flashocc-depth", model=network)


def flashocc_tiny_panoptic_simulated() -> Recipe:
    r"""The small camera network that tells objects apart, on simulated streets, measured with the camera mask.

    Paper: none; the network is ours (docs/flashocc.md). Expected: not measured.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py flashocc_tiny_panoptic_simulated --data data/sim --out out/flashocc_tiny
    """
    return Recipe(
        preset="flashocc-tiny-panoptic",
        model=flashocc_presets.flashocc_tiny_panoptic(),
        data=DataConfig(train_split="sim_train", val_split="sim_val", label_mask="camera"),
        loss=LossConfig(
            lovasz=1.0, depth=0.05, center_heatmap=0.1, center_position=0.025, center_classes=NUSCENES_THINGS
        ),
        train=TrainConfig(
            batch=BatchConfig(total=8, per_process=4),
            optimizer=OptimizerConfig(lr=4e-4),
            schedule=ScheduleConfig(every="step"),
            ema=EmaConfig(initial_updates=0),
            precision="bf16",
        ),
    )
