"""Keyframes with occupancy labels as training examples. Every random draw follows from the sample's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fusionocc_core.data.augmentation import (
    AugmentationConfig,
    BevAug,
    ImageAug,
    draw_bev_aug,
    draw_image_aug,
    fit_image,
)
from fusionocc_core.data.images import transform_seg_map
from fusionocc_core.data.imgseg import imgseg_path
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import collate, prepare
from fusionocc_core.data.things import things_of
from fusionocc_core.engine.examples import Examples
from fusionocc_core.engine.labels import check_labels, read_truth
from fusionocc_core.engine.sampler import SampleKey, draw_seed
from fusionocc_core.engine.sensor_dropout import SensorDropout, draw_cameras, drop_sensors, mask_sensors
from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import CenterTargets, Targets, collate_targets, draw_centers
from fusionocc_core.metrics import MASKS, OccupancyTruth
from fusionocc_core.structures import Batch, InputConfig, SensorFrame


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which keyframes, and what is done to them in training."""

    train_split: str = "train"
    """An official split, or one in <version>/splits.json."""
    val_split: str = "val"
    val_keyframes: int | None = None
    """Evaluations during training take only so many of the split's keyframes, spread evenly; None takes all."""
    augmentation: AugmentationConfig | None = field(default_factory=AugmentationConfig)
    """None shows every sample as it is."""
    sensor_dropout: SensorDropout = field(default_factory=SensorDropout)
    label_mask: str = "none"
    """Labels of voxels that the "camera" or "lidar" did not observe become unknown, for every loss; "none" keeps all.
    (The mask of LossConfig, which the official recipe has, is that of the cross-entropy alone.)"""
    unobserved_share: float = 0.0
    """Share of the voxels outside ``label_mask`` that keep their label all the same, drawn anew for each sample. With
    none, what a network says where nobody looks is left to chance, and most of a grid is such a place."""
    reduce: int = 1
    """Decode pictures at 1, 1/2, 1/4 or 1/8 of their size: quicker where the network's picture is small anyway."""

    def __post_init__(self) -> None:
        """Refuse a mask that does not exist."""
        if self.label_mask not in MASKS:
            raise ValueError(f"DataConfig.label_mask={self.label_mask!r}: expected one of {MASKS}")
        if not 0 <= self.unobserved_share <= 1:
            raise ValueError(f"DataConfig.unobserved_share={self.unobserved_share}: expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExampleNeeds:
    """What a network and its losses want from a sample."""

    inputs: InputConfig
    grid: VoxelGrid
    label_set: LabelSet
    depth_bins: DepthBins | None
    """For the depth loss; None leaves its labels out."""
    stride: int
    """Pixels a feature cell."""
    segmentation: bool
    """Labels of the pictures are wanted, too."""
    center_classes: tuple[str, ...] = ()
    """Classes of the objects whose centres are wanted, in the order of the heatmaps."""


class OccupancyExamples:
    """The keyframes of a data set with Occ3D labels.

    Every draw for a sample comes from a generator that is seeded with the run's seed and the sample's key, so that the
    same key gives the same example in any process and at any time, whatever it is joined with. Only how many cameras
    ``drop_sensors`` leaves follows from the first key of a batch, since the samples must have equally many.

    Args:
        frames: the keyframes, with the history that the network wants.
        config: what is done to them.
        needs: what comes out.
        seed: of the run.

    Raises:
        FileNotFoundError: labels are missing, with their number and where they belong.
        ValueError: the labels' grid or classes are not the network's.
    """

    def __init__(self, frames: NuScenesFrames, config: DataConfig, needs: ExampleNeeds, *, seed: int) -> None:
        self.frames, self.config, self.needs, self.seed = frames, config, needs, seed
        check_labels(frames, segmentation=needs.segmentation)
        if len(frames):
            read_truth(frames, 0, needs.grid, needs.label_set)

    def __len__(self) -> int:
        """How many keyframes."""
        return len(self.frames)

    def examples(self, keys: Sequence[SampleKey]) -> Examples:
        """The samples of these keys, prepared and joined."""
        frames = [self.frames[key.sample] for key in keys]
        generators = [torch.Generator().manual_seed(draw_seed(self.seed, *key)) for key in keys]
        fewest = min(len(frame.cameras) for frame in frames)
        # Not from a sample's own generator, whose draws do not depend on what it is joined with.
        joint = torch.Generator().manual_seed(draw_seed(self.seed, keys[0].epoch, -1 - keys[0].sample))
        cameras = draw_cameras(self.config.sensor_dropout, fewest, joint)
        parts = []
        for key, frame, generator in zip(keys, frames, generators, strict=True):
            batch, targets = self._one(key.sample, frame, generator)
            parts.append(self._drop(batch, targets, cameras, generator))
        return Examples(
            batch=collate([batch for batch, _ in parts]),
            targets=collate_targets([targets for _, targets in parts]),
            tokens=tuple(frame.token for frame in frames),
        )

    def _drop(self, batch: Batch, targets: Targets, cameras: int, generator: torch.Generator) -> tuple[Batch, Targets]:
        dropout = self.config.sensor_dropout
        if self.needs.inputs.presence_masks:
            unknown = self.needs.label_set.unknown
            return mask_sensors(batch, targets, dropout, unknown=unknown, generator=generator)
        return drop_sensors(batch, targets, dropout, cameras=cameras, generator=generator)

    def _one(self, index: int, frame: SensorFrame, generator: torch.Generator) -> tuple[Batch, Targets]:
        needs, config = self.needs, self.config.augmentation
        sizes = {camera.name: (camera.image.shape[0], camera.image.shape[1]) for camera in frame.cameras}
        size = needs.inputs.image_size
        if config is None:
            image_augs, bev_aug = {name: fit_image(source, size) for name, source in sizes.items()}, BevAug()
        else:
            image_augs = {name: draw_image_aug(source, size, config, generator) for name, source in sizes.items()}
            bev_aug = draw_bev_aug(config, generator)
        batch = prepare(frame, needs.inputs, needs.grid, generator, image_augs=image_augs, bev_aug=bev_aug)
        truth = read_truth(self.frames, index, needs.grid, needs.label_set)
        labels = bev_aug.move_volume(self._known(truth, generator), truth.grid, outside=truth.label_set.unknown)
        return batch, Targets(
            labels_BXYZ=_tensor(labels),
            mask_camera_BXYZ=_mask(truth.mask_camera, truth.grid, bev_aug),
            mask_lidar_BXYZ=_mask(truth.mask_lidar, truth.grid, bev_aug),
            depth_bins_BNhw=measured_depth_bins(batch.depth_BNHW, needs.depth_bins, needs.stride)
            if needs.depth_bins
            else None,
            segmentation_BNHW=self._segmentation(index, image_augs) if needs.segmentation else None,
            centers=self._centers(index, bev_aug) if needs.center_classes else None,
        )

    def _known(self, truth: OccupancyTruth, generator: torch.Generator) -> NDArray[np.uint8]:
        mask = None if self.config.label_mask == "none" else truth.mask(self.config.label_mask)
        if mask is None and self.config.label_mask != "none":
            raise ValueError(f"DataConfig.label_mask={self.config.label_mask!r}: these labels have no such mask")
        if mask is None:
            return truth.labels
        if self.config.unobserved_share > 0:
            mask = mask | (torch.rand(mask.shape, generator=generator).numpy() < self.config.unobserved_share)
        return np.where(mask, truth.labels, np.uint8(truth.label_set.unknown))

    def _centers(self, index: int, bev_aug: BevAug) -> CenterTargets:
        needs = self.needs
        things = things_of(self.frames.boxes(index), needs.label_set, needs.center_classes)
        ego2aug = bev_aug.matrix()
        return draw_centers(
            things.centers_M3 @ ego2aug[:3, :3].T + ego2aug[:3, 3],
            bev_aug.scale * things.sizes_M3[:, :2],
            things.channels_M,
            num_classes=len(needs.center_classes),
            lower_xy=needs.grid.lower[:2],
            column_size=needs.grid.voxel_size[:2],
            shape_xy=needs.grid.shape[:2],
        )

    def _segmentation(self, index: int, image_augs: dict[str, ImageAug]) -> torch.Tensor:
        size = self.needs.inputs.image_size
        records = self.frames.keyframe(index).records
        maps = [
            transform_seg_map(np.load(imgseg_path(self.frames.root, records[name])), aug, size)
            for name, aug in image_augs.items()
        ]
        return _tensor(np.stack(maps))


def _mask(mask: NDArray[np.bool_] | None, grid: VoxelGrid, bev_aug: BevAug) -> torch.Tensor | None:
    return None if mask is None else _tensor(bev_aug.move_volume(mask, grid, outside=False))


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """As a batch of one."""
    return torch.from_numpy(np.ascontiguousarray(array))[None]
