"""Recipes of GaussianFusion: each a function that returns a Recipe; a variant is `replace` on another."""

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
from fusionocc_core.losses import OCC3D_VOXEL_COUNTS, LossConfig, balancing_weights
from fusionocc_core.models import gaussianfusion_presets


def _losses() -> LossConfig:
    """Those of GaussianFormer-2, with the pictures' depth in place of its rays."""
    return LossConfig(
        cross_entropy=10.0, lovasz_occupied=1.0, depth=0.5, class_weights=balancing_weights(OCC3D_VOXEL_COUNTS)
    )


def gaussianfusion_6400() -> Recipe:
    r"""6,400 Gaussians with a LiDAR on nuScenes, sensors dropped at random.

    Paper: none; the network is ours (docs/gaussianfusion.md). Expected: not measured.
    Start: the image backbone of FCOS3D, or of an official GaussianFormer-2 file; its norms stay as they are.

        torchrun --nproc-per-node 8 training/train.py gaussianfusion_6400 --data data/nuscenes \
            --out out/gaussianfusion --init r101_dcn_fcos3d_pretrain.pth --init-matching
    """
    return Recipe(
        preset="gaussianfusion-6400",
        model=gaussianfusion_presets.gaussianfusion_6400(),
        data=DataConfig(sensor_dropout=SensorDropout(camera=0.05, pictures=0.15, lidar=0.15)),
        loss=_losses(),
        train=TrainConfig(
            batch=BatchConfig(total=8, per_process=1),
            optimizer=OptimizerConfig(lr=4e-4, clip_norm=35.0),
            schedule=ScheduleConfig(every="step", warmup_steps=500),
            ema=EmaConfig(initial_updates=0),
        ),
        best_metric="miou_none",
    )


def gaussianfusion_tiny_simulated() -> Recipe:
    r"""The small network on simulated streets, sensors dropped at random, measured with the camera mask.

    Paper: none; the network is ours (docs/gaussianfusion.md). Expected: not measured. What is not said of a LiDAR is
    that of gaussianformer2_tiny_simulated, so that the two can be compared.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py gaussianfusion_tiny_simulated --data data/sim --out out/gaussianfusion_tiny
    """
    return Recipe(
        preset="gaussianfusion-tiny",
        model=gaussianfusion_presets.gaussianfusion_tiny(),
        data=DataConfig(
            train_split="sim_train",
            val_split="sim_val",
            label_mask="camera",
            unobserved_share=0.05,
            sensor_dropout=SensorDropout(camera=0.05, pictures=0.1, lidar=0.1),
        ),
        loss=_losses(),
        train=TrainConfig(
            epochs=12,
            batch=BatchConfig(total=4, per_process=4),
            optimizer=OptimizerConfig(lr=1e-3, clip_norm=35.0),
            schedule=ScheduleConfig(every="step", final_ratio=0.05, warmup_steps=100, warmup_ratio=0.1),
            ema=EmaConfig(decay=0.99, ramp=100.0, initial_updates=0),
        ),
    )


def gaussianfusion_tiny_simulated_cpu() -> Recipe:
    r"""The same in 255 samples, on a CPU: a quarter of an hour of one core.

    Paper: none. Expected: docs/gaussianfusion.md, "With and without a LiDAR".

        python training/train.py gaussianfusion_tiny_simulated_cpu --data data/sim --out out/gaussianfusion_tiny_cpu
    """
    base, network = gaussianfusion_tiny_simulated(), gaussianfusion_presets.gaussianfusion_tiny()
    return replace(
        base,
        model=replace(network, lidar=replace(network.lidar, norm_momentum=0.1)),
        data=replace(base.data, val_keyframes=26),
        train=replace(
            base.train,
            epochs=0.5,
            batch=BatchConfig(total=2, per_process=2),
            optimizer=replace(base.train.optimizer, lr=2e-3),
            schedule=replace(base.train.schedule, warmup_steps=15),
            workers=0,
        ),
    )
