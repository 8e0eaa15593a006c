"""A FusionOcc small enough for tests of the whole way from a recipe to an evaluation, on a part of the Occ3D grid."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.data.augmentation import AugmentationConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.run_folder import CheckpointConfig
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.grids import OCC3D_LABELS, DepthBins, VoxelGrid
from fusionocc_core.layers.cross_modal import DepthSegConfig
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.layers.volume_encoder import ResNet3dConfig
from fusionocc_core.losses import LossConfig
from fusionocc_core.models.fusionocc import FusionOccConfig
from fusionocc_core.structures import InputConfig

GRID = VoxelGrid(frame="ego", lower=(-4.8, -4.8, -1.0), upper=(4.8, 4.8, 5.4), voxel_size=(0.4, 0.4, 0.4))


def _network() -> FusionOccConfig:
    return FusionOccConfig(
        inputs=InputConfig(image_size=(64, 96), camera_history=1, lidar_history=1, depth_range=(1.0, 17.0)),
        grid=GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=17.0, step=1.0),
        image_backbone=SwinConfig(
            embed_channels=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=3, checkpoint_activations=True
        ),
        image_neck=FpnLssConfig(channels=16),
        depth_seg=DepthSegConfig(mid_channels=12, feature_channels=8, aspp_channels=6),
        lift=LiftConfig(),
        lidar=LidarEncoderConfig(grid=replace(GRID, voxel_size=(0.2, 0.2, 0.2)), stage_channels=(8, 8), out_channels=8),
        volume_encoder=ResNet3dConfig(channels=(8, 12, 16), blocks=(1, 1, 1)),
        volume_channels=8,
    )


def small() -> Recipe:
    """The small network on the test tree: scene-0061 to train, scene-0103 to evaluate."""
    return Recipe(
        preset="small",
        model=_network(),
        loss=LossConfig(mask="camera", depth=0.1, segmentation=0.1),
        data=DataConfig(train_split="mini_train", val_split="mini_val"),
        train=TrainConfig(
            epochs=2,
            batch=BatchConfig(total=2, per_process=1),
            optimizer=OptimizerConfig(lr=1e-3),
            schedule=ScheduleConfig(warmup_steps=2),
            workers=0,
            log_every=1,
            checkpoints=CheckpointConfig(every_steps=1, keep=2),
        ),
    )


def small_plain() -> Recipe:
    """Without augmentation."""
    return replace(small(), data=replace(small().data, augmentation=None))


def small_sharded() -> Recipe:
    """Two nodes with a part of the data each; nothing drawn in the network, no batch statistics, no evaluation."""
    plain = small_plain()
    still = replace(plain.model, image_backbone=replace(plain.model.image_backbone, drop_path=0.0))
    train = replace(
        plain.train, batch=BatchConfig(total=4, per_process=1, shards=2), freeze_batch_norm=True, epochs=2000
    )
    return replace(plain, model=still, train=train, data=replace(plain.data, val_keyframes=0))


def small_flipped() -> Recipe:
    """Both flips, always."""
    flips = AugmentationConfig(flip_x_chance=1.0, flip_y_chance=1.0)
    return replace(small(), data=replace(small().data, augmentation=flips))


def not_a_recipe() -> int:
    """A function that returns something else is not listed."""
    return 3
