"""Keyframes with occupancy labels as training examples. Every random draw follows from the sample's key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
from fusionocc_core.data.pipeline import collate, key2global, prepare
from fusionocc_core.data.render_rays import RayConfig
from fusionocc_core.data.sweep_frames import frames_between
from fusionocc_core.data.things import things_of
from fusionocc_core.engine.examples import Examples, Unlabelled
from fusionocc_core.engine.labels import check_labels, read_truth
from fusionocc_core.engine.ray_examples import KeyframeRays
from fusionocc_core.engine.sampler import SampleKey, draw_seed
from fusionocc_core.engine.sensor_dropout import SensorDropout, draw_cameras, drop_sensors, mask_sensors
from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.layers.view_transform import measured_depth_bins
from fusionocc_core.losses import CenterTargets, Targets, collate_targets, draw_centers
from fusionocc_core.metrics import MASKS, OccupancyTruth
from fusionocc_core.ops.volume_render_rays import Rays
from fusionocc_core.structures import Batch, InputConfig, SensorFrame

UNLABELLED = ("leave_out", "keep")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which keyframes, and what is done to them in training."""

    train_split: str = "train"
    """An official split, or one in <version>/splits.json."""
    val_split: str = "val"
    val_keyframes: int | None = None
    """Evaluations during training take only so many of the split's keyframes, spread evenly; None takes all, 0 none
    at all (where there are no labels to evaluate with)."""
    augmentation: AugmentationConfig | None = field(default_factory=AugmentationConfig)
    """None shows every sample as it is."""
    sensor_dropout: SensorDropout = field(default_factory=SensorDropout)
    label_mask: str = "none"
    """Labels of voxels that the "camera" or "lidar" did not observe become unknown, for every loss; "none" keeps all.
    (The mask of LossConfig, which the official recipe has, is that of the cross-entropy alone.)"""
    unobserved_share: float = 0.0
    """Share of the voxels outside ``label_mask`` that keep their label all the same, drawn anew for each sample. With
    none, what a network says where nobody looks is left to chance, and most of a grid is such a place."""
    rays: RayConfig = field(default_factory=RayConfig)
    """Rays for the rendering losses, where LossConfig.rendering wants some."""
    labelled_share: float = 1.0
    """Share of the training keyframes whose labels (of voxels, pictures and rays) are used, spread evenly."""
    labelled_run: int = 1
    """So many labelled keyframes follow each other. With 1 nearly every scene has some; with as many as a scene has
    keyframes whole scenes are labelled and others not at all, which leaves far less to learn from."""
    unlabelled: str = "leave_out"
    """What becomes of the others: "leave_out", or "keep": their depth still teaches, and so does a teacher
    (TrainConfig.teacher)."""
    unlabelled_sweeps: bool = False
    """Also take one moment between each two keyframes, from the sweeps of the data set; nothing of it is labelled."""
    labelled_repeats: int = 1
    """How often a labelled keyframe comes in a pass over the data, so that they are not few among many without."""
    reduce: int = 1
    """Decode pictures at 1, 1/2, 1/4 or 1/8 of their size: quicker where the network's picture is small anyway."""

    def __post_init__(self) -> None:
        """Refuse a mask that does not exist."""
        if self.label_mask not in MASKS:
            raise ValueError(f"DataConfig.label_mask={self.label_mask!r}: expected one of {MASKS}")
        if not 0 <= self.unobserved_share <= 1:
            raise ValueError(f"DataConfig.unobserved_share={self.unobserved_share}: expected a share from 0 to 1")
        counts = min(self.labelled_repeats, self.labelled_run)
        if not 0 < self.labelled_share <= 1 or counts < 1 or self.unlabelled not in UNLABELLED:
            raise ValueError(
                f"DataConfig: labelled_share={self.labelled_share} lies above 0 and up to 1, labelled_repeats="
                f"{self.labelled_repeats} and labelled_run={self.labelled_run} are at least 1, unlabelled="
                f"{self.unlabelled!r} one of {UNLABELLED}"
            )

    def is_labelled(self, index: int) -> bool:
        """Whether the labels of a keyframe are used, counted from the first of the split."""
        run = index // self.labelled_run
        return int((run + 1) * self.labelled_share + 1e-9) > int(run * self.labelled_share + 1e-9)

    def order(self, keyframes: int, sweeps: int = 0) -> list[int]:
        """The keyframes that make up one pass over the data, and behind their numbers those of moments between."""
        between = list(range(keyframes, keyframes + sweeps))
        if self.labelled_share == 1 and self.labelled_repeats == 1:
            return list(range(keyframes)) + between
        labelled = [index for index in range(keyframes) if self.is_labelled(index)]
        if not labelled:
            raise ValueError(
                f"DataConfig.labelled_share={self.labelled_share}: of {keyframes} keyframes none would be labelled"
            )
        others = [i for i in range(keyframes) if not self.is_labelled(i)] if self.unlabelled == "keep" else []
        return labelled * self.labelled_repeats + others + between


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
    voxels: bool = True
    """Labels of voxels are wanted; without, none need be there."""
    rays: bool = False
    """Rays are wanted, too."""
    teacher: bool = False
    """Keyframes without labels are wanted as a teacher sees them, too."""
    practice: float | None = None
    """Chance that a labelled sample keeps the depth in its pictures that the LiDAR measured; the others, and all
    without labels, lose it (what depth the network should predict stays). None: all keep it."""


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
        share: number of samples -> those that this process reads; files of the others need not be there. None: all.

    Raises:
        FileNotFoundError: labels are missing, with their number and where they belong.
        ValueError: the labels' grid or classes are not the network's.
    """

    samples: range | None = None
    """Those that this process reads; None: all."""

    def __init__(
        self,
        frames: NuScenesFrames,
        config: DataConfig,
        needs: ExampleNeeds,
        *,
        seed: int,
        share: Callable[[int], range] | None = None,
    ) -> None:
        self.frames, self.config, self.needs, self.seed = frames, config, needs, seed
        self.sweeps = frames_between(frames) if config.unlabelled_sweeps else None
        self.order = config.order(len(frames), len(self.sweeps) if self.sweeps else 0)
        """Keyframes by the sample of a key; from len(frames) on, moments between them."""
        self.samples = share(len(self.order)) if share else None
        if needs.center_classes and (config.labelled_share < 1 or config.unlabelled_sweeps):
            raise ValueError(
                f"DataConfig: labelled_share={config.labelled_share}, unlabelled_sweeps={config.unlabelled_sweeps}; "
                "losses of centres take what is not labelled for empty: set LossConfig.center_heatmap and "
                "center_position to 0"
            )
        read = range(len(frames)) if self.samples is None else {self.order[sample] for sample in self.samples}
        labelled = [index for index in range(len(frames)) if config.is_labelled(index) and index in read]
        check_labels(frames, segmentation=needs.segmentation, voxels=needs.voxels, indices=labelled, grid=needs.grid)
        if labelled and needs.voxels:
            read_truth(frames, labelled[0], needs.grid, needs.label_set)
        self._rays = KeyframeRays(frames, config.rays, needs.label_set, config.is_labelled) if needs.rays else None
        self._sweep_rays = None
        if needs.rays and self.sweeps:
            alone = replace(config.rays, source="none")
            self._sweep_rays = KeyframeRays(self.sweeps, alone, needs.label_set, _never)

    def __len__(self) -> int:
        """How many samples one pass over the data has."""
        return len(self.order)

    def examples(self, keys: Sequence[SampleKey]) -> Examples:
        """The samples of these keys, prepared and joined.

        Raises:
            ValueError: one is of another shard.
        """
        if self.samples is not None and any(key.sample not in self.samples for key in keys):
            raise ValueError(f"{keys}: this process reads the samples {self.samples} alone")
        needs, indices = self.needs, [self.order[key.sample] for key in keys]
        frames = [self._frame(index) for index in indices]
        generators = [torch.Generator().manual_seed(draw_seed(self.seed, *key)) for key in keys]
        fewest = min(len(frame.cameras) for frame in frames)
        # Not from a sample's own generator, whose draws do not depend on what it is joined with.
        joint = torch.Generator().manual_seed(draw_seed(self.seed, keys[0].epoch, -1 - keys[0].sample))
        cameras = draw_cameras(self.config.sensor_dropout, fewest, joint)
        parts, plain, places = [], [], []
        for place, (index, frame, generator) in enumerate(zip(indices, frames, generators, strict=True)):
            image_augs, bev_aug = self._augmentation(frame, generator)
            batch, targets = self._one(index, frame, image_augs, bev_aug, generator)
            batch, targets = self._drop(batch, targets, cameras, generator)
            if needs.practice is not None and not (self._is_labelled(index) and _chance(needs.practice, generator)):
                batch = replace(batch, depth_BNHW=torch.zeros_like(batch.depth_BNHW))
            parts.append((batch, targets))
            if needs.teacher and not self._is_labelled(index):
                plain.append(prepare(frame, needs.inputs, needs.grid, bev_aug=bev_aug))
                places.append(place)
        return Examples(
            batch=collate([batch for batch, _ in parts]),
            targets=collate_targets([targets for _, targets in parts]),
            tokens=tuple(frame.token for frame in frames),
            unlabelled=Unlabelled(batch=collate(plain), places_U=torch.tensor(places)) if plain else None,
        )

    def _frame(self, index: int) -> SensorFrame:
        if index < len(self.frames):
            return self.frames[index]
        assert self.sweeps is not None
        return self.sweeps[index - len(self.frames)]

    def _is_labelled(self, index: int) -> bool:
        return index < len(self.frames) and self.config.is_labelled(index)

    def _draw_rays(self, index: int, keyego2global: NDArray[np.float64], generator: torch.Generator) -> Rays:
        if index >= len(self.frames):
            assert self._sweep_rays is not None
            return self._sweep_rays.rays(index - len(self.frames), keyego2global, generator)
        assert self._rays is not None
        return self._rays.rays(index, keyego2global, generator)

    def _drop(self, batch: Batch, targets: Targets, cameras: int, generator: torch.Generator) -> tuple[Batch, Targets]:
        dropout = self.config.sensor_dropout
        if self.needs.inputs.presence_masks:
            unknown = self.needs.label_set.unknown
            batch, left = mask_sensors(batch, targets, dropout, unknown=unknown, generator=generator)
            earlier = [
                mask_sensors(then, targets, dropout, unknown=unknown, generator=generator)[0] for then in batch.earlier
            ]
            return replace(batch, earlier=tuple(earlier)), left
        return drop_sensors(batch, targets, dropout, cameras=cameras, generator=generator)

    def _augmentation(self, frame: SensorFrame, generator: torch.Generator) -> tuple[dict[str, ImageAug], BevAug]:
        config, size = self.config.augmentation, self.needs.inputs.image_size
        sizes = {camera.name: (camera.image.shape[0], camera.image.shape[1]) for camera in frame.cameras}
        if config is None:
            return {name: fit_image(source, size) for name, source in sizes.items()}, BevAug()
        image_augs = {name: draw_image_aug(source, size, config, generator) for name, source in sizes.items()}
        return image_augs, draw_bev_aug(config, generator)

    def _one(
        self,
        index: int,
        frame: SensorFrame,
        image_augs: dict[str, ImageAug],
        bev_aug: BevAug,
        generator: torch.Generator,
    ) -> tuple[Batch, Targets]:
        needs = self.needs
        batch = prepare(frame, needs.inputs, needs.grid, generator, image_augs=image_augs, bev_aug=bev_aug)
        bins = measured_depth_bins(batch.depth_BNHW, needs.depth_bins, needs.stride) if needs.depth_bins else None
        targets = Targets(
            labels_BXYZ=torch.full((1, *needs.grid.shape), needs.label_set.unknown, dtype=torch.uint8),
            depth_bins_BNhw=bins,
            segmentation_BNHW=self._segmentation(index, image_augs) if needs.segmentation else None,
            centers=self._centers(index, bev_aug) if needs.center_classes else None,
        )
        if needs.voxels:
            targets = self._with_voxels(targets, index, bev_aug, generator)
        if self._rays:
            rays = self._draw_rays(index, key2global(frame, needs.inputs), generator)
            targets = replace(targets, rays=rays.transformed(torch.from_numpy(bev_aug.matrix())))
        return batch, targets

    def _with_voxels(self, targets: Targets, index: int, bev_aug: BevAug, generator: torch.Generator) -> Targets:
        """The labels of voxels; of a keyframe without, nothing is known and nothing observed."""
        needs = self.needs
        if not self._is_labelled(index):
            nothing = torch.zeros(1, *needs.grid.shape, dtype=torch.bool)
            return replace(targets, mask_camera_BXYZ=nothing, mask_lidar_BXYZ=nothing)
        truth = read_truth(self.frames, index, needs.grid, needs.label_set)
        labels = bev_aug.move_volume(self._known(truth, generator), truth.grid, outside=truth.label_set.unknown)
        return replace(
            targets,
            labels_BXYZ=_tensor(labels),
            mask_camera_BXYZ=_mask(truth.mask_camera, truth.grid, bev_aug),
            mask_lidar_BXYZ=_mask(truth.mask_lidar, truth.grid, bev_aug),
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
        if not self._is_labelled(index):
            return torch.full((1, len(image_augs), *size), self.needs.label_set.unknown, dtype=torch.uint8)
        records = self.frames.keyframe(index).records
        maps = [
            transform_seg_map(np.load(imgseg_path(self.frames.root, records[name])), aug, size)
            for name, aug in image_augs.items()
        ]
        return _tensor(np.stack(maps))


def _chance(chance: float, generator: torch.Generator) -> bool:
    return float(torch.rand(1, generator=generator)) < chance


def _never(index: int) -> bool:
    """For moments of which none is labelled; worker processes must be able to pickle it."""
    return False


def _mask(mask: NDArray[np.bool_] | None, grid: VoxelGrid, bev_aug: BevAug) -> torch.Tensor | None:
    return None if mask is None else _tensor(bev_aug.move_volume(mask, grid, outside=False))


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """As a batch of one."""
    return torch.from_numpy(np.ascontiguousarray(array))[None]
