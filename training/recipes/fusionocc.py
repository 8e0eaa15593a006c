"""Recipes of FusionOcc: functions that return a Recipe; a variant is `replace` on another."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.run_folder import CheckpointConfig
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.sensor_dropout import SensorDropout
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.losses import (
    fusionocc_losses,
)
from fusionocc_core.models import fusionocc_presets as networks


def fusionocc_base() -> Recipe:
    r"""The official FusionOcc: Swin-B, camera mask, 24 epochs, 8 samples a step.

    Paper: Zhang et al., "FusionOcc: Multi-Modal Fusion for 3D Occupancy Prediction", ACM MM 2024, and its code.
    Expected: 56.62 % mIoU on Occ3D-nuScenes val with the camera mask (the authors' README, whose column for the mask is
    the wrong way round: see docs/training.md).
    Start: the authors begin with BEVDet's bevdet-occ-stbase-4d-stereo-512x1408-24e; fresh weights do not get there.
    What the authors do not state: the number of GPUs. BEVDet's habit is 8 with one sample each; here a step takes 8
    samples on any number. Their range filter shrinks by 1 mm with every sample, which is left out.

        torchrun --nproc-per-node 8 training/train.py fusionocc_base --data data/nuscenes --out out/base \
            --init bevdet-occ-stbase-4d-stereo-512x1408-24e.pth --init-matching
    """
    return Recipe(
        preset="fusionocc-base",
        model=networks.fusionocc_base(),
        loss=fusionocc_losses(mask="camera"),
        train=TrainConfig(),
    )


def fusionocc_base_no_mask() -> Recipe:
    r"""The official FusionOcc, fine-tuned without the camera mask.

    Paper: as fusionocc_base; the authors fine-tune "several epochs" from the weights with mask. Six is our choice.
    Expected: 35.94 % mIoU without mask (a line that the authors' README has commented out).

        torchrun --nproc-per-node 8 training/train.py fusionocc_base_no_mask --data data/nuscenes \
            --out out/base_no_mask --init fusion_occ_mask.pth
    """
    base = fusionocc_base()
    return replace(
        base, loss=fusionocc_losses(mask="none"), train=replace(base.train, epochs=6), best_metric="miou_none"
    )


def fusionocc_base_one_gpu() -> Recipe:
    r"""The official recipe on one GPU: bf16, activations recomputed, 8 samples a step one after the other.

    Paper: as fusionocc_base. Expected: not measured. Samples and steps are the same; batch statistics come from the
    pictures of one sample instead of eight, and the precision is lower.

        python training/train.py fusionocc_base_one_gpu --data data/nuscenes --out out/base_one_gpu \
            --init bevdet-occ-stbase-4d-stereo-512x1408-24e.pth --init-matching
    """
    base, network = fusionocc_base(), networks.fusionocc_base()
    volume_encoder = replace(network.volume_encoder, checkpoint_activations=True)
    return replace(
        base,
        model=replace(network, volume_encoder=volume_encoder),
        train=replace(base.train, precision="bf16"),
    )


def fusionocc_base_robust() -> Recipe:
    r"""The official recipe with sensors dropped at random, for vehicles whose sensors fail.

    Paper: none; the chances are ours. Expected: not measured.

        torchrun --nproc-per-node 8 training/train.py fusionocc_base_robust --data data/nuscenes --out out/base_robust \
            --init bevdet-occ-stbase-4d-stereo-512x1408-24e.pth --init-matching
    """
    base = fusionocc_base()
    return replace(base, data=replace(base.data, sensor_dropout=SensorDropout(camera=0.1, pictures=0.1, lidar=0.1)))


def tiny() -> Recipe:
    r"""The small network on nuScenes with Occ3D labels, from fresh weights.

    Paper: none; the network is ours (docs/fusionocc.md). Expected: not measured.

        python training/train.py tiny --data data/nuscenes --out out/tiny
    """
    return Recipe(
        preset="fusionocc-tiny",
        model=networks.fusionocc_tiny(),
        data=DataConfig(label_mask="camera"),
        loss=replace(fusionocc_losses(mask="none"), lovasz=1.0),
        train=TrainConfig(
            batch=BatchConfig(total=8, per_process=4),
            optimizer=OptimizerConfig(lr=4e-4),
            schedule=ScheduleConfig(every="step"),
            precision="bf16",
        ),
    )


def tiny_simulated() -> Recipe:
    r"""The small network on simulated streets, trained and measured with the camera mask.

    Paper: none. Expected: not measured.

        fusionocc simulate --out data/sim --scenes 40 --keyframes 20 --image-size 800x450 --workers 8
        python training/train.py tiny_simulated --data data/sim --out out/tiny_simulated
    """
    base = tiny()
    return replace(
        base,
        data=replace(base.data, train_split="sim_train", val_split="sim_val"),
        train=replace(base.train, ema=EmaConfig(initial_updates=0)),
    )


def tiny_simulated_cpu() -> Recipe:
    r"""The small network on simulated streets within half an hour of one CPU core: 400 samples in bf16.

    Paper: none. Expected: not measured. A short run differs from tiny_simulated in small steps in large number, a high
    rate, norms and averages that follow at once.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py tiny_simulated_cpu --data data/sim --out out/tiny_simulated_cpu
    """
    base, network = tiny_simulated(), networks.fusionocc_tiny()
    return replace(
        base,
        model=replace(network, lidar=replace(network.lidar, norm_momentum=0.1)),
        data=replace(base.data, val_keyframes=26),
        train=replace(
            base.train,
            epochs=0.8,
            batch=BatchConfig(total=2, per_process=2),
            optimizer=OptimizerConfig(lr=2e-3),
            schedule=ScheduleConfig(every="step", warmup_steps=15, warmup_ratio=0.1),
            workers=0,
            checkpoints=CheckpointConfig(every_steps=50, keep=1),
        ),
    )


def tiny_overfit() -> Recipe:
    r"""The small network learns two simulated keyframes by heart: minutes on a CPU, to show that it all works.

    Paper: none. Expected: over 90 % mIoU, camera mask, on the two keyframes themselves (tests/engine/test_overfit.py
    makes the data and checks it). To be quick it differs from the network as it ships: 8 m around the vehicle instead
    of 40, small pictures, one sweep. Dropout is off, and batch statistics follow quickly, because the run is short.

        fusionocc simulate --out data/sim2 --scenes 1 --keyframes 2 --image-size 512x288
        python training/train.py tiny_overfit --data data/sim2 --out out/overfit
        python training/evaluate.py out/overfit --data data/sim2 --split sim_train --expect 95 --tol 5
    """
    network = networks.fusionocc_tiny()
    grid = replace(network.grid, lower=(-8.0, -8.0, -1.0), upper=(8.0, 8.0, 5.4))
    lidar_grid = replace(network.lidar.grid, lower=grid.lower, upper=grid.upper)
    weights = tuple(0.1 if k == network.label_set.free else 1.0 for k in range(network.label_set.num))
    return Recipe(
        preset="fusionocc-tiny (8 m)",
        model=replace(
            network,
            grid=grid,
            inputs=replace(network.inputs, image_size=(64, 192), lidar_history=0),
            depth_seg=replace(network.depth_seg, dropout=0.0, depth_label_drop=0.0),
            lidar=replace(network.lidar, grid=lidar_grid, norm_momentum=0.1),
        ),
        data=DataConfig(train_split="sim_train", val_split="sim_train", augmentation=None, label_mask="camera"),
        loss=replace(fusionocc_losses(mask="none"), lovasz=1.0, class_weights=weights),
        train=TrainConfig(
            epochs=150,
            batch=BatchConfig(total=2, per_process=2),
            optimizer=OptimizerConfig(lr=4e-3),
            schedule=ScheduleConfig(every="step", warmup_steps=10, warmup_ratio=0.1),
            ema=None,
            workers=0,
            evaluate_every=150,
            checkpoints=CheckpointConfig(every_steps=75, keep=1),
        ),
    )
