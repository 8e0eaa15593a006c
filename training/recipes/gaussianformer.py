"""Recipes of GaussianFormer and GaussianFormer-2: functions that return a Recipe; a variant is `replace` on another."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.data.augmentation import AugmentationConfig
from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.losses import OCC3D_VOXEL_COUNTS, LossConfig, balancing_weights, gaussianformer_losses
from fusionocc_core.models import gaussianformer_presets
from fusionocc_core.models.gaussian_initialiser import initialiser_of

_MIRRORED = AugmentationConfig(
    scale_offset=(0.0, 0.0), turn_degrees=(0.0, 0.0), mirror_chance=0.5, flip_x_chance=0.0, flip_y_chance=0.0
)
"""The official one without its changes of colour; there one draw mirrors all cameras, here each has its own."""


def gaussianformer_25600_solid() -> Recipe:
    r"""The official GaussianFormer with 25,600 Gaussians on SurroundOcc labels, 20 epochs, 8 samples a step.

    Paper: Huang et al., "GaussianFormer: Scene as Gaussians for Vision-Based 3D Semantic Occupancy Prediction", ECCV
    2024, and its code. Expected: 19.31 % mIoU on SurroundOcc val (the authors' README); three users measured 17.6 with
    the released weights, one trained to 20.9 (issues 42, 55, 82 and 33 there).
    Start: the authors begin with FCOS3D's ResNet-101 with deformable convolutions.

        torchrun --nproc-per-node 8 training/train.py gaussianformer_25600_solid --data data/nuscenes \
            --out out/gaussianformer --init r101_dcn_fcos3d_pretrain.pth --init-matching
    """
    return Recipe(
        preset="gaussianformer-25600-solid",
        model=gaussianformer_presets.gaussianformer_25600_solid(),
        data=DataConfig(augmentation=_MIRRORED),
        loss=gaussianformer_losses(),
        train=TrainConfig(
            epochs=20,
            batch=BatchConfig(total=8, per_process=1),
            optimizer=OptimizerConfig(lr=2e-4, clip_norm=35.0, rate_of_parts=(("img_backbone", 0.1),)),
            schedule=ScheduleConfig(every="step", final_ratio=0.1, warmup_steps=500, warmup_ratio=0.005),
            ema=None,
        ),
        best_metric="miou_none",
    )


def gaussianformer_144000() -> Recipe:
    r"""The official GaussianFormer with 144,000 small Gaussians; every block's set learns.

    Paper: as gaussianformer_25600_solid. Expected: 19.10 % mIoU on SurroundOcc val (the authors' README).

        torchrun --nproc-per-node 8 training/train.py gaussianformer_144000 --data data/nuscenes \
            --out out/gaussianformer_144000 --init r101_dcn_fcos3d_pretrain.pth --init-matching
    """
    network = gaussianformer_presets.gaussianformer_144000()
    return replace(gaussianformer_25600_solid(), preset="gaussianformer-144000", model=network)


def gaussianformer2_initialiser() -> Recipe:
    r"""The first part of GaussianFormer-2: which points along the rays of pixels are occupied.

    Paper: Huang et al., "GaussianFormer-2: Probabilistic Gaussian Superposition for Efficient 3D Occupancy Prediction",
    CVPR 2025, which names the loss; config and recipe were not released (issues 46 and 73), so these are ours. The
    metric is whether voxels are occupied. Expected: not measured.

        torchrun --nproc-per-node 8 training/train.py gaussianformer2_initialiser --data data/nuscenes \
            --out out/initialiser --init r101_dcn_fcos3d_pretrain.pth --init-matching
    """
    solid = gaussianformer_25600_solid()
    return replace(
        solid,
        preset="gaussianformer2-initialiser",
        model=initialiser_of(gaussianformer_presets.gaussianformer2_6400()),
        loss=LossConfig(cross_entropy=0.0, ray_occupancy=1.0),
        train=replace(solid.train, epochs=6),
        best_metric="iou_none",
    )


def gaussianformer2_6400() -> Recipe:
    r"""The official GaussianFormer-2 with 6,400 Gaussians, from a trained initialiser, which keeps its weights.

    Paper: as gaussianformer2_initialiser. Expected: 20.04 % mIoU on SurroundOcc val (the authors' README); a user's
    training ended 4 lower (issue 69). Start: the initialiser; its image backbone is not that of the rest, which begins
    with fresh weights unless a file holds both.

        torchrun --nproc-per-node 8 training/train.py gaussianformer2_6400 --data data/nuscenes \
            --out out/gaussianformer2 --init out/initialiser/best.safetensors --init-matching
    """
    solid = gaussianformer_25600_solid()
    return replace(
        solid,
        preset="gaussianformer2-6400",
        model=gaussianformer_presets.gaussianformer2_6400(),
        train=replace(solid.train, optimizer=replace(solid.train.optimizer, lr=4e-4)),
    )


def gaussianformer2_12800() -> Recipe:
    r"""The official GaussianFormer-2 with 12,800 Gaussians.

    Paper: as gaussianformer2_initialiser. Expected: 20.08 % mIoU on SurroundOcc val (the authors' README).

        torchrun --nproc-per-node 8 training/train.py gaussianformer2_12800 --data data/nuscenes \
            --out out/gaussianformer2_12800 --init out/initialiser/best.safetensors --init-matching
    """
    network = gaussianformer_presets.gaussianformer2_12800()
    return replace(gaussianformer2_6400(), preset="gaussianformer2-12800", model=network)


def gaussianformer2_25600() -> Recipe:
    r"""The official GaussianFormer-2 with 25,600 Gaussians.

    Paper: as gaussianformer2_initialiser. Expected: 20.33 % mIoU on SurroundOcc val (the authors' README).

        torchrun --nproc-per-node 8 training/train.py gaussianformer2_25600 --data data/nuscenes \
            --out out/gaussianformer2_25600 --init out/initialiser/best.safetensors --init-matching
    """
    network = gaussianformer_presets.gaussianformer2_25600()
    return replace(gaussianformer2_6400(), preset="gaussianformer2-25600", model=network)


def gaussianformer2_tiny_simulated() -> Recipe:
    r"""The small camera network with Gaussians along rays, on simulated streets, measured with the camera mask.

    Paper: none; the network is ours (docs/gaussianformer.md). One stage: what looks for occupied points learns beside
    the rest. Expected: not measured.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py gaussianformer2_tiny_simulated --data data/sim --out out/gaussianformer2_tiny
    """
    return Recipe(
        preset="gaussianformer2-tiny",
        model=gaussianformer_presets.gaussianformer2_tiny(),
        data=DataConfig(train_split="sim_train", val_split="sim_val", label_mask="camera", unobserved_share=0.05),
        loss=LossConfig(
            cross_entropy=10.0,
            lovasz_occupied=1.0,
            ray_occupancy=1.0,
            class_weights=balancing_weights(OCC3D_VOXEL_COUNTS),
        ),
        train=TrainConfig(
            epochs=12,
            batch=BatchConfig(total=4, per_process=4),
            optimizer=OptimizerConfig(lr=1e-3, clip_norm=35.0),
            schedule=ScheduleConfig(every="step", final_ratio=0.05, warmup_steps=100, warmup_ratio=0.1),
            ema=EmaConfig(decay=0.99, ramp=100.0, initial_updates=0),
        ),
    )


def gaussianformer2_tiny_simulated_cpu() -> Recipe:
    r"""The same in 255 samples, on a CPU, as gaussianfusion_tiny_simulated_cpu.

    Paper: none. Expected: docs/gaussianfusion.md, "With and without a LiDAR".

        python training/train.py gaussianformer2_tiny_simulated_cpu --data data/sim --out out/gaussianformer2_tiny_cpu
    """
    base = gaussianformer2_tiny_simulated()
    return replace(
        base,
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


def gaussianformer_tiny_simulated() -> Recipe:
    r"""The small camera network with learned places, on simulated streets, measured with the camera mask.

    Paper: none; the network is ours (docs/gaussianformer.md). Expected: not measured.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py gaussianformer_tiny_simulated --data data/sim --out out/gaussianformer_tiny
    """
    second = gaussianformer2_tiny_simulated()
    return replace(
        second,
        preset="gaussianformer-tiny",
        model=gaussianformer_presets.gaussianformer_tiny(),
        loss=replace(second.loss, ray_occupancy=0.0),
    )
