"""Sensors that are missing at random in training, so that a network learns to do without them.

Legend: B samples, T frames in time, N cameras, P points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fusionocc_core.losses import Targets
from fusionocc_core.structures import Batch, cameras_present, lidar_present

FEWEST_CAMERAS = 2
"""That ``drop_sensors`` leaves: FusionOcc normalises its camera vectors over the cameras; one has no statistics."""


@dataclass(frozen=True, kw_only=True)
class SensorDropout:
    """Chances, each between 0 and 1. The official recipes drop nothing."""

    camera: float = 0.0
    """Of each camera to be absent, as if it were not on the vehicle. Two always stay (of two or more); with
    InputConfig.presence_masks, one of them."""
    pictures: float = 0.0
    """Of all pictures of a sample to be blank (the mean colour), while depth measured by the LiDAR stays. With
    InputConfig.presence_masks: of all cameras of a sample to be absent."""
    lidar: float = 0.0
    """Of the LiDAR to be absent: no points, no measured depth. What the network should say about depth stays."""

    def __post_init__(self) -> None:
        """Refuse what is no chance, and chances that would leave no sensor too often."""
        for name in ("camera", "pictures", "lidar"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"SensorDropout.{name}={getattr(self, name)}: expected a chance from 0 to below 1")
        if self.pictures + self.lidar > 1:
            raise ValueError(
                f"SensorDropout: pictures={self.pictures} and lidar={self.lidar} exclude each other and add up to more "
                "than 1"
            )


def draw_cameras(config: SensorDropout, num_cameras: int, generator: torch.Generator) -> int:
    """How many cameras stay. Samples that are collated must keep equally many."""
    stays = torch.rand(num_cameras, generator=generator) >= config.camera
    return max(min(FEWEST_CAMERAS, num_cameras), int(stays.sum()))


def drop_sensors(
    batch: Batch, targets: Targets, config: SensorDropout, *, cameras: int, generator: torch.Generator
) -> tuple[Batch, Targets]:
    """Take sensors out of a batch of one sample, and out of the labels what belongs to them.

    Args:
        batch: one sample.
        targets: its labels.
        config: the chances.
        cameras: how many stay, from ``draw_cameras``; which ones is drawn here.
        generator: CPU generator.
    """
    present = batch.depth_BNHW.shape[1]
    order = torch.randperm(present, generator=generator)
    one_modality = float(torch.rand(1, generator=generator))
    if cameras < present:
        batch, targets = _keep_cameras(batch, targets, order[:cameras].sort().values)
    if one_modality < config.lidar:
        empty = tuple(cloud_P5[:0] for cloud_P5 in batch.points)
        batch = replace(batch, points=empty, depth_BNHW=torch.zeros_like(batch.depth_BNHW))
    elif one_modality < config.lidar + config.pictures:
        batch = replace(batch, images_BTNCHW=torch.zeros_like(batch.images_BTNCHW))
    return batch, targets


def mask_sensors(
    batch: Batch, targets: Targets, config: SensorDropout, *, unknown: int, generator: torch.Generator
) -> tuple[Batch, Targets]:
    """Mark sensors of a batch of one sample as absent, for networks whose InputConfig has ``presence_masks``.

    What they saw stays in the batch, where nobody may look at it. Labels of absent pictures go; what an absent LiDAR
    measured still teaches depth. One sensor always stays.

    Args:
        batch: one sample.
        targets: its labels.
        config: the chances.
        unknown: what pixels without a label hold.
        generator: CPU generator.
    """
    present_BN = cameras_present(batch)
    draws_N = torch.rand(present_BN.shape[1], generator=generator)
    one_modality = float(torch.rand(1, generator=generator))
    stays_N = draws_N >= config.camera
    if present_BN.shape[1]:
        stays_N[draws_N.where(present_BN[0], -1.0).argmax()] = True
    if one_modality < config.lidar and bool(present_BN.any()):
        batch = replace(batch, lidar_present_B=torch.zeros(1, dtype=torch.bool))
    elif config.lidar <= one_modality < config.lidar + config.pictures and bool(lidar_present(batch).all()):
        stays_N = torch.zeros_like(stays_N)
    present_BN = present_BN & stays_N
    depth_bins, segmentation = targets.depth_bins_BNhw, targets.segmentation_BNHW
    here = present_BN[:, :, None, None]
    targets = replace(
        targets,
        depth_bins_BNhw=None if depth_bins is None else depth_bins.where(here, 0),
        segmentation_BNHW=None if segmentation is None else segmentation.where(here, unknown),
    )
    return replace(batch, camera_present_BN=present_BN), targets


def _keep_cameras(batch: Batch, targets: Targets, kept: torch.Tensor) -> tuple[Batch, Targets]:
    batch = replace(
        batch,
        images_BTNCHW=batch.images_BTNCHW[:, :, kept],
        intrinsics_BTN33=batch.intrinsics_BTN33[:, :, kept],
        image_aug_BTN44=batch.image_aug_BTN44[:, :, kept],
        cam2keyego_BTN44=batch.cam2keyego_BTN44[:, :, kept],
        depth_BNHW=batch.depth_BNHW[:, kept],
        camera_present_BN=cameras_present(batch)[:, kept],
    )
    depth_bins, segmentation = targets.depth_bins_BNhw, targets.segmentation_BNHW
    targets = replace(
        targets,
        depth_bins_BNhw=None if depth_bins is None else depth_bins[:, kept],
        segmentation_BNHW=None if segmentation is None else segmentation[:, kept],
    )
    return batch, targets
