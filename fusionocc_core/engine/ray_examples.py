"""Rays of keyframes, for the rendering losses: read from the data set anew each time, nothing is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fusionocc_core.data.imgseg import class_table, imgseg_path, lidarseg_files, read_lidarseg
from fusionocc_core.data.nuscenes import NuScenesFrames, read_sweep
from fusionocc_core.data.nuscenes_tables import Keyframe, SensorRecord
from fusionocc_core.data.render_rays import RayCamera, RayConfig, join_rays, points_rays, sample_rays
from fusionocc_core.engine.labels import report_missing
from fusionocc_core.grids import LabelSet
from fusionocc_core.ops.volume_render_rays import Rays


class KeyframeRays:
    """The rays of a data set's keyframes, from its LiDAR and the classes that RayConfig.source names.

    Args:
        frames: the keyframes.
        config: which rays.
        label_set: whose classes they have.
        labelled: which keyframes may give classes; the others give depth alone, and no rays to their neighbours.

    Raises:
        FileNotFoundError: labels are missing, with their number.
        ValueError: the data set has no LiDAR, or its classes are not those of the label set.
    """

    def __init__(
        self, frames: NuScenesFrames, config: RayConfig, label_set: LabelSet, labelled: Callable[[int], bool]
    ) -> None:
        if frames.lidar is None:
            raise ValueError(
                f"{frames.root}: no LiDAR, so that rays have no depth; do without: set LossConfig.rendering to None"
            )
        self.frames, self.config, self.label_set, self.labelled = frames, config, label_set, labelled
        self._lidarseg: dict[str, Path] = {}
        self._classes: NDArray[np.uint8] | None = None
        if config.source == "points":
            self._classes = class_table(frames.root, frames.version)
            files = lidarseg_files(frames.root, frames.version)
            records = [r for i in range(len(frames)) if labelled(i) and (r := self._lidar(frames.keyframe(i)))]
            unlisted = [record.token for record in records if record.token not in files]
            if unlisted:
                raise ValueError(f"lidarseg.json lists no labels for {len(unlisted)} clouds, such as {unlisted[0]}")
            self._lidarseg = {record.token: files[record.token] for record in records}
            hint = "take classes from maps (--set data.rays.source=maps), or depth alone (data.rays.source=none)"
            report_missing("labels of points", list(self._lidarseg.values()), hint)
        elif config.source == "maps":
            keyframes = [frames.keyframe(i) for i in range(len(frames)) if labelled(i)]
            maps = [imgseg_path(frames.root, k.records[c]) for k in keyframes for c in frames.cameras if c in k.records]
            report_missing("label maps of pictures", maps, "make them with `fusionocc prepare`, or bring your own")

    def rays(self, index: int, keyego2global: NDArray[np.float64], generator: torch.Generator) -> Rays:
        """The rays of a keyframe, drawn with the generator, in the ego frame whose pose is given.

        Raises:
            FileNotFoundError: a cloud is absent.
            ValueError: a file is damaged, holds a class outside the set, or a pose is not rigid.
        """
        current = self._of(index, keyego2global)
        neighbours = [self._of(other, keyego2global) for other in self._neighbours(index)]
        return sample_rays(
            current,
            join_rays([current.select(slice(0)), *neighbours]),
            self.config,
            generator,
            unknown=self.label_set.unknown,
        )

    def _neighbours(self, index: int) -> list[int]:
        """Keyframes of the same scene; unlike RenderOcc's, none stands for one that does not exist."""
        if self.config.source == "none" or not self.labelled(index):
            return []
        scene = self.frames.keyframe(index).scene
        around = (index + step for step in self.config.neighbours)
        return [
            other
            for other in around
            if 0 <= other < len(self.frames) and self.frames.keyframe(other).scene == scene and self.labelled(other)
        ]

    def _of(self, index: int, keyego2global: NDArray[np.float64]) -> Rays:
        keyframe = self.frames.keyframe(index)
        lidar = self._lidar(keyframe)
        nothing = Rays(
            origin_R3=torch.zeros(0, 3),
            direction_R3=torch.zeros(0, 3),
            depth_R=torch.zeros(0),
            label_R=torch.zeros(0, dtype=torch.int64),
            sample_R=torch.zeros(0, dtype=torch.int64),
            current_R=torch.zeros(0, dtype=torch.bool),
        )
        if lidar is None:
            return nothing
        sweep = read_sweep(lidar)
        labels_P = np.full(len(sweep.points), self.label_set.unknown, np.uint8)
        if self._classes is not None and self.labelled(index):
            labels_P = read_lidarseg(self._lidarseg[lidar.token], self._classes, len(sweep.points))
        parts = [nothing]
        for record in (keyframe.records[name] for name in self.frames.cameras if name in keyframe.records):
            assert record.intrinsics is not None, "Tables.record gives every camera its intrinsics"
            camera = RayCamera(
                name=record.channel,
                image_size=(record.height, record.width),
                intrinsics=record.intrinsics,
                cam2global=record.ego2global @ record.sensor2ego,
            )
            label_map = self._map(record) if self.config.source == "maps" and self.labelled(index) else None
            parts.append(points_rays(sweep, labels_P, camera, keyego2global, self.config, label_map=label_map))
        return join_rays(parts)

    def _lidar(self, keyframe: Keyframe) -> SensorRecord | None:
        return keyframe.records.get(self.frames.lidar or "")

    def _map(self, record: SensorRecord) -> NDArray[np.uint8]:
        """The classes of a picture; free space, which labels nothing painted, is unknown."""
        path = imgseg_path(self.frames.root, record)
        labels: NDArray[np.uint8] = np.load(path)
        labels = np.where(labels == self.label_set.free, np.uint8(self.label_set.unknown), labels).astype(np.uint8)
        wrong = labels[(labels >= self.label_set.num) & (labels != self.label_set.unknown)]
        if len(wrong):
            raise ValueError(
                f"{path} holds class {int(wrong[0])}; expected 0..{self.label_set.num - 1} of {self.label_set.name}, "
                f"{self.label_set.free} or {self.label_set.unknown} where there is none"
            )
        return labels
