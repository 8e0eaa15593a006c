"""Recipes of FlashFusion: functions that return a Recipe; a variant is `replace` on another."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.sensor_dropout import SensorDropout
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.layers.recurrent_bev import StreamLimits
from fusionocc_core.losses import (
    OCC3D_VOXEL_COUNTS,
    LossConfig,
    balancing_weights,
)
from fusionocc_core.models import flashfusion_presets


def flashfusion_r50() -> Recipe:
    r"""The real-time network for a GPU on nuScenes with Occ3D labels, sensors dropped at random.

    Paper: none; the network is ours (docs/flashfusion.md). Expected: not measured.
    Start: fresh weights, or the ResNet-50 of an official BEVDet or FlashOcc file with --init-matching.

        torchrun --nproc-per-node 8 training/train.py flashfusion_r50 --data data/nuscenes --out out/flashfusion_r50
    """
    return Recipe(
        preset="flashfusion-r50",
        model=flashfusion_presets.flashfusion_r50(),
        data=DataConfig(
            label_mask="camera",
            sensor_dropout=SensorDropout(camera=0.05, pictures=0.15, lidar=0.15),
        ),
        loss=LossConfig(
            cross_entropy=1.0,
            lovasz=0.5,
            depth=0.1,
            segmentation=0.1,
            class_weights=balancing_weights(OCC3D_VOXEL_COUNTS),
        ),
        train=TrainConfig(
            batch=BatchConfig(total=32, per_process=4),
            optimizer=OptimizerConfig(lr=2e-4, clip_norm=35.0),
            schedule=ScheduleConfig(every="step", warmup_steps=500),
            ema=EmaConfig(initial_updates=0),
            precision="bf16",
        ),
    )


def flashfusion_mini_simulated() -> Recipe:
    r"""The real-time network for a CPU on simulated streets, sensors dropped at random, measured with the camera mask.

    Paper: none; the network is ours (docs/flashfusion.md). Expected: not measured.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py flashfusion_mini_simulated --data data/sim --out out/flashfusion_mini
    """
    return Recipe(
        preset="flashfusion-mini",
        model=flashfusion_presets.flashfusion_mini(),
        data=DataConfig(
            train_split="sim_train",
            val_split="sim_val",
            label_mask="camera",
            unobserved_share=0.05,
            sensor_dropout=SensorDropout(camera=0.05, pictures=0.1, lidar=0.15),
        ),
        loss=LossConfig(
            cross_entropy=1.0,
            lovasz=1.0,
            depth=0.05,
            segmentation=0.2,
            class_weights=balancing_weights(OCC3D_VOXEL_COUNTS),
        ),
        train=TrainConfig(
            epochs=12,
            batch=BatchConfig(total=4, per_process=4),
            optimizer=OptimizerConfig(lr=1e-3, clip_norm=10.0),
            schedule=ScheduleConfig(every="step", warmup_steps=100, warmup_ratio=0.1),
            ema=EmaConfig(decay=0.99, ramp=100.0, initial_updates=0),
            precision="bf16",
        ),
    )


def flashfusion_mini_simulated_cpu() -> Recipe:
    r"""The same within half an hour of one CPU core: 2,040 samples.

    Paper: none. Expected: docs/training.md, "Half an hour of a CPU".

        python training/train.py flashfusion_mini_simulated_cpu --data data/sim --out out/flashfusion_mini_cpu
    """
    base = flashfusion_mini_simulated()
    return replace(
        base,
        data=replace(base.data, val_keyframes=26),
        train=replace(
            base.train,
            epochs=4,
            optimizer=replace(base.train.optimizer, lr=2e-3),
            schedule=replace(base.train.schedule, warmup_steps=40),
            workers=0,
        ),
    )


def flashfusion_mini_each_alone() -> Recipe:
    r"""From flashfusion_mini_simulated_cpu on, until each sensor does alone: the LiDAR is missing half of the time.

    Paper: none. Expected: docs/flashfusion.md. Start: the weights that flashfusion_mini_simulated_cpu ends with.

        python training/train.py flashfusion_mini_each_alone --data data/sim --out out/flashfusion_mini_alone \
            --init out/flashfusion_mini_cpu/best.safetensors
    """
    base = flashfusion_mini_simulated_cpu()
    return replace(
        base,
        data=replace(base.data, sensor_dropout=SensorDropout(camera=0.05, pictures=0.1, lidar=0.5)),
        train=replace(base.train, epochs=3, optimizer=replace(base.train.optimizer, lr=1e-3)),
    )


def flashfusion_mini_stream() -> Recipe:
    r"""From the weights that ship on, with a memory: two keyframes before each are run through without gradients.

    Paper: none. Expected: no more than without (docs/flashfusion.md). Start: the weights that ship, or those of
    flashfusion_mini_each_alone.

        python training/train.py flashfusion_mini_stream --data data/sim --out out/flashfusion_mini_stream \
            --init out/flashfusion_mini_alone/best.safetensors --init-matching
    """
    base, model = flashfusion_mini_each_alone(), flashfusion_presets.flashfusion_mini()
    return replace(
        base,
        model=replace(model, memory=StreamLimits(), inputs=replace(model.inputs, remembered=2)),
        train=replace(base.train, epochs=1),
    )
